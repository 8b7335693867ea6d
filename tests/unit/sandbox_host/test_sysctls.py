import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.host.errors import InvalidArgument, PodwrightError
from sandbox.host.sysctls import plan_sysctls, sysctl_kind, sysctl_path

ALL = frozenset({"net", "ipc", "uts"})


@pytest.mark.parametrize(
    ("key", "path", "kind"),
    [
        ("net.ipv4.ping_group_range", "net/ipv4/ping_group_range", "net"),
        ("net/ipv4/ip_unprivileged_port_start", "net/ipv4/ip_unprivileged_port_start", "net"),
        ("net.ipv4.conf.eth0/100.rp_filter", "net/ipv4/conf/eth0.100/rp_filter", "net"),
        ("net/ipv4/conf/eth0.100/rp_filter", "net/ipv4/conf/eth0.100/rp_filter", "net"),
        ("kernel.shm_rmid_forced", "kernel/shm_rmid_forced", "ipc"),
        ("kernel.msgmax", "kernel/msgmax", "ipc"),
        ("kernel.sem", "kernel/sem", "ipc"),
        ("fs.mqueue.msg_max", "fs/mqueue/msg_max", "ipc"),
        ("kernel.domainname", "kernel/domainname", "uts"),
        ("kernel.core_pattern", "kernel/core_pattern", None),
        ("kernel.shmfoo", "kernel/shmfoo", None),
        ("vm.swappiness", "vm/swappiness", None),
        ("fs.mqueues.x", "fs/mqueues/x", None),
    ],
)
def test_keys_and_their_namespaces(key, path, kind):
    assert sysctl_path(key) == path
    assert sysctl_kind(path) == kind


@pytest.mark.parametrize(
    "key",
    [
        "",
        "net",
        ".net.x",
        "net..x",
        "net.x.",
        "/net/x",
        "net/../kernel/core_pattern",
        "net/./x",
        "net.//.kernel",
        "net.x\n",
        "net.x\0y",
        "net.x y",
        "net.x+kernel.core_pattern",
        "net.x=1",
        "net.ïpv4.x",
        "net." + "x" * 300,
    ],
)
def test_what_is_no_key_is_refused(key):
    with pytest.raises(InvalidArgument):
        sysctl_path(key)


@pytest.mark.parametrize("key", ["kernel.core_pattern", "vm.swappiness", "kernel.hostname", "a.b"])
def test_the_machines_own_keys_are_refused_even_with_every_namespace(key):
    with pytest.raises(InvalidArgument, match="not namespaced"):
        plan_sysctls({key: "1"}, ALL)


def test_a_namespace_shared_with_the_host_takes_no_sysctls():
    with pytest.raises(InvalidArgument, match=r"net\.ipv4\.x needs a net namespace"):
        plan_sysctls({"kernel.sem": "1 2 3 4", "net.ipv4.x": "1"}, frozenset({"ipc"}))


def test_a_plan_keeps_the_order_and_the_value():
    assert plan_sysctls({"net.b.c": "1", "net.a.c": "0\t5"}, ALL) == [
        ("net.b.c", "net/b/c", "1"),
        ("net.a.c", "net/a/c", "0\t5"),
    ]


@pytest.mark.parametrize("value", ["1\n2", "1\0", "\x1b[0m", "x" * 5000])
def test_values_are_one_short_line(value):
    with pytest.raises(InvalidArgument):
        plan_sysctls({"net.a.b": value}, ALL)


@given(st.text(max_size=40))
def test_no_text_leads_out_of_proc_sys(key):
    try:
        path = sysctl_path(key)
    except PodwrightError:
        return
    parts = path.split("/")
    assert ".." not in parts
    assert "." not in parts
    assert "" not in parts
