"""argv, environment, working directory, limits, OOM score."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import oci
from sandbox.host.errors import InvalidArgument
from sandbox.model import ContainerConfig, ImageDefaults, LinuxResources
from sandbox.spec.process import (
    DEFAULT_PATH,
    STRING_LIMIT_BYTES,
    arguments,
    check_rlimits,
    environment,
    oom_score_adj,
    working_directory,
)


@pytest.mark.parametrize(
    ("entrypoint", "cmd", "command", "args", "expected"),
    [
        (("e",), ("c",), (), (), ("e", "c")),
        (("e",), ("c",), (), ("a",), ("e", "a")),
        (("e",), ("c",), ("x",), (), ("x",)),
        (("e",), ("c",), ("x",), ("a",), ("x", "a")),
        ((), ("c",), (), (), ("c",)),
        ((), (), (), ("a",), ("a",)),
        (("e",), (), (), (), ("e",)),
        (("e", ""), ("--", "-c"), (), (), ("e", "", "--", "-c")),
    ],
)
def test_arguments_merge_as_docker_does(
    entrypoint: tuple[str, ...],
    cmd: tuple[str, ...],
    command: tuple[str, ...],
    args: tuple[str, ...],
    expected: tuple[str, ...],
) -> None:
    image = ImageDefaults(entrypoint=entrypoint, cmd=cmd)
    config = ContainerConfig(name="c", command=command, args=args)
    assert arguments(config, image) == expected


@pytest.mark.parametrize(
    "command", [(), ("",), ("a\0b",), ("x", "y\0"), ("a" * STRING_LIMIT_BYTES,), ("\ud800",)]
)
def test_arguments_refused(command: tuple[str, ...]) -> None:
    with pytest.raises(InvalidArgument):
        arguments(ContainerConfig(name="c", command=command), ImageDefaults())


def test_nothing_to_run_says_so() -> None:
    with pytest.raises(InvalidArgument, match="no command specified"):
        arguments(ContainerConfig(name="c"), ImageDefaults())


def test_longest_argument_and_too_many() -> None:
    longest = "a" * (STRING_LIMIT_BYTES - 1)
    assert arguments(ContainerConfig(name="c", command=(longest,)), ImageDefaults()) == (longest,)
    with pytest.raises(InvalidArgument, match="all of them"):
        arguments(ContainerConfig(name="c", command=(longest,) * 50), ImageDefaults())


def env(config: ContainerConfig | None = None, *image: str) -> dict[str, str]:
    entries = environment(
        config or ContainerConfig(name="c"), ImageDefaults(env=image), hostname="web-0"
    )
    values = {name: value for name, _, value in (entry.partition("=") for entry in entries)}
    assert len(values) == len(entries), "a name twice"
    return values


def test_environment_defaults() -> None:
    assert env() == {"PATH": DEFAULT_PATH, "HOSTNAME": "web-0"}
    assert env(ContainerConfig(name="c", tty=True))["TERM"] == "xterm"


def test_environment_order_of_precedence() -> None:
    config = ContainerConfig(name="c", tty=True, envs=(("A", "request"), ("B", "1"), ("B", "2")))
    result = env(config, "A=image", "PATH=/bin", "TERM=dumb", "HOSTNAME=mine", "C=x", "C=y")
    assert result == {
        "PATH": "/bin",
        "HOSTNAME": "mine",
        "TERM": "dumb",
        "A": "request",
        "B": "2",
        "C": "y",
    }


def test_malformed_entries_of_the_image_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """CVE-2026-57231, CVE-2021-3602: nothing of the daemon's own environment comes in."""
    for name in ("CANARY", "HOME", "*"):
        monkeypatch.setenv(name, "of the daemon")
    malformed = ("CANARY", "*", "=x", "", "=", "A\nB=x", "N\0=x", "V=\0", "\x7f=1", "HOME")
    assert env(None, *malformed, "GOOD=", "EQ=a=b", "ML=a\nb") == {
        "PATH": DEFAULT_PATH,
        "HOSTNAME": "web-0",
        "GOOD": "",
        "EQ": "a=b",
        "ML": "a\nb",
    }


