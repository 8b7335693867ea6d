"""What a request may contain: small pure checks that return the value or raise InvalidArgument.

Everything a client sends is untrusted bytes that end up somewhere: a line of resolv.conf, a path, a
sysctl file, the argument list of a helper. The rule here is to refuse what could change the meaning
of the place it ends in (a newline in a file of lines, `..` in a path, `=` in an environment name),
to bound everything in length and number, and to name the field, so that the person who wrote the
manifest can find it. Nothing is repaired silently: a value that is stored is the value that came.

Lengths are counted in characters for names and in bytes (UTF-8) where the kernel counts bytes.
"""

from __future__ import annotations

import ipaddress
import posixpath
import re
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar

from sandbox.host.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: PATH_MAX of linux/limits.h counts the final NUL.
PATH_LIMIT_BYTES: Final = 4095
#: MAX_ARG_STRLEN of linux/binfmts.h: 32 pages for one string given to execve(2), NUL included.
ARGUMENT_LIMIT_BYTES: Final = 131_071
#: execve(2) allows at most 6 MiB for all arguments and variables (three quarters of _STK_LIM).
ARGUMENTS_TOTAL_LIMIT_BYTES: Final = 6 * 1024 * 1024
#: Kubernetes names are at most 253 characters (RFC 1123 subdomain); a little more is let through.
NAME_LIMIT: Final = 256
#: HOST_NAME_MAX of linux/limits.h.
HOSTNAME_LIMIT: Final = 64
#: Any other string a client sends.
TEXT_LIMIT: Final = 4096
#: Kubernetes bounds all annotations of an object to 256 KiB together; this is four times that.
MAP_TOTAL_LIMIT_BYTES: Final = 1024 * 1024
MAP_ENTRIES_LIMIT: Final = 10_000
#: Mounts, devices, ports, variables and arguments; the kernel's own bound on mounts is 100,000.
LIST_LIMIT: Final = 10_000
DNS_ENTRIES_LIMIT: Final = 32
DNS_ENTRY_LIMIT: Final = 256
#: User and group ids: Kubernetes allows 0 to 2**31 - 1, and so do image configurations.
USER_ID_LIMIT: Final = 2**31 - 1
PORT_LIMIT: Final = 65_535
#: No grace period or exec may outlast this (ten years); larger numbers are the same to everybody.
SECONDS_LIMIT: Final = 10 * 365 * 24 * 3600

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_HOSTNAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_DNS_ENTRY = re.compile(r"[\x21-\x7e]+")
_SYSCTL_KEY = re.compile(r"[A-Za-z0-9_-]+(?:[./][A-Za-z0-9_-]+)+")
_CPU_LIST = re.compile(r"\d{1,6}(?:-\d{1,6})?(?:,\d{1,6}(?:-\d{1,6})?)*", re.ASCII)
_PAGE_SIZE = re.compile(r"[1-9]\d{0,5}[KMGT]?B", re.ASCII)
_UNIFIED_KEY = re.compile(r"[a-z][a-z0-9_]*(?:\.[A-Za-z0-9_-]+)+")
_NAME_BREAKERS: Final = frozenset("/;=")

E = TypeVar("E", bound=IntEnum)


def refuse(field: str, problem: str, *, hint: str = "") -> NoReturn:
    """Raise InvalidArgument for `field`."""
    raise InvalidArgument(f"{field}: {problem}", hint=hint)


def text(value: str, field: str, *, limit: int = TEXT_LIMIT) -> str:
    """A single line without control characters, possibly empty."""
    if len(value) > limit:
        refuse(field, f"is {len(value)} characters long, at most {limit} are allowed")
    if (found := _CONTROL.search(value)) is not None:
        refuse(field, f"contains the control character U+{ord(found[0]):04X}")
    return value


def required(value: str, field: str, *, limit: int = TEXT_LIMIT) -> str:
    """A single line that is not empty."""
    if not value:
        refuse(field, "must not be empty")
    return text(value, field, limit=limit)


