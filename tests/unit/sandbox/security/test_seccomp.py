"""Profiles: the default, those of administrators, and what is refused."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import oci
from sandbox.host.errors import InvalidArgument, Unsupported
from sandbox.host.host_facts import CAPABILITIES
from sandbox.model import ProfileType, SecurityProfile
from sandbox.security.capabilities import DEFAULT_CAPABILITIES
from sandbox.security.seccomp import (
    LOCALHOST_LIMIT_BYTES,
    MACHINES,
    SeccompHost,
    localhost_path,
    parse_profile,
    resolve_seccomp,
)

ROOT = Path(__file__).resolve().parents[4]
LOCALHOST = SecurityProfile(profile_type=ProfileType.LOCALHOST, localhost_ref="/p.json")
MINIMAL = {"defaultAction": "SCMP_ACT_ERRNO"}


def default(*capabilities: str, machine: str = "x86_64") -> oci.Seccomp:
    seccomp = resolve_seccomp(
        SecurityProfile(),
        privileged=False,
        content=None,
        bounding=DEFAULT_CAPABILITIES | set(capabilities),
        host=SeccompHost(machine=machine),
    )
    assert seccomp is not None
    return seccomp


def localhost(
    document: object, *, bounding: frozenset[str] = frozenset(), kernel: tuple[int, int] = (6, 1)
) -> oci.Seccomp:
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    seccomp = resolve_seccomp(
        LOCALHOST,
        privileged=False,
        content=content,
        bounding=bounding,
        host=SeccompHost(kernel=kernel),
    )
    assert seccomp is not None
    return seccomp


def rules(seccomp: oci.Seccomp, name: str) -> list[oci.SeccompRule]:
    return [rule for rule in seccomp.syscalls if name in rule.names]


def allowed(seccomp: oci.Seccomp) -> set[str]:
    return {
        name for rule in seccomp.syscalls if rule.action == "SCMP_ACT_ALLOW" for name in rule.names
    }


def test_the_file_is_what_the_script_writes() -> None:
    script = runpy.run_path(str(ROOT / "hack/gen_seccomp"))
    written = (ROOT / "sandbox/security/seccomp_default.json").read_text(encoding="utf-8")
    assert written == script["text"]()


def test_no_name_is_listed_twice_for_everybody() -> None:
    script = runpy.run_path(str(ROOT / "hack/gen_seccomp"))
    names = [name for _, group in script["GROUPS"] for name in group.split()]
    assert len(names) == len(set(names))


def test_default_denies_with_eperm_and_is_generous() -> None:
    seccomp = default()
    assert (seccomp.default_action, seccomp.default_errno_ret) == ("SCMP_ACT_ERRNO", 1)
    assert 350 <= len(allowed(seccomp)) <= 400


@pytest.mark.parametrize(
    "name",
    # What nginx, a JVM, Go, CPython and package managers call.
    [
        *("accept4", "clone", "epoll_pwait2", "execve", "exit_group", "futex_waitv"),
        *("getrandom", "landlock_create_ruleset", "madvise", "membarrier", "memfd_create"),
        *("openat2", "pidfd_open", "prctl", "ptrace", "rseq", "sched_setaffinity", "sendmmsg"),
        *("set_robust_list", "statx", "copy_file_range", "close_range", "fchmodat2"),
        *("io_submit", "chroot"),
    ],
)
def test_default_allows(name: str) -> None:
    assert name in allowed(default())


@pytest.mark.parametrize(
    "name",
    [
        *("add_key", "bpf", "delete_module", "finit_module", "fsopen", "init_module"),
        *("io_uring_setup", "kexec_load", "keyctl", "mount", "move_mount", "open_by_handle_at"),
        *("perf_event_open", "pivot_root", "quotactl", "reboot", "request_key", "setns"),
        *("settimeofday", "swapon", "syslog", "umount2", "unshare", "userfaultfd", "uselib"),
        *("vm86", "socketcall"),
    ],
)
def test_default_does_not_allow(name: str) -> None:
    assert name not in allowed(default())


def test_nothing_dangerous_whatever_the_capabilities() -> None:
    everything = allowed(default(*CAPABILITIES))
    assert not everything & {"io_uring_setup", "userfaultfd", "keyctl", "add_key", "kexec_load"}


@pytest.mark.parametrize("machine", MACHINES)
def test_clone3_is_unknown_so_that_libc_falls_back(machine: str) -> None:
    (rule,) = rules(default(machine=machine), "clone3")
    assert (rule.action, rule.errno_ret) == ("SCMP_ACT_ERRNO", 38)
    (rule,) = rules(default("CAP_SYS_ADMIN", machine=machine), "clone3")
    assert rule.action == "SCMP_ACT_ALLOW"


def test_clone_makes_no_namespaces_without_sys_admin() -> None:
    (rule,) = rules(default(), "clone")
    (argument,) = rule.args
    assert (argument.index, argument.op, argument.value_two) == (0, "SCMP_CMP_MASKED_EQ", 0)
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert argument.value & flag
    # What threads and vfork need must pass: VM FS FILES SIGHAND THREAD SYSVSEM SETTLS, VFORK.
    assert not argument.value & (0x3D0F00 | 0x4000)
    (rule,) = rules(default(machine="s390x"), "clone")
    assert rule.args[0].index == 1
    assert rules(default("CAP_SYS_ADMIN"), "clone")[0].args == ()


def holds(rule: oci.SeccompRule, value: int) -> bool:
    """Whether the kernel would let the first argument `value` pass the rule."""
    checks = {
        "SCMP_CMP_LT": lambda item: value < item.value,
        "SCMP_CMP_EQ": lambda item: value == item.value,
        "SCMP_CMP_GT": lambda item: value > item.value,
        "SCMP_CMP_MASKED_EQ": lambda item: value & item.value == item.value_two,
    }
    return all(checks[item.op](item) for item in rule.args)


@given(
    st.integers(min_value=0, max_value=64),
    st.integers(min_value=0, max_value=2**32 - 1) | st.just(0),
)
def test_every_socket_family_but_two(family: int, above: int) -> None:
    """The kernel takes the argument for an int: what is above its 32 bits must change nothing."""
    passes = any(holds(rule, above << 32 | family) for rule in rules(default(), "socket"))
    assert passes == (family not in (38, 40) and family < 64)


@given(st.integers(min_value=64, max_value=2**32 - 1))
def test_no_socket_family_that_does_not_exist(family: int) -> None:
    assert not any(holds(rule, family) for rule in rules(default(), "socket"))


def test_socketcall_is_denied_before_the_socket_rules_and_not_as_by_default() -> None:
    seccomp = default()
    order = [name for rule in seccomp.syscalls for name in rule.names]
    (rule,) = rules(seccomp, "socketcall")
    assert (rule.action, rule.errno_ret) == ("SCMP_ACT_ERRNO", 38)
    assert order.index("socketcall") < order.index("socket")


def test_personality_values() -> None:
    values = {rule.args[0].value for rule in rules(default(), "personality")}
    assert values == {0, 8, 0x20000, 0x20008, 0xFFFFFFFF}


@pytest.mark.parametrize(
    ("machine", "architectures", "own", "foreign"),
    [
        ("x86_64", ("X86_64", "X86", "X32"), "arch_prctl", "riscv_hwprobe"),
        ("aarch64", ("AARCH64", "ARM"), "sync_file_range2", "arch_prctl"),
        ("riscv64", ("RISCV64",), "riscv_hwprobe", "arch_prctl"),
        ("ppc64le", ("PPC64LE",), "swapcontext", "arch_prctl"),
    ],
)
def test_machines(machine: str, architectures: tuple[str, ...], own: str, foreign: str) -> None:
    seccomp = default(machine=machine)
    assert seccomp.architectures == tuple("SCMP_ARCH_" + name for name in architectures)
    assert own in allowed(seccomp)
    assert foreign not in allowed(seccomp)


def test_unknown_machine_and_kernel_without_filters() -> None:
    with pytest.raises(Unsupported):
        default(machine="vax")
    for profile in (SecurityProfile(), LOCALHOST):
        with pytest.raises(Unsupported):
            resolve_seccomp(
                profile,
                privileged=False,
                content=b"{}",
                bounding=(),
                host=SeccompHost(supported=False),
            )


def test_who_runs_without_a_filter() -> None:
    host = SeccompHost()
    unconfined = SecurityProfile(profile_type=ProfileType.UNCONFINED)
    for profile, privileged in ((None, False), (unconfined, False), (LOCALHOST, True)):
        assert (
            resolve_seccomp(profile, privileged=privileged, content=None, bounding=(), host=host)
            is None
        )


@pytest.mark.parametrize("path", ["", "p.json", "./p", "../p", "/a\0b", "/" + "a" * 5000])
def test_localhost_path_must_be_absolute(path: str) -> None:
    """CVE-2023-2431: an empty path meant unconfined."""
    profile = SecurityProfile(profile_type=ProfileType.LOCALHOST, localhost_ref=path)
    with pytest.raises(InvalidArgument):
        localhost_path(profile, privileged=False)
    with pytest.raises(InvalidArgument):
        resolve_seccomp(profile, privileged=False, content=b"{}", bounding=(), host=SeccompHost())


def test_localhost_path() -> None:
    assert str(localhost_path(LOCALHOST, privileged=False)) == "/p.json"
    assert localhost_path(LOCALHOST, privileged=True) is None
    assert localhost_path(SecurityProfile(), privileged=False) is None
    with pytest.raises(InvalidArgument, match="not read"):
        resolve_seccomp(LOCALHOST, privileged=False, content=None, bounding=(), host=SeccompHost())


def test_localhost_conditions() -> None:
    document = {
        **MINIMAL,
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
        "syscalls": [
            {"names": ["a"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_KILL"]}},
            {"names": ["b"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_KILL"]}},
            {"names": ["c"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm64"]}},
            {"names": ["d"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "5.10"}},
            {"names": ["e"], "action": "SCMP_ACT_ERRNO", "errno": "ENOSYS", "args": None},
            {"name": "f", "action": "SCMP_ACT_ALLOW", "comment": "", "includes": {}},
        ],
    }
    without = localhost(document)
    assert [rule.names[0] for rule in without.syscalls] == ["b", "d", "e", "f"]
    assert without.syscalls[2].errno_ret == 38
    assert without.architectures == ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86")
    older = localhost(document, bounding=frozenset({"CAP_KILL"}), kernel=(5, 9))
    assert [rule.names[0] for rule in older.syscalls] == ["a", "e", "f"]


def rule(**fields: object) -> dict[str, object]:
    return {**MINIMAL, "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", **fields}]}


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"not json",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'"SCMP_ACT_ALLOW"',
        b"[" * 100_000,
        b'{"defaultAction": "SCMP_ACT_ALLOW"} trailing',
        b'{"defaultAction": "SCMP_ACT_ERRNO", "defaultAction": "SCMP_ACT_ALLOW"}',
        b" " * (LOCALHOST_LIMIT_BYTES + 1),
        {},
        {"defaultAction": "SCMP_ACT_NONSENSE"},
        {"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/l"},
        {**MINIMAL, "defaultErrnoRet": -1},
        {**MINIMAL, "defaultErrnoRet": 5000},
        {**MINIMAL, "defaultErrno": "EWHAT"},
        {**MINIMAL, "syscals": []},
        {**MINIMAL, "architectures": ["SCMP_ARCH_VAX"]},
        {**MINIMAL, "flags": ["SECCOMP_FILTER_FLAG_NEW_LISTENER"]},
        {**MINIMAL, "listenerPath": "/l"},
        {
            **MINIMAL,
            "archMap": [{"architecture": "SCMP_ARCH_X86"}],
            "architectures": ["SCMP_ARCH_X86"],
        },
        rule(names=[]),
        rule(names=["read\n"]),
        rule(names=["Read"]),
        rule(name="read"),
        rule(action="allow"),
        rule(arg=[]),
        rule(errnoRet=1),
        rule(action="SCMP_ACT_ERRNO", errno="EPERM", errnoRet=2),
        rule(action="SCMP_ACT_NOTIFY"),
        rule(args=[{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]),
        rule(args=[{"index": 0, "value": -1, "op": "SCMP_CMP_EQ"}]),
        rule(args=[{"index": 0, "value": 2**64, "op": "SCMP_CMP_EQ"}]),
        rule(args=[{"index": 0, "value": 0, "op": "EQ"}]),
        rule(args=[{"index": 0, "op": "SCMP_CMP_EQ"}]),
        rule(includes={"minKernel": "five"}),
        rule(excludes={"minKernel": "5.1"}),
        rule(includes={"cap": ["CAP_KILL"]}),
    ],
)
def test_bad_profiles_are_errors(document: object) -> None:
    with pytest.raises(InvalidArgument, match=r"seccomp profile /p\.json"):
        localhost(document)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_profile_or_invalid_argument(content: bytes) -> None:
    try:
        parse_profile(content, what="p")
    except InvalidArgument:
        return


def test_words_of_64_bits_pass() -> None:
    seccomp = localhost(rule(args=[{"index": 5, "value": 2**64 - 1, "op": "SCMP_CMP_NE"}]))
    assert seccomp.syscalls[0].args[0].value == 2**64 - 1
    assert b"18446744073709551615" in oci.encode(seccomp)
