"""The default filter's conditions, asked of the kernel by programs in containers, and its setting.

A call that the filter stops says EPERM (clone3: ENOSYS); one that it lets through is refused by the
kernel for its arguments, with another number. Each is tried with the capability that opens it and
without, by crun with a compiled filter and by runc from the rules.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.kit import seccomp_probes
from tests.kit.node import Node
from tests.kit.probe_elf import probe
from tests.kit.rights import capabilities, capability_sets, of_process, run_with, seccomp

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the probes are x86-64 programs"
)

SLEEP: Final = ["sleep", "1000"]

#: capability -> call (number and arguments of x86-64), and what the kernel says once it is open.
OPENED_BY: Final = {
    "SYS_ADMIN": {
        "unshare-nothing": (probe(272, 0), "0"),
        "clone3": (probe(435, 0, 0), "EINVAL"),
        "clone-newuts": (probe(56, 0x04000011), "0"),
        "setns": (probe(308, 0xFFFFFFFF, 0), "EBADF"),
        "fsopen": (probe(430, 0, 0), "EFAULT"),
    },
    "SYS_BOOT": {"reboot": (probe(169, 0, 0), "EINVAL")},
    # At the working directory: kernels differ in which of a bad descriptor and handle comes first.
    "DAC_READ_SEARCH": {"open-by-handle": (probe(304, 0xFFFFFF9C, 0), "EFAULT")},
    "SYS_PTRACE": {"kcmp": (probe(312, 0, 0), "ESRCH")},
    "SYS_TIME": {"settimeofday": (probe(164, 1, 0), "EFAULT")},
    "SYSLOG": {"syslog": (probe(103, 99), "EINVAL")},
    "SYS_NICE": {"mbind": (probe(237, 0, 0, 99), "EINVAL")},
}
#: Never open short of Unconfined.
CLOSED: Final = {
    "io-uring": probe(425, 1, 0),
    "userfaultfd": probe(323, 0),
    "keyctl": probe(250, 0, 0),
    "add-key": probe(248, 0, 0, 0),
    "request-key": probe(249, 0, 0, 0),
    "kexec": probe(246, 0, 0, 0),
    "personality-no-random": probe(135, 0x0040000),
    "personality-read-implies-exec": probe(135, 0x0400000),
}
#: Open to everybody.
OPEN: Final = {
    "ptrace": probe(101, 0),
    "personality": probe(135, 0xFFFFFFFF),
    "personality-linux32": probe(135, 0x0008),
    "getpid": probe(39),
}


def all_probes() -> dict[str, bytes]:
    opened = {name: p for calls in OPENED_BY.values() for name, (p, _) in calls.items()}
    return {**opened, **CLOSED, **OPEN}


def told(node: Node, pod: str, name: str, tmp_path: Path, *added: str) -> dict[str, str]:
    mount = seccomp_probes.write(tmp_path / "probes", all_probes())
    container = run_with(
        node,
        pod,
        name,
        SLEEP,
        seccomp("RuntimeDefault"),
        capabilities(add=added),
        mounts=[mount],
    )
    return seccomp_probes.told_by(node, container)


def test_without_capabilities_everything_conditional_is_closed(
    node: Node, handler: str, tmp_path: Path
) -> None:
    pod = node.run_pod("pod", handler=handler)
    found = told(node, pod, "main", tmp_path)
    for calls in OPENED_BY.values():
        for name in calls:
            expected = "ENOSYS" if name == "clone3" else "EPERM"
            assert (name, found[name]) == (name, expected)
    assert {found[name] for name in CLOSED} == {"EPERM"}
    assert {found[name] for name in OPEN} == {"0"}


@pytest.mark.parametrize("capability", OPENED_BY)
def test_a_capability_opens_its_own_calls_and_no_other(
    node: Node, handler: str, tmp_path: Path, capability: str
) -> None:
    if f"CAP_{capability}" not in capability_sets(of_process(node.pid))["CapEff"]:
        pytest.skip(f"the daemon itself lacks CAP_{capability}")
    pod = node.run_pod("pod", handler=handler)
    found = told(node, pod, "main", tmp_path, capability)
    for owner, calls in OPENED_BY.items():
        for name, (_, kernels) in calls.items():
            closed = "ENOSYS" if name == "clone3" else "EPERM"
            expected = kernels if owner == capability else closed
            assert (name, found[name]) == (name, expected)
    assert {found[name] for name in CLOSED} == {"EPERM"}


def test_the_operators_default_is_what_the_default_stands_for(
    certs_d: Path, tmp_path: Path
) -> None:
    """RuntimeDefault is then the file's; a Localhost profile and Unconfined are as ever."""
    file = tmp_path / "default.json"
    file.write_text(
        json.dumps(
            {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [
                    {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}
                ],
            }
        )
    )
    settings = {"runtime.seccomp_default_profile": json.dumps(str(file))}
    with Node.running("default profile", certs_d, settings=settings) as node:
        for handler in ("crun", "runc"):
            pod = node.run_pod(handler, handler=handler)
            held = run_with(node, pod, "held", SLEEP, seccomp("RuntimeDefault"))
            free = run_with(node, pod, "free", SLEEP, seccomp("Unconfined"))
            code, _, words = node.exec(held, "mkdir", "/tmp/x")
            assert code != 0
            assert "not supported" in words
            assert node.exec(free, "mkdir", "/tmp/x")[0] == 0
        node.remove_everything()
        node.assert_clean()


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"defaultAction": "ALLOW"}'])
def test_a_default_that_cannot_be_used_stops_the_daemon_at_its_start(
    certs_d: Path, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "default.json"
    if content is not None:
        file.write_bytes(content)
    config = tmp_path / "config.toml"
    config.write_text(
        f'[daemon]\nrun_root = "{tmp_path}/run"\nstate_root = "{tmp_path}/state"\n'
        f'[runtime]\nseccomp_default_profile = "{file}"\n[cni]\nconf_dir = "{tmp_path}"\n'
        '[metrics]\naddress = ""\n'
    )
    program = Path(sys.executable).with_name("podwright")
    done = subprocess.run(
        [program, "serve", "--config", config], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert str(file) in done.stderr + done.stdout