def name(value: str, field: str) -> str:
    """A name or uid of a pod or container.

    `/` would make the keys that names are joined to ambiguous, `;` and `=` separate CNI_ARGS, and a
    leading `-` would look like an option to a helper program.
    """
    required(value, field, limit=NAME_LIMIT)
    if value in {".", ".."} or value.startswith("-"):
        refuse(field, f"{value!r} is not a name")
    if found := _NAME_BREAKERS.intersection(value):
        refuse(field, f"must not contain {min(found)!r}")
    return value


def object_id(value: str, field: str) -> str:
    """An id or unique prefix as a client gives it; whether it exists is not asked here."""
    return required(value, field, limit=NAME_LIMIT)


def whole(value: int, field: str, low: int, high: int) -> int:
    """A number from `low` to `high`, both included."""
    if not low <= value <= high:
        refuse(field, f"{value} is not between {low} and {high}")
    return value


def enum(kind: type[E], value: int, field: str) -> E:
    """A member of `kind`; proto3 lets any number through."""
    try:
        return kind(value)
    except ValueError:
        refuse(field, f"{value} is not one of {', '.join(f'{m.name}={m.value}' for m in kind)}")


def count(
    values: Sequence[object] | Mapping[str, str], field: str, limit: int = LIST_LIMIT
) -> None:
    """At most `limit` entries."""
    if len(values) > limit:
        refuse(field, f"has {len(values)} entries, at most {limit} are allowed")


def string_map(values: Mapping[str, str], field: str) -> dict[str, str]:
    """Labels or annotations: kept byte for byte, bounded in all, keys on one line, no NUL.

    Values may have several lines (`kubectl apply` stores a whole manifest in one).
    """
    count(values, field, MAP_ENTRIES_LIMIT)
    total_bytes = 0
    for key, value in values.items():
        text(key, f"{field} key", limit=TEXT_LIMIT)
        if "\0" in value:
            refuse(f"{field}[{key}]", "contains a NUL character")
        total_bytes += len(key.encode()) + len(value.encode())
    if total_bytes > MAP_TOTAL_LIMIT_BYTES:
        refuse(
            field, f"has {total_bytes} bytes in all, at most {MAP_TOTAL_LIMIT_BYTES} are allowed"
        )
    return dict(values)


def path_text(value: str, field: str) -> str:
    """Something that will be a path: bounded in bytes, no control characters."""
    if (size := len(value.encode())) > PATH_LIMIT_BYTES:
        refuse(field, f"is {size} bytes long, a path has at most {PATH_LIMIT_BYTES}")
    return text(value, field, limit=PATH_LIMIT_BYTES)


def _no_parent(value: str, field: str) -> None:
    if ".." in value.split("/"):
        refuse(field, f'must not contain "..": {value!r}')


def absolute_path(value: str, field: str) -> str:
    """An absolute path without `..`."""
    path_text(value, field)
    if not value.startswith("/"):
        refuse(field, f"must be an absolute path, not {value!r}")
    _no_parent(value, field)
    return value


def relative_path(value: str, field: str) -> str:
    """A path beneath something: neither absolute nor with `..`."""
    path_text(value, field)
    if value.startswith("/"):
        refuse(field, f"must be a relative path, not {value!r}")
    _no_parent(value, field)
    return value


def working_dir(value: str, field: str) -> str:
    """Empty, or an absolute path that does not go through a process's directory of /proc.

    `/proc/self/fd/N` as working directory was the way out of runc's containers (CVE-2024-21626);
    the runtimes' own check is not relied upon, because nodes run old ones.
    """
    if not value:
        return ""
    absolute_path(value, field)
    parts = posixpath.normpath(value).lstrip("/").split("/")
    if len(parts) > 1 and parts[0] == "proc" and (parts[1].isdigit() or "self" in parts[1]):
        refuse(field, f"must not be inside a process's directory: {value!r}")
    return value


def hostname(value: str, field: str) -> str:
    """Empty, or letters, digits, `.`, `-` and `_`, at most 64 (gethostname(2))."""
    if len(value) > HOSTNAME_LIMIT:
        refuse(field, f"is {len(value)} characters long, at most {HOSTNAME_LIMIT} are allowed")
    if value and _HOSTNAME.fullmatch(value) is None:
        refuse(field, f"{value!r} is not a host name")
    return value


