"""Seccomp filters compiled once, by libseccomp, instead of by the OCI runtime at every start.

Why: a default profile has about 400 rules, and crun has libseccomp compile them anew for each
container, which is half of the time that a creation takes (54 to 28 ms on the reference machine).
The compiled program is handed over in an annotation that crun takes, and cached here by content.

The calls are those of seccomp_init(3), seccomp_arch_add(3), seccomp_rule_add_array(3) and
seccomp_export_bpf(3), in the order in which crun makes them: for the same rules the bytes are equal
to what crun itself keeps beside its state, which a test compares.

A program can also be made as a tree (seccomp_attr_set(3), SCMP_FLTATR_CTL_OPTIMIZE), as runc does
for long ones. It says the same, which another test tries for every call there is, and is a quarter
longer, but a call is found in it after some twenty instructions instead of up to a thousand. The
kernel runs it for every call of both architectures when it is loaded, to remember what is always
allowed (kernel/seccomp.c, `seccomp_cache_prepare`). Loading the default profile takes 0.27 ms
instead of 0.81 on the reference machine: for each container, each pause process, each command.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from sandbox.host.errors import Unsupported, from_os_error

# seccomp.h of libseccomp 2.5: actions, their data in the low 16 bits.
_ACTIONS: Final = {
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
#: enum scmp_compare.
_OPERATORS: Final = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
#: struct scmp_arg_cmp: register, operator, two operands.
_COMPARISON: Final = struct.Struct("=IiQQ")
_NR_ERROR: Final = -1  # __NR_SCMP_ERROR
_ERRNO_MASK: Final = 0xFFFF
#: A program is at most BPF_MAXINSNS instructions of 8 bytes (linux/bpf_common.h).
_PROGRAM_LIMIT_BYTES: Final = 4096 * 8
#: enum scmp_filter_attr, and its value for a tree.
_OPTIMIZE: Final = 8
_TREE: Final = 2
#: A tree has four calls in each leaf. libseccomp to 2.5.4 goes wrong without any; the number is
#: that of runc (libcontainer/seccomp/seccomp_linux.go, v1.2).
_TREE_ABOVE_CALLS: Final = 32
#: Distinct filters of a node: one for each capability set that pods use, and Localhost profiles.
_CACHE_SIZE: Final = 128


@dataclass(frozen=True, slots=True)
class FilterArgument:
    """A condition on an argument register; `operator` such as SCMP_CMP_EQ."""

    index: int
    operator: str
    value: int
    value_two: int = 0


@dataclass(frozen=True, slots=True)
class FilterRule:
    """An action (such as SCMP_ACT_ALLOW, with its errno) for these calls, if all arguments fit."""

    names: tuple[str, ...]
    action: str
    error: int | None = None
    arguments: tuple[FilterArgument, ...] = ()


@dataclass(frozen=True, slots=True)
class Filter:
    """A whole filter; architectures such as SCMP_ARCH_X86_64."""

    default_action: str
    default_error: int | None
    architectures: tuple[str, ...]
    rules: tuple[FilterRule, ...]


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return None
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = (ctypes.c_uint32,)
    library.seccomp_release.restype = None
    library.seccomp_release.argtypes = (ctypes.c_void_p,)
    library.seccomp_arch_resolve_name.restype = ctypes.c_uint32
    library.seccomp_arch_resolve_name.argtypes = (ctypes.c_char_p,)
    library.seccomp_arch_add.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
    library.seccomp_syscall_resolve_name.argtypes = (ctypes.c_char_p,)
    library.seccomp_rule_add_array.argtypes = (
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_char_p,
    )
    library.seccomp_attr_set.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32)
    library.seccomp_export_bpf.argtypes = (ctypes.c_void_p, ctypes.c_int)
    return library


def available() -> bool:
    """Whether libseccomp is on this machine; where a runtime with seccomp is, it is."""
    return _library() is not None


@lru_cache(maxsize=_CACHE_SIZE)
def compile_filter(wanted: Filter, *, tree: bool = False) -> bytes:
    """The BPF program of a filter (struct sock_filter, host byte order). Blocking, about 25 ms.

    With `tree` a long one is made as a tree, where libseccomp can (2.5).

    Raises:
        Unsupported: no libseccomp, or something in the filter that it does not take.
    """
    library = _library()
    if library is None:
        raise Unsupported("libseccomp.so.2 is not on this machine")
    default = _action(wanted.default_action, wanted.default_error)
    context = library.seccomp_init(default)
    if not context:
        raise Unsupported(f"libseccomp refused the default action {wanted.default_action}")
    try:
        for name in wanted.architectures:
            _add_architecture(library, context, name)
        for rule in wanted.rules:
            _add_rule(library, context, rule, default)
        if tree and sum(len(rule.names) for rule in wanted.rules) > _TREE_ABOVE_CALLS:
            library.seccomp_attr_set(context, _OPTIMIZE, _TREE)
        return _export(library, context)
    finally:
        library.seccomp_release(context)


def _action(name: str, error: int | None) -> int:
    if name not in _ACTIONS:
        raise Unsupported(f"seccomp action {name} cannot be compiled ahead")
    base = _ACTIONS[name]
    if name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        return base | ((errno.EPERM if error is None else error) & _ERRNO_MASK)
    return base


def _add_architecture(library: ctypes.CDLL, context: int, name: str) -> None:
    token = library.seccomp_arch_resolve_name(name.removeprefix("SCMP_ARCH_").lower().encode())
    if token == 0:
        raise Unsupported(f"libseccomp does not know the architecture {name}")
    result = library.seccomp_arch_add(context, token)
    if result not in (0, -errno.EEXIST):  # the native one is there from the start
        raise Unsupported(f"libseccomp refused the architecture {name}: {os.strerror(-result)}")


def _add_rule(library: ctypes.CDLL, context: int, rule: FilterRule, default: int) -> None:
    action = _action(rule.action, rule.error)
    if action == default:
        return  # libseccomp refuses rules that say what holds anyway
    groups: tuple[tuple[FilterArgument, ...], ...]
    indexes = [argument.index for argument in rule.arguments]
    if len(set(indexes)) != len(indexes):
        # Several conditions on one register are alternatives, as runc and crun have it.
        groups = tuple((argument,) for argument in rule.arguments)
    else:
        groups = (rule.arguments,)
    for name in rule.names:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number == _NR_ERROR:
            continue  # younger than this libseccomp: the default action holds, as in the runtimes
        for group in groups:
            comparisons = b"".join(
                _COMPARISON.pack(a.index, _OPERATORS[a.operator], a.value, a.value_two)
                for a in group
            )
            result = library.seccomp_rule_add_array(
                context, action, number, len(group), comparisons
            )
            if result != 0:
                raise Unsupported(f"libseccomp refused a rule for {name}: {os.strerror(-result)}")


def _export(library: ctypes.CDLL, context: int) -> bytes:
    try:
        with os.fdopen(os.memfd_create("seccomp", os.MFD_CLOEXEC), "r+b") as memory:
            result = library.seccomp_export_bpf(context, memory.fileno())
            if result != 0:
                raise Unsupported(f"libseccomp cannot export: {os.strerror(-result)}")
            memory.seek(0)
            program = memory.read(_PROGRAM_LIMIT_BYTES + 1)
    except OSError as error:
        raise from_os_error(error, "cannot hold a seccomp filter in memory") from error
    if len(program) > _PROGRAM_LIMIT_BYTES:
        raise Unsupported("seccomp filter is larger than the kernel takes")
    return program
