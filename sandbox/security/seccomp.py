"""Seccomp: from the profile a client asks for to a filter of plain rules.

Profiles, our own default and those of an administrator alike, come as JSON in the layout that
Kubernetes users know (OCI `linux.seccomp`, plus Docker's `archMap`, `includes` and `excludes`). The
conditions of the longer layout depend on the machine, the kernel and the container's capabilities;
they are decided here, so the OCI runtime sees rules that always hold, and equal containers get
equal bytes (which lets a compiled filter be kept).

Reading is strict: an unknown key, a repeated key, a wrong type or an unknown word is an error. A
misspelt `args` would otherwise turn a narrow rule into a wide one. No failure ever means "no
filter": only Unconfined, no profile at all, and privileged containers run without one.

Where runtimes disagree: runc and libseccomp skip names that the library does not know, so a denied
new system call answers EPERM, not ENOSYS, unless the default profile names it.
"""

from __future__ import annotations

import errno
import functools
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from sandbox import oci
from sandbox.host.errors import InvalidArgument, Unsupported
from sandbox.model import ProfileType, SecurityProfile

if TYPE_CHECKING:
    from collections.abc import Collection

#: Most bytes of a Localhost profile; Docker's own is 20 KB. The reader stops here, see the caller.
LOCALHOST_LIMIT_BYTES: Final = 1024 * 1024

#: How many of the answers for RuntimeDefault are kept: one for each set of capabilities in use.
_DECISIONS: Final = 64

#: uname(2) machine -> (name in `includes.arches`, libseccomp's constant).
MACHINES: Final = {
    "x86_64": ("amd64", "SCMP_ARCH_X86_64"),
    "aarch64": ("arm64", "SCMP_ARCH_AARCH64"),
    "s390x": ("s390x", "SCMP_ARCH_S390X"),
    "ppc64le": ("ppc64le", "SCMP_ARCH_PPC64LE"),
    "riscv64": ("riscv64", "SCMP_ARCH_RISCV64"),
    "loongarch64": ("loong64", "SCMP_ARCH_LOONGARCH64"),
}

_ARCHITECTURES: Final = frozenset(
    "SCMP_ARCH_" + name
    for name in (
        *("X86", "X86_64", "X32", "ARM", "AARCH64", "MIPS", "MIPS64", "MIPS64N32", "MIPSEL"),
        *("MIPSEL64", "MIPSEL64N32", "PPC", "PPC64", "PPC64LE", "S390", "S390X", "PARISC"),
        *("PARISC64", "RISCV64", "LOONGARCH64"),
    )
)
_FLAGS: Final = frozenset(
    "SECCOMP_FILTER_FLAG_" + name for name in ("TSYNC", "LOG", "SPEC_ALLOW", "WAIT_KILLABLE_RECV")
)
# Actions for which the specification lets a rule carry a number.
_WITH_ERRNO: Final = frozenset({"SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"})

# Registers are 64 bits wide; msgspec states bounds only up to 63.
_WORD: Final = 2**64
_Errno = Annotated[int, msgspec.Meta(ge=0, le=4095)]
_Register = Annotated[int, msgspec.Meta(ge=0, le=5)]
_CallName = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9_]{1,64}\Z")]


@dataclass(frozen=True, slots=True)
class SeccompHost:
    """What a filter depends on besides the container.

    Attributes:
        supported: the kernel has seccomp filters and the OCI runtime was built with them.
        machine: uname(2) machine, such as x86_64.
        kernel: version as (major, minor).
        default: what RuntimeDefault stands for; None for our own profile.
    """

    supported: bool = True
    machine: str = "x86_64"
    kernel: tuple[int, int] = (6, 1)
    default: Profile | None = None


