"""A seccomp profile that cannot be used is an error, and never comes to mean "unconfined".

CVE-2023-2431: an empty path of a Localhost profile meant no filter at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from sandbox.security.seccomp import LOCALHOST_LIMIT_BYTES
from tests.kit.node import Node
from tests.kit.rights import (
    create_with,
    of_container,
    of_process,
    profile,
    run_with,
    seccomp,
    status_field,
)

SLEEP = ["sleep", "1000"]
GOOD = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
}


def changed(**fields: object) -> bytes:
    return json.dumps({**GOOD, **fields}).encode()


def rule(**fields: object) -> bytes:
    return changed(syscalls=[{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", **fields}])


#: What is in the file, and a word that the answer must have.
CONTENTS = {
    "empty": (b"", "JSON"),
    "blank": (b"\n", "JSON"),
    "null": (b"null", "null"),
    "a list": (b"[]", "array"),
    "a string": (b'"unconfined"', "str"),
    "no object": (b"{}", "defaultAction"),
    "cut off": (json.dumps(GOOD).encode()[:-1], "JSON"),
    "two documents": (json.dumps(GOOD).encode() * 2, "JSON"),
    "no text": (b"\xff\xfe\x00", "JSON"),
    "too deep": (b"[" * 200_000, "JSON"),
    "one key twice": (
        b'{"defaultAction":"SCMP_ACT_ERRNO","defaultAction":"SCMP_ACT_ALLOW"}',
        "twice",
    ),
    "unknown key": (changed(sycalls=[]), "sycalls"),
    "unknown default action": (changed(defaultAction="ALLOW"), "ALLOW"),
    "unknown action": (rule(action="SCMP_ACT_DENY"), "SCMP_ACT_DENY"),
    "unknown architecture": (changed(architectures=["SCMP_ARCH_Z80"]), "Z80"),
    "unknown flag": (changed(flags=["SECCOMP_FILTER_FLAG_NONE"]), "FLAG_NONE"),
    "calls are a string": (changed(syscalls="mkdir"), "array"),
    "calls are an object": (changed(syscalls={}), "array"),
    "a rule without names": (rule(names=[]), "names"),
    "a name that is none": (rule(names=["mk dir"]), "names"),
    "an errno that is none": (rule(errnoRet=99999), "errnoRet"),
    "an errno that is a string": (rule(errnoRet="1"), "errnoRet"),
    "unknown operator": (rule(args=[{"index": 0, "value": 1, "op": "EQ"}]), "EQ"),
    "misspelt args": (rule(arg=[]), "arg"),
    "a seventh argument": (rule(args=[{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]), "index"),
    "over 64 bits": (rule(args=[{"index": 0, "value": 2**64, "op": "SCMP_CMP_EQ"}]), "64"),
    "oversized": (json.dumps(GOOD).encode() + b" " * LOCALHOST_LIMIT_BYTES, "bytes"),
}


def make_directory(path: Path) -> None:
    path.mkdir()


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_link_to_nothing(path: Path) -> None:
    path.symlink_to("nothing")


def make_link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_link_to_itself(path: Path) -> None:
    path.symlink_to(path)


PLACES: dict[str, Callable[[Path], None]] = {
    "missing": lambda path: None,
    "directory": make_directory,
    "fifo": make_fifo,
    "link to nothing": make_link_to_nothing,
    "link to a device": make_link_to_a_device,
    "link to itself": make_link_to_itself,
}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path / "profile.json"


def refusal(node: Node, *changes: Callable[[api.LinuxContainerSecurityContext], None]) -> str:
    """The words with which a container is refused; it is checked that none was made."""
    pod = node.run_pod("pod")
    with pytest.raises(grpc.RpcError) as error:
        create_with(node, pod, "main", SLEEP, *changes)
    assert not node.containers()
    code = error.value.code()  # type: ignore[attr-defined]
    assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED), code
    return str(error.value.details())  # type: ignore[attr-defined]


@pytest.mark.parametrize("case", CONTENTS)
def test_a_profile_that_says_nothing_clear_is_refused(node: Node, here: Path, case: str) -> None:
    content, word = CONTENTS[case]
    here.write_bytes(content)
    words = refusal(node, seccomp("Localhost", str(here)))
    assert word in words
    assert str(here) in words


@pytest.mark.parametrize("case", PLACES)
def test_what_is_no_file_is_refused(node: Node, here: Path, case: str) -> None:
    """Nothing of it is waited for either: a FIFO that nobody writes to, a device without end."""
    PLACES[case](here)
    assert str(here) in refusal(node, seccomp("Localhost", str(here)))


@pytest.mark.parametrize(
    "reference",
    [
        "", " ", "localhost/", "profile.json", "./profile.json", "../etc/passwd", "localhost/x",
        "/../etc/no-such-profile", "/etc/../etc/passwd", "/etc/passwd/..", "/", "/dev/null",
        "/" + "x" * 5000, "/a\nb",
    ],
)  # fmt: skip
def test_a_path_that_is_none_is_refused(node: Node, reference: str) -> None:
    refusal(node, seccomp("Localhost", reference))


@pytest.mark.parametrize(
    "value", ["localhost/", "localhost/relative", "nonsense", "Unconfined", " "]
)
def test_the_older_field_does_not_help(node: Node, value: str) -> None:
    refusal(node, lambda context: setattr(context, "seccomp_profile_path", value))


def test_a_reference_beside_another_type_is_refused(node: Node, here: Path) -> None:
    here.write_bytes(changed())
    for kind in ("RuntimeDefault", "Unconfined"):
        refusal(node, seccomp(kind, str(here)))


def test_a_type_from_the_future_is_refused(node: Node) -> None:
    refusal(node, lambda context: setattr(context.seccomp, "profile_type", 3))


@pytest.mark.parametrize("case", ["empty", "unknown action", "one key twice"])
def test_a_pod_is_refused_as_well(node: Node, here: Path, case: str) -> None:
    here.write_bytes(CONTENTS[case][0])
    for reference in (str(here), "", "relative"):
        config = node.pod_config("pod")
        config.linux.security_context.seccomp.CopyFrom(profile("Localhost", reference))
        with pytest.raises(grpc.RpcError) as error:
            node.run_config(config)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    assert not node.pods()


# And the good one is enforced, by every way of naming it.


def older(value: str) -> Callable[[api.LinuxContainerSecurityContext], None]:
    return lambda context: setattr(context, "seccomp_profile_path", value)


@pytest.mark.parametrize("form", ["{}", "localhost/{}", "older localhost/{}"])
def test_a_good_profile_is_enforced(node: Node, handler: str, here: Path, form: str) -> None:
    here.write_bytes(changed())
    text = form.removeprefix("older ").format(here)
    change = older(text) if form.startswith("older") else seccomp("Localhost", text)
    pod = node.run_pod("pod", handler=handler)
    container = run_with(node, pod, "main", SLEEP, change)
    assert status_field(of_container(node, container), "Seccomp") == "2"
    code, _, words = node.exec(container, "mkdir", "/tmp/x")
    assert code != 0
    assert "not supported" in words  # EOPNOTSUPP, 95: nothing but the filter says that
    assert node.exec(container, "touch", "/tmp/x")[0] == 0


def test_the_profile_is_what_the_file_says_now(node: Node, handler: str, here: Path) -> None:
    """Nothing of an older reading is kept: a mended profile counts for the next container."""
    pod = node.run_pod("pod", handler=handler)
    here.write_bytes(changed(syscalls=[]))
    loose = run_with(node, pod, "loose", SLEEP, seccomp("Localhost", str(here)))
    here.write_bytes(changed())
    tight = run_with(node, pod, "tight", SLEEP, seccomp("Localhost", str(here)))
    assert node.exec(loose, "mkdir", "/tmp/x")[0] == 0
    assert node.exec(tight, "mkdir", "/tmp/x")[0] != 0


@pytest.mark.parametrize("change", [seccomp("Unconfined"), older("unconfined"), older("")])
def test_unconfined_is_no_filter(
    node: Node, handler: str, change: Callable[[api.LinuxContainerSecurityContext], None]
) -> None:
    """An empty old field is a field that is not set, which CRI says is unconfined."""
    pod = node.run_pod("pod", handler=handler)
    container = run_with(node, pod, "main", SLEEP, change)
    assert status_field(of_container(node, container), "Seccomp") == "0"
    inside = node.exec(container, "cat", "/proc/self/status")[1]
    assert status_field(inside, "Seccomp") == "0"


@pytest.mark.parametrize("change", [seccomp("RuntimeDefault"), older("runtime/default")])
def test_the_default_holds_container_and_command(
    node: Node, handler: str, change: Callable[[api.LinuxContainerSecurityContext], None]
) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = run_with(node, pod, "main", SLEEP, change)
    for status in (
        of_container(node, container),
        node.exec(container, "cat", "/proc/self/status")[1],
    ):
        assert status_field(status, "Seccomp") == "2"


def test_privileged_has_no_filter_whatever_was_asked_for(
    node: Node, handler: str, here: Path
) -> None:
    """As Kubernetes says: the profile is not even read."""
    pod = node.run_pod("pod", handler=handler, privileged=True)
    for number, change in enumerate(
        [seccomp("RuntimeDefault"), seccomp("Localhost", str(here)), seccomp("Unconfined")]
    ):
        container = run_with(node, pod, f"c{number}", SLEEP, change, privileged=True)
        assert status_field(of_container(node, container), "Seccomp") == "0"


@pytest.mark.parametrize(
    ("kind", "mode"), [("RuntimeDefault", "2"), ("Localhost", "2"), ("Unconfined", "0")]
)
def test_a_pods_profile_holds_its_pause_process(
    node: Node, handler: str, here: Path, kind: str, mode: str
) -> None:
    here.write_bytes(changed())
    config = node.pod_config("pod")
    reference = str(here) if kind == "Localhost" else ""
    config.linux.security_context.seccomp.CopyFrom(profile(kind, reference))
    pod = node.run_config(config, handler=handler)
    assert status_field(of_process(node.pause_program_pid(pod)), "Seccomp") == mode