def ip_address(value: str, field: str) -> str:
    """An IPv4 or IPv6 address, with or without a zone."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        refuse(field, f"{value[:DNS_ENTRY_LIMIT]!r} is not an IP address")
    return text(value, field, limit=DNS_ENTRY_LIMIT)


def dns_entries(values: Sequence[str], field: str) -> tuple[str, ...]:
    """Search domains or options: each one printable word, because resolv.conf splits at blanks."""
    count(values, field, DNS_ENTRIES_LIMIT)
    for index, value in enumerate(values):
        if len(value) > DNS_ENTRY_LIMIT or _DNS_ENTRY.fullmatch(value) is None:
            refuse(
                f"{field}[{index}]",
                f"must be one printable word of at most {DNS_ENTRY_LIMIT} characters",
            )
    return tuple(values)


def dns_servers(values: Sequence[str], field: str) -> tuple[str, ...]:
    """Name servers: addresses, as resolv.conf(5) wants them."""
    count(values, field, DNS_ENTRIES_LIMIT)
    return tuple(ip_address(value, f"{field}[{i}]") for i, value in enumerate(values))


def cgroup_parent(value: str, field: str) -> str:
    """Empty, `/a/b` (cgroupfs) or `name.slice` (systemd); `:` separates the parts of OCI's form."""
    path_text(value, field)
    _no_parent(value, field)
    if ":" in value:
        refuse(field, "must not contain ':'")
    return value


def sysctls(values: Mapping[str, str], field: str) -> dict[str, str]:
    """Kernel parameters: names that cannot leave /proc/sys and values of one line.

    Which of them a pod may set at all is the sandbox engine's decision (`sandbox.spec.linux`).
    """
    count(values, field)
    for key, value in values.items():
        if len(key) > NAME_LIMIT or _SYSCTL_KEY.fullmatch(key) is None:
            refuse(f"{field} key", f"{key[:NAME_LIMIT]!r} is not the name of a kernel parameter")
        text(value.replace("\t", " "), f"{field}[{key}]")
    return dict(values)


def cpu_list(value: str, field: str) -> str:
    """Empty, or the kernel's list format, such as 0-3,7."""
    if value and (len(value) > TEXT_LIMIT or _CPU_LIST.fullmatch(value) is None):
        refuse(field, f"{value[:64]!r} is not a list like 0-3,7")
    return value


def page_size(value: str, field: str) -> str:
    """The size of a huge page as the cgroup file name has it, such as 2MB."""
    if _PAGE_SIZE.fullmatch(value) is None:
        refuse(field, f"{value[:64]!r} is not a page size like 2MB or 1GB")
    return value


def unified(values: Mapping[str, str], field: str) -> dict[str, str]:
    """Names and contents of cgroup v2 files; a name with `/` could leave the container's cgroup."""
    count(values, field, MAP_ENTRIES_LIMIT)
    for key, value in values.items():
        if len(key) > NAME_LIMIT or _UNIFIED_KEY.fullmatch(key) is None:
            refuse(f"{field} key", f"{key[:NAME_LIMIT]!r} is not the name of a cgroup file")
        text(value, f"{field}[{key}]")
    return dict(values)


def arguments(values: Sequence[str], field: str) -> tuple[str, ...]:
    """Words for execve(2): no NUL, each within the kernel's bound."""
    count(values, field)
    for index, value in enumerate(values):
        _argument(value, f"{field}[{index}]")
    return tuple(values)


def _argument(value: str, field: str) -> None:
    if "\0" in value:
        refuse(field, "contains a NUL character")
    if (size := len(value.encode())) > ARGUMENT_LIMIT_BYTES:
        refuse(field, f"is {size} bytes long, the kernel takes at most {ARGUMENT_LIMIT_BYTES}")


def variable(key: str, value: bytes, field: str) -> tuple[str, str]:
    """One environment variable; a name is one line without `=`."""
    required(key, f"{field} name", limit=TEXT_LIMIT)
    if "=" in key:
        refuse(f"{field} name", f"must not contain '=': {key!r}")
    try:
        decoded = value.decode()
    except UnicodeDecodeError:
        refuse(f"{field} {key}", "is not UTF-8; an OCI runtime takes its configuration as JSON")
    _argument(f"{key}={decoded}", f"{field} {key}")
    return key, decoded