class _Part(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Base of the parts of a profile document."""


class _Argument(_Part, frozen=True, kw_only=True):
    index: _Register
    value: int
    value_two: int = 0
    op: oci.SeccompOperator


class _Filter(_Part, frozen=True, kw_only=True):
    """`includes` and `excludes`; null and absent are the same."""

    caps: tuple[str, ...] | None = None
    arches: tuple[str, ...] | None = None
    min_kernel: str | None = None


class _Rule(_Part, frozen=True, kw_only=True):
    name: _CallName | None = None
    names: tuple[_CallName, ...] | None = None
    action: oci.SeccompAction
    errno_ret: _Errno | None = None
    errno: str | None = None
    args: tuple[_Argument, ...] | None = None
    comment: str | None = None
    includes: _Filter | None = None
    excludes: _Filter | None = None


class _ArchitectureMap(_Part, frozen=True, kw_only=True):
    architecture: str
    sub_architectures: tuple[str, ...] | None = None


class Profile(_Part, frozen=True, kw_only=True):
    """A profile document as read; conditions not decided yet."""

    default_action: oci.SeccompAction
    default_errno_ret: _Errno | None = None
    default_errno: str | None = None
    architectures: tuple[str, ...] | None = None
    arch_map: tuple[_ArchitectureMap, ...] | None = None
    flags: tuple[str, ...] | None = None
    listener_path: str | None = None
    listener_metadata: str | None = None
    syscalls: tuple[_Rule, ...] | None = None


def localhost_path(profile: SecurityProfile | None, *, privileged: bool) -> PurePosixPath | None:
    """The file the caller must read for this profile, None when none is needed.

    Raises:
        InvalidArgument: a Localhost profile whose path is empty, relative or not a path.
    """
    if privileged or profile is None or profile.profile_type is not ProfileType.LOCALHOST:
        return None
    path = profile.localhost_ref
    if not path.startswith("/") or "\0" in path or len(path.encode(errors="replace")) > 4095:
        raise InvalidArgument(
            f"the localhost seccomp profile is not an absolute path: {path[:256]!a}",
            hint="give the path of a profile on the node",
        )
    return PurePosixPath(path)


def resolve_seccomp(
    profile: SecurityProfile | None,
    *,
    privileged: bool,
    content: bytes | None,
    bounding: Collection[str],
    host: SeccompHost,
) -> oci.Seccomp | None:
    """The filter for a container, None for unconfined.

    Args:
        profile: the request; None (field not set) is unconfined, as CRI says.
        privileged: unconfined whatever was asked for.
        content: bytes of the file that `localhost_path` named, None otherwise.
        bounding: the container's bounding set, which some rules depend on.
        host: machine, kernel, support.

    Raises:
        InvalidArgument: the Localhost profile has no content, is too large or is not valid.
        Unsupported: a filter was asked for where there are none.
    """
    if privileged or profile is None or profile.profile_type is ProfileType.UNCONFINED:
        return None
    if not host.supported:
        raise Unsupported(
            "a seccomp profile was asked for, but this host has no seccomp filters",
            hint="use a kernel with CONFIG_SECCOMP_FILTER and an OCI runtime built with seccomp",
        )
    if profile.profile_type is ProfileType.RUNTIME_DEFAULT:
        return _decided_default(frozenset(bounding), host)
    path = localhost_path(profile, privileged=False)
    what = f"seccomp profile {path}"
    if content is None:
        raise InvalidArgument(f"{what} was not read")
    return _decide(parse_profile(content, what=what), bounding, host, what=what)


@functools.lru_cache(maxsize=_DECISIONS)
def _decided_default(bounding: frozenset[str], host: SeccompHost) -> oci.Seccomp:
    """Kept: nearly all containers have the same, and it takes 60 microseconds.

    That it is then the same object each time is what `precompile` knows it by.
    """
    default = host.default or default_profile()
    return _decide(default, bounding, host, what="the default seccomp profile")


@functools.cache
def default_profile() -> Profile:
    """RuntimeDefault, from the file that hack/gen_seccomp writes; read once."""
    content = resources.files("sandbox.security").joinpath("seccomp_default.json").read_bytes()
    return parse_profile(content, what="the default seccomp profile")


def parse_profile(content: bytes, *, what: str) -> Profile:
    """Read a profile document, strictly; `what` names it in errors.

    Raises:
        InvalidArgument: anything in it that is not understood.
    """
    if len(content) > LOCALHOST_LIMIT_BYTES:
        raise InvalidArgument(f"{what} is larger than {LOCALHOST_LIMIT_BYTES} bytes")
    try:
        plain: object = json.loads(content.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{what} is not valid JSON: {error}") from error
    try:
        profile = msgspec.convert(plain, Profile)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"{what}: {error}") from error
    _check(profile, what)
    return profile


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    # Two parsers may take different ones of two equal keys; neither reading may be the safe one.
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("an object has the same key twice")
    return members


def _check(profile: Profile, what: str) -> None:
    if profile.default_action == "SCMP_ACT_NOTIFY":
        raise InvalidArgument(f"{what}: SCMP_ACT_NOTIFY cannot be the default action")
    if profile.arch_map and profile.architectures:
        raise InvalidArgument(f"{what} has both architectures and archMap")
    known = [*(profile.architectures or ())]
    for entry in profile.arch_map or ():
        known += [entry.architecture, *(entry.sub_architectures or ())]
    for name in known:
        if name not in _ARCHITECTURES:
            raise InvalidArgument(f"{what}: unknown architecture {name[:64]!a}")
    for flag in profile.flags or ():
        if flag not in _FLAGS:
            raise InvalidArgument(f"{what}: unknown flag {flag[:64]!a}")
    notifies = any(rule.action == "SCMP_ACT_NOTIFY" for rule in profile.syscalls or ())
    listener = profile.listener_path or ""
    if notifies != bool(listener) or (listener and not listener.startswith("/")):
        raise InvalidArgument(
            f"{what}: SCMP_ACT_NOTIFY needs an absolute listenerPath, and a listenerPath needs it"
        )
    for rule in profile.syscalls or ():
        if bool(rule.name) == bool(rule.names):
            raise InvalidArgument(f"{what}: a rule needs names (or name, not both)")
        _rule_errno(rule, what)
        for item in rule.args or ():
            if not (0 <= item.value < _WORD and 0 <= item.value_two < _WORD):
                raise InvalidArgument(f"{what}: an argument's value does not fit in 64 bits")


def _rule_errno(rule: _Rule, what: str) -> int | None:
    number = _errno(rule.errno_ret, rule.errno, what)
    if number is not None and rule.action not in _WITH_ERRNO:
        raise InvalidArgument(f"{what}: {rule.action} cannot have an errno")
    return number


def _errno(number: int | None, name: str | None, what: str) -> int | None:
    if not name:
        return number
    named = next((value for value, known in errno.errorcode.items() if known == name), None)
    if named is None or (number is not None and number != named):
        raise InvalidArgument(f"{what}: errno {name[:32]!a} is unknown or contradicted")
    return named


def _decide(
    profile: Profile, bounding: Collection[str], host: SeccompHost, *, what: str
) -> oci.Seccomp:
    """Keep the rules that hold for this container on this machine."""
    if host.machine not in MACHINES:
        raise Unsupported(f"{what}: no seccomp support for machine {host.machine}")
    short, native = MACHINES[host.machine]
    rules: list[oci.SeccompRule] = []
    for rule in profile.syscalls or ():
        if not _applies(rule, bounding, short, host.kernel, what):
            continue
        rules.append(
            oci.SeccompRule(
                names=rule.names or ((rule.name,) if rule.name else ()),
                action=rule.action,
                errno_ret=_rule_errno(rule, what),
                args=tuple(
                    oci.SeccompArg(
                        index=item.index, value=item.value, value_two=item.value_two, op=item.op
                    )
                    for item in rule.args or ()
                ),
            )
        )
    architectures = profile.architectures or ()
    for entry in profile.arch_map or ():
        if entry.architecture == native:
            architectures = (native, *(entry.sub_architectures or ()))
    return oci.Seccomp(
        default_action=profile.default_action,
        default_errno_ret=_errno(profile.default_errno_ret, profile.default_errno, what),
        architectures=architectures,
        flags=profile.flags or (),
        listener_path=profile.listener_path or "",
        listener_metadata=profile.listener_metadata or "",
        syscalls=tuple(rules),
    )


def _applies(
    rule: _Rule, bounding: Collection[str], machine: str, kernel: tuple[int, int], what: str
) -> bool:
    includes, excludes = rule.includes or _Filter(), rule.excludes or _Filter()
    if excludes.min_kernel:
        raise InvalidArgument(f"{what}: minKernel belongs under includes")
    if includes.arches and machine not in includes.arches:
        return False
    if excludes.arches and machine in excludes.arches:
        return False
    if any(name not in bounding for name in includes.caps or ()):
        return False
    if any(name in bounding for name in excludes.caps or ()):
        return False
    return not includes.min_kernel or kernel >= _kernel(includes.min_kernel, what)


def _kernel(text: str, what: str) -> tuple[int, int]:
    major, dot, minor = text.partition(".")
    if not (dot and text.isascii() and major.isdigit() and minor.isdigit() and len(text) < 16):
        raise InvalidArgument(f"{what}: minKernel is not major.minor: {text[:32]!a}")
    return int(major), int(minor)
