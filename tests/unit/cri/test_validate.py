import pytest

from cri import validate
from sandbox.host.errors import InvalidArgument

CONTROL = ["a\nb", "a\rb", "a\0b", "a\x1bb", "a\u2028b", "a\x85b"]


@pytest.mark.parametrize("value", CONTROL)
@pytest.mark.parametrize(
    "check",
    [
        validate.text,
        validate.required,
        validate.name,
        validate.object_id,
        validate.hostname,
        validate.cgroup_parent,
        validate.cpu_list,
        validate.page_size,
        lambda v, f: validate.absolute_path("/" + v, f),
        validate.relative_path,
        lambda v, f: validate.working_dir("/" + v, f),
        lambda v, f: validate.dns_entries([v], f),
        lambda v, f: validate.sysctls({"net.a": v}, f),
        lambda v, f: validate.sysctls({f"net.{v}": "1"}, f),
        lambda v, f: validate.unified({"memory.high": v}, f),
        lambda v, f: validate.unified({f"memory.{v}": "1"}, f),
        lambda v, f: validate.variable(v, b"", f),
    ],
)
def test_control_characters_are_refused_and_the_field_is_named(check, value):
    with pytest.raises(InvalidArgument, match="the-field"):
        check(value, "the-field")


@pytest.mark.parametrize("value", ["", ".", "..", "a/b", "a;b", "a=b", "-a", "x" * 257])
def test_what_is_no_name(value):
    with pytest.raises(InvalidArgument):
        validate.name(value, "name")


@pytest.mark.parametrize("value", ["web-1", "kube-system", "Ünïcode", "a b", "%s$(x)", "x" * 256])
def test_names_are_kept_as_they_are(value):
    assert validate.name(value, "name") == value


@pytest.mark.parametrize("value", ["/a/../b", "/..", "a", "", "./a", "/" + "x" * 4095])
def test_what_is_no_absolute_path(value):
    with pytest.raises(InvalidArgument):
        validate.absolute_path(value, "path")


def test_paths_are_counted_in_bytes():
    assert validate.absolute_path("/" + "x" * 4094, "path")
    with pytest.raises(InvalidArgument, match="4095"):
        validate.absolute_path("/" + "ü" * 2048, "path")


@pytest.mark.parametrize("value", ["/a", "../a", "a/..", "a/../b"])
def test_what_is_no_relative_path(value):
    with pytest.raises(InvalidArgument):
        validate.relative_path(value, "path")


def test_dots_inside_a_name_are_no_parent():
    assert validate.relative_path("a..b/..c/0.log", "path") == "a..b/..c/0.log"


@pytest.mark.parametrize(
    "value",
    [
        "/proc/self/fd/7",
        "/proc/thread-self/cwd",
        "/proc/1/root",
        "//proc/./self/fd/3",
        "/proc/self",
    ],
)
def test_working_directory_is_never_inside_a_process(value):
    with pytest.raises(InvalidArgument, match="process's directory"):
        validate.working_dir(value, "working_dir")


@pytest.mark.parametrize("value", ["", "/", "/proc", "/proc/sys/net", "/srv/app"])
def test_other_working_directories(value):
    assert validate.working_dir(value, "working_dir") == value


@pytest.mark.parametrize("value", ["a" * 65, "-a", "a-", "a b", "a/b", ".a", "ü"])
def test_what_is_no_hostname(value):
    with pytest.raises(InvalidArgument):
        validate.hostname(value, "hostname")


@pytest.mark.parametrize("value", ["", "a", "a" * 64, "Web-1.example_x"])
def test_hostnames(value):
    assert validate.hostname(value, "hostname") == value


@pytest.mark.parametrize(
    "servers", [["example.com"], ["10.0.0.1\n"], ["1.2.3"], [""], ["10.0.0.1"] * 33]
)
def test_name_servers_are_addresses(servers):
    with pytest.raises(InvalidArgument):
        validate.dns_servers(servers, "dns")


def test_name_servers_may_have_a_zone():
    assert validate.dns_servers(["fe80::1%eth0", "10.0.0.1"], "dns") == ("fe80::1%eth0", "10.0.0.1")


@pytest.mark.parametrize("entries", [["a b"], [""], ["a\tb"], ["x" * 257], ["a"] * 33, ["ü"]])
def test_search_domains_are_single_words(entries):
    with pytest.raises(InvalidArgument):
        validate.dns_entries(entries, "dns")


@pytest.mark.parametrize(
    "key",
    ["", "net", "net..a", "../../etc/passwd", "net.", ".net", "net/../../x", "net.a=b", "net a.b",
     "kernel.core_pattern+x", "/proc/sys/x", "n" * 300 + ".a"],
)  # fmt: skip
def test_what_is_no_sysctl(key):
    with pytest.raises(InvalidArgument):
        validate.sysctls({key: "1"}, "sysctls")


def test_sysctls_are_kept():
    values = {"net.ipv4.ping_group_range": "0\t100", "net/ipv4/conf/eth0.1/forwarding": "1"}
    assert validate.sysctls(values, "sysctls") == values


@pytest.mark.parametrize("value", ["0-3,7", "0", "", "10,11-12"])
def test_cpu_lists(value):
    assert validate.cpu_list(value, "cpus") == value


@pytest.mark.parametrize("value", ["a", "0-", ",1", "1,,2", "٣", "1 2"])
def test_what_is_no_cpu_list(value):
    with pytest.raises(InvalidArgument):
        validate.cpu_list(value, "cpus")


def test_cgroup_files_cannot_leave_their_directory():
    assert validate.unified({"memory.high": "1", "hugetlb.2MB.max": "0"}, "unified")
    for key in ("../memory.max", "memory/high", "memory", "", "Memory.max"):
        with pytest.raises(InvalidArgument):
            validate.unified({key: "1"}, "unified")


def test_variables():
    assert validate.variable("HOME", "/ü\n".encode(), "env") == ("HOME", "/ü\n")
    for key, value in (("", b""), ("A=B", b""), ("A", b"\xff"), ("A", b"a\0")):
        with pytest.raises(InvalidArgument):
            validate.variable(key, value, "env")


def test_arguments_fit_the_kernel():
    longest = "x" * validate.ARGUMENT_LIMIT_BYTES
    assert validate.arguments([longest, "", "-x\n"], "args") == (longest, "", "-x\n")
    for bad in (longest + "x", "a\0b"):
        with pytest.raises(InvalidArgument):
            validate.arguments([bad], "args")
    with pytest.raises(InvalidArgument, match="entries"):
        validate.arguments([""] * (validate.LIST_LIMIT + 1), "args")


def test_annotations_are_kept_byte_for_byte_and_bounded():
    values = {"a/b": 'multi\nline "x" ü', "": ""}
    assert validate.string_map(values, "annotations") == values
    for bad in (
        {"a\nb": ""},
        {"a": "\0"},
        {str(n): "" for n in range(validate.MAP_ENTRIES_LIMIT + 1)},
        {"a": "x" * validate.MAP_TOTAL_LIMIT_BYTES},
    ):
        with pytest.raises(InvalidArgument):
            validate.string_map(bad, "annotations")
