"""A filter that was compiled as a tree says of every call what the plain one says."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import msgspec
import pytest

from sandbox import oci
from sandbox.host import libseccomp
from sandbox.host.libseccomp import FilterArgument, compile_filter
from sandbox.precompile import ANNOTATION, FilterCompiler, to_filter, with_compiled_filter
from sandbox.spec.build import container_spec
from tests.kit.filters import default_filter, localhost_filter
from tests.kit.spec_inputs import container_inputs

pytestmark = [
    pytest.mark.skipif(not libseccomp.available(), reason="libseccomp is not installed"),
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="written for x86_64"),
]

# linux/audit.h, and the mark of x32 calls (asm/unistd.h).
X86_64, X86, X32_BIT = 0xC000003E, 0x40000003, 0x40000000
#: More than any of these has; what lies above, and negative numbers, are tried singly.
CALLS = 600
_INSTRUCTION = struct.Struct("=HBBI")


def instructions(program: bytes) -> list[tuple[int, int, int, int]]:
    return list(_INSTRUCTION.iter_unpack(program))


def verdict(
    program: list[tuple[int, int, int, int]], arch: int, number: int, arguments: tuple[int, ...]
) -> int:
    """What the kernel makes of a call; of BPF what libseccomp uses (linux/bpf_common.h)."""
    data = struct.pack("=iIQ6Q", number - (number >> 31 << 32), arch, 0, *arguments)
    accumulator = place = 0
    while True:
        code, when_true, when_false, value = program[place]
        place += 1
        if code == 0x20:  # LD | W | ABS
            accumulator = struct.unpack_from("=I", data, value)[0]
        elif code == 0x54:  # ALU | AND | K
            accumulator &= value
        elif code == 0x05:  # JMP | JA
            place += value
        elif code in (0x15, 0x25, 0x35, 0x45):  # JMP | JEQ, JGT, JGE, JSET
            holds = {
                0x15: accumulator == value,
                0x25: accumulator > value,
                0x35: accumulator >= value,
                0x45: bool(accumulator & value),
            }[code]
            place += when_true if holds else when_false
        elif code == 0x06:  # RET | K
            return value
        else:
            raise AssertionError(f"instruction {code:#x} is not known here")


def refusing() -> oci.Seccomp:
    """The other way round, as some profiles are: everything but a list."""
    names = [f"{verb}{what}" for verb in ("get", "set") for what in ("uid", "gid", "pgid", "sid")]
    names += ["mkdir", "rmdir", "unlink", "rename", "link", "symlink", "mknod", "chown", "chmod"]
    names += ["mount", "umount2", "swapon", "swapoff", "reboot", "acct", "chroot", "ptrace", "bpf"]
    names += ["read", "write", "open", "close", "stat", "fstat", "lstat", "poll", "lseek", "mmap"]
    conditions = [
        {"index": 0, "value": 0x20000, "op": "SCMP_CMP_EQ"},
        {"index": 1, "value": 0x100000007, "op": "SCMP_CMP_GT"},
        {"index": 2, "value": 0xF0, "valueTwo": 0x30, "op": "SCMP_CMP_MASKED_EQ"},
    ]
    rules: list[dict[str, object]] = [
        {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
        {"names": ["personality", "ioctl"], "action": "SCMP_ACT_ERRNO", "args": conditions},
        {"names": ["kill"], "action": "SCMP_ACT_KILL_PROCESS"},
    ]
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": rules,
    }
    return localhost_filter(profile)


CASES = {
    "default": default_filter(),
    "default with capabilities": default_filter("CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_NICE"),
    "refusing": refusing(),
}


def arguments_of(conditions: set[FilterArgument]) -> Iterator[tuple[int, ...]]:
    """Each value that some rule asks for, and its neighbours, in the register it asks for."""
    yield (0,) * 6
    yield (2**64 - 1,) * 6
    for condition in conditions:
        wanted = {condition.value, condition.value_two, condition.value ^ (1 << 32)}
        wanted |= {value + 1 for value in wanted} | {value - 1 for value in wanted}
        for value in wanted:
            yield tuple(value % 2**64 if i == condition.index else 0 for i in range(6))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_tree_says_the_same(case: str) -> None:
    wanted = to_filter(CASES[case])
    programs = [compile_filter(wanted), compile_filter(wanted, tree=True)]
    assert programs[0] != programs[1]
    plain, tree = (instructions(program) for program in programs)
    odd = (CALLS + 1, X32_BIT - 1, 2**31 - 1, 2**31, 2**32 - 1)
    numbers = (*range(CALLS), *range(X32_BIT, X32_BIT + CALLS), *odd)
    said = set()
    for arch in (X86_64, X86, 0xC00000B7):
        for number in numbers:
            for arguments in ((0,) * 6, (2**64 - 1,) * 6):
                answer = verdict(plain, arch, number, arguments)
                assert verdict(tree, arch, number, arguments) == answer, (arch, number, arguments)
                said.add(answer)
    assert len(said) > 1
    conditional = {name for rule in wanted.rules if rule.arguments for name in rule.names}
    conditions = {argument for rule in wanted.rules for argument in rule.arguments}
    library = libseccomp._library()
    assert library is not None
    for name in conditional:
        number = library.seccomp_syscall_resolve_name(name.encode()) % 2**32
        for arch in (X86_64, X86):
            for arguments in arguments_of(conditions):
                expected = verdict(plain, arch, number, arguments)
                assert verdict(tree, arch, number, arguments) == expected, (name, arguments)


def test_a_call_is_found_sooner_in_a_tree() -> None:
    wanted = to_filter(CASES["default"])
    depths = []
    for tree in (False, True):
        program = instructions(compile_filter(wanted, tree=tree))
        seen = 0

        class Counted(list):  # type: ignore[type-arg]
            def __getitem__(self, place):
                nonlocal seen
                seen += 1
                return super().__getitem__(place)

        for number in range(400):
            verdict(Counted(program), X86_64, number, (0,) * 6)
        depths.append(seen)
    assert depths[1] < depths[0] / 4


def test_a_short_filter_stays_as_it_is() -> None:
    plain = CASES["default"]
    short = msgspec.structs.replace(plain, syscalls=plain.syscalls[-1:])
    short = to_filter(
        msgspec.structs.replace(
            short, syscalls=(msgspec.structs.replace(short.syscalls[0], names=("mkdir",)),)
        )
    )
    assert compile_filter(short, tree=True) == compile_filter(short)


def test_each_runtime_gets_what_it_takes() -> None:
    spec = container_spec(container_inputs())
    spec = msgspec.structs.replace(
        spec, linux=msgspec.structs.replace(spec.linux, seccomp=CASES["default"])
    )
    taking: set[str] = set()
    trees, plain = FilterCompiler(taking), FilterCompiler(taking, trees=False)
    assert trees.applied(spec, "crun") is spec
    taking.add("crun")
    assert trees.applied(spec, "runc") is spec
    compiled = trees.applied(spec, "crun").annotations[ANNOTATION]
    assert compiled == with_compiled_filter(spec, tree=True).annotations[ANNOTATION]
    assert compiled != plain.applied(spec, "crun").annotations[ANNOTATION]