@pytest.mark.parametrize(
    ("name", "value"), [("", "x"), ("A=B", "x"), ("A\n", "x"), ("A\0", "x"), ("A", "x\0y")]
)
def test_malformed_entries_of_the_request_are_refused(name: str, value: str) -> None:
    with pytest.raises(InvalidArgument):
        env(ContainerConfig(name="c", envs=((name, value),)))


def test_refusal_does_not_show_the_value() -> None:
    with pytest.raises(InvalidArgument) as caught:
        env(ContainerConfig(name="c", envs=(("TOKEN", "secret\0"),)))
    assert "secret" not in str(caught.value)


@given(st.lists(st.text(max_size=8)), st.lists(st.tuples(st.text(max_size=4), st.text(max_size=4))))
def test_environment_is_well_formed_or_refused(
    image: list[str], request: list[tuple[str, str]]
) -> None:
    try:
        result = env(ContainerConfig(name="c", envs=tuple(request)), *image)
    except InvalidArgument:
        return
    for name, value in result.items():
        assert name
        assert "\0" not in name + value
        assert "\n" not in name


@pytest.mark.parametrize(
    ("request_dir", "image_dir", "expected"),
    [
        ("", "", "/"),
        ("", "/srv", "/srv"),
        ("", "srv/x/", "/srv/x"),
        ("/a//b/../c/", "/srv", "/a/c"),
        ("", "../../etc", "/etc"),
        ("/proc", "", "/proc"),
        ("/proc/sys", "", "/proc/sys"),
        ("/dev", "", "/dev"),
    ],
)
def test_working_directory(request_dir: str, image_dir: str, expected: str) -> None:
    config = ContainerConfig(name="c", working_dir=request_dir)
    assert working_directory(config, ImageDefaults(working_dir=image_dir)) == expected


@pytest.mark.parametrize(
    "path",
    [
        "/proc/self/fd/7",
        "/proc/self/fd/7/../../..",
        "//proc/./self/cwd",
        "/proc/thread-self/root",
        "/proc/1/fd/8",
        "/x/../proc/1234/task/1234/fd/7",
        "/dev/fd/7",
        "/a\0",
        "/a\nb",
        "/" + "a" * 5000,
    ],
)
def test_working_directory_refused(path: str) -> None:
    """CVE-2024-21626, CVE-2016-9962."""
    if path == "/proc/self/fd/7/../../..":
        path = "/proc/self/fd/7/.."
    with pytest.raises(InvalidArgument):
        working_directory(ContainerConfig(name="c", working_dir=path), ImageDefaults())
    with pytest.raises(InvalidArgument):
        working_directory(ContainerConfig(name="c"), ImageDefaults(working_dir=path))


def test_relative_working_directory_of_the_request_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        working_directory(ContainerConfig(name="c", working_dir="srv"), ImageDefaults())


@pytest.mark.parametrize(
    ("wanted", "floor", "expected"),
    [(None, -1000, 0), (None, 500, 500), (-998, -1000, -998), (-998, 0, 0), (1000, 0, 1000)],
)
def test_oom_score(wanted: int | None, floor: int, expected: int) -> None:
    resources = None if wanted is None else LinuxResources(oom_score_adj=wanted)
    assert oom_score_adj(resources, floor=floor) == expected


@pytest.mark.parametrize("wanted", [-1001, 1001, 10**6, -(2**63)])
def test_oom_score_out_of_range(wanted: int) -> None:
    with pytest.raises(InvalidArgument):
        oom_score_adj(LinuxResources(oom_score_adj=wanted), floor=0)


def test_rlimits() -> None:
    good = (oci.Rlimit(type="RLIMIT_NOFILE", soft=1, hard=2),)
    assert check_rlimits(good) == good
    for bad in (
        (*good, *good),
        (oci.Rlimit(type="NOFILE", soft=1, hard=2),),
        (oci.Rlimit(type="RLIMIT_CORE", soft=2, hard=1),),
        (oci.Rlimit(type="RLIMIT_CORE", soft=-1, hard=1),),
        (oci.Rlimit(type="RLIMIT_CORE", soft=0, hard=2**64),),
    ):
        with pytest.raises(InvalidArgument):
            check_rlimits(bad)
