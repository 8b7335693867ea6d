"""Who a container runs as: the request and the image's USER, looked up in the image's own files.

Pure: takes the *bytes* of the image's /etc/passwd and /etc/group (or None where there is none).
Reading them beneath the root file system, regular files only and at most `FILE_LIMIT_BYTES`, is the
caller's part (`sandbox.host.files.read_beneath`).

Why so strict. The name or number a container runs as decides whether it is root, and every loose
form became a vulnerability somewhere: numbers that wrap to 0, numbers too large to parse that were
then looked up as names, names made of digits in a hostile passwd, Python's `int()` taking " 0",
"+0", "1_0" and the digits of other scripts. So a text is either ASCII digits of at most 2^31-1, or
a name that begins with a letter or an underscore; every other form is refused, even where the
image's passwd has a line for it. A number is never looked up as a name.

The primary group is always among the additional groups: a file mode that *takes away* rights from
that group would otherwise not apply after setgroups(2).

The result is numbers, and still a runtime may read the image's files again: runc (1.1) looks every
additional group up in /etc/group by name first, so that a group *named* 1000 of id 0 makes root's
group out of group 1000. An image that says so about a group of its container is refused.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sandbox.host.errors import InvalidArgument
from sandbox.model import ContainerSecurity, PodSecurity, SupplementalGroupsPolicy

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Largest id accepted, as in Kubernetes; above it come wrapped numbers and the kernel's own -1.
MAX_ID: Final = 2**31 - 1

#: Most bytes of a passwd or group file that are looked at; readers should stop there as well.
FILE_LIMIT_BYTES: Final = 4 * 1024 * 1024

#: Longest line; a group of a thousand members with long names fits.
LINE_LIMIT_BYTES: Final = 256 * 1024

#: NGROUPS_MAX of <linux/limits.h>: setgroups(2) takes no more.
MAX_GROUPS: Final = 65536

_NUMBER: Final = re.compile(r"[0-9]{1,32}", re.ASCII)
# What useradd(8) and adduser(8) make, and domain accounts (user@realm); never a leading digit.
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.@-]{0,254}\$?", re.ASCII)
_FILE_NUMBER: Final = re.compile(rb"[0-9]{1,32}")


@dataclass(frozen=True, slots=True)
class ResolvedUser:
    """The result: ids for the OCI process, and what passwd says about the account.

    Attributes:
        uid: user id.
        gid: primary group id.
        additional_gids: all groups, the primary one first, without repeats.
        home: home directory of the passwd line, "/" where there is none. The OCI runtimes set HOME
            themselves; this is for those who need it before.
        username: name of the passwd line, empty where the id has none.
    """

    uid: int
    gid: int
    additional_gids: tuple[int, ...]
    home: str = "/"
    username: str = ""


@dataclass(frozen=True, slots=True)
class _Account:
    name: str
    uid: int
    gid: int
    home: str


def resolve_user(
    image_user: str,
    security: ContainerSecurity,
    *,
    passwd: bytes | None,
    group: bytes | None,
) -> ResolvedUser:
    """The user for a container.

    Order: the request's number, the request's name, the image's USER (`user[:group]`, each a number
    or a name), else root. A number without a passwd line has group 0 unless one was given.

    Args:
        image_user: the image config's User, as it is.
        security: the request.
        passwd: bytes of the image's /etc/passwd, None where absent.
        group: bytes of the image's /etc/group, None where absent.

    Raises:
        InvalidArgument: a form that is refused (see the module text), a name or a group that the
            image does not have, run_as_group without a user, both run_as_user and run_as_username.
    """
    given_number, given_name = security.run_as_user, security.run_as_username
    if given_number is not None and given_name:
        raise InvalidArgument(
            "run_as_user and run_as_username are both set", hint="set one of them"
        )
    if security.run_as_group is not None and given_number is None and not given_name:
        raise InvalidArgument(
            "run_as_group is set without run_as_user or run_as_username",
            hint="set the user as well",
        )
    group_text = ""
    if given_number is not None:
        user_text, origin = str(_checked_id(given_number, "run_as_user")), "run_as_user"
    elif given_name:
        user_text, origin = given_name, "run_as_username"
    else:
        user_text, group_text = _split_image_user(image_user)
        origin = "the image's USER"

    account = _find_account(user_text, origin, passwd)
    if security.run_as_group is not None:
        gid = _checked_id(security.run_as_group, "run_as_group")
    elif group_text:
        gid = _find_group(group_text, group)
    else:
        gid = account.gid

    memberships: list[int] = []
    if security.supplemental_groups_policy is SupplementalGroupsPolicy.MERGE and account.name:
        memberships = _memberships(account.name, group)
    asked = [_checked_id(gid, "supplemental_groups") for gid in security.supplemental_groups]
    additional_gids = _distinct([gid, *memberships, *asked])
    _check_numeric_names(additional_gids, group)
    return ResolvedUser(
        uid=account.uid,
        gid=gid,
        additional_gids=additional_gids,
        home=account.home,
        username=account.name,
    )


def resolve_pod_user(security: PodSecurity) -> ResolvedUser:
    """The user for a pod's pause process: numbers only, because its root has no passwd.

    Raises:
        InvalidArgument: an id out of range, or run_as_group without run_as_user.
    """
    if security.run_as_group is not None and security.run_as_user is None:
        raise InvalidArgument(
            "the pod's run_as_group is set without run_as_user", hint="set the user as well"
        )
    uid = _checked_id(security.run_as_user or 0, "run_as_user")
    gid = _checked_id(security.run_as_group or 0, "run_as_group")
    asked = [_checked_id(item, "supplemental_groups") for item in security.supplemental_groups]
    return ResolvedUser(uid=uid, gid=gid, additional_gids=_distinct([gid, *asked]))


def parse_number(text: str, what: str) -> int | None:
    """`text` as an id, None when it is a name by its form.

    Raises:
        InvalidArgument: neither an id in range nor a name (see the module text).
    """
    if _NUMBER.fullmatch(text):
        return _checked_id(int(text), what)
    if _NAME.fullmatch(text):
        return None
    raise InvalidArgument(
        f"{what} is neither a number up to {MAX_ID} nor a user or group name: {_shown(text)}"
    )


def _shown(text: str) -> str:
    """A text of the image for a message: escaped, so no newline or terminal code gets through."""
    return ascii(text if len(text) <= 64 else text[:61] + "...")


def _checked_id(number: int, what: str) -> int:
    if not 0 <= number <= MAX_ID:
        raise InvalidArgument(f"{what} is not in the range 0 to {MAX_ID}: {number}")
    return number


def _split_image_user(text: str) -> tuple[str, str]:
    if not text:
        return "0", ""
    user, colon, group = text.partition(":")
    if not user or (colon and not group) or ":" in group:
        raise InvalidArgument(
            f"the image's USER is not of the form user or user:group: {_shown(text)}"
        )
    return user, group


def _find_account(text: str, origin: str, passwd: bytes | None) -> _Account:
    number = parse_number(text, origin)
    for fields in _lines(passwd, "/etc/passwd", fields=7):
        if number is None and fields[0] != text.encode("ascii"):
            continue
        uid = _file_number(fields[2])
        if number is not None and uid != number:
            continue
        gid = _file_number(fields[3])
        if uid is None or gid is None:
            raise InvalidArgument(
                f"the image's /etc/passwd has no usable ids for {origin} {_shown(text)}"
            )
        # A name that is not one by our grammar (control characters, digits) is not shown or used:
        # the line still tells the primary group of its number.
        name = fields[0].decode("ascii", errors="replace")
        return _Account(
            name=name if _NAME.fullmatch(name) else "",
            uid=uid,
            gid=gid,
            home=_home(fields[5]),
        )
    if number is None or origin == "run_as_username":
        raise InvalidArgument(
            f"{origin} {_shown(text)} is not in the image's /etc/passwd",
            hint="use a number, or add the user to the image",
        )
    return _Account(name="", uid=number, gid=0, home="/")


def _find_group(text: str, group: bytes | None) -> int:
    number = parse_number(text, "the group of the image's USER")
    if number is not None:
        return number
    for fields in _lines(group, "/etc/group", fields=4):
        if fields[0] == text.encode("ascii"):
            gid = _file_number(fields[2])
            if gid is None:
                raise InvalidArgument(
                    f"the image's /etc/group has no usable id for group {_shown(text)}"
                )
            return gid
    raise InvalidArgument(
        f"group {_shown(text)} of the image's USER is not in the image's /etc/group",
        hint="use a number, or add the group to the image",
    )


def _memberships(name: str, group: bytes | None) -> list[int]:
    member = name.encode("ascii")
    found: list[int] = []
    for fields in _lines(group, "/etc/group", fields=4):
        if member not in fields[3].split(b","):
            continue
        gid = _file_number(fields[2])
        if gid is None:
            # Not skipped: leaving a group out can *give* rights (a mode that denies it).
            raise InvalidArgument(
                f"a group of the image's /etc/group that lists user {name} has no usable id"
            )
        found.append(gid)
    return found


def _check_numeric_names(gids: tuple[int, ...], group: bytes | None) -> None:
    """Refuse a group that is named like one of these numbers and is another one.

    Judged as forgivingly as runc reads, not as strictly as we do: blanks around a line do not
    count, what is missing or no number is 0.
    """
    if group is None:
        return
    names = {str(gid).encode() for gid in gids}
    for line in _raw_lines(group, "/etc/group"):
        if line[:1].isalpha():
            continue
        name, _, rest = line.decode(errors="replace").strip().encode().partition(b":")
        if name in names and rest.split(b":")[1:2] != [name]:
            raise InvalidArgument(
                f"the image's /etc/group has a group named {name.decode()} of another id, "
                "which an OCI runtime could take for the number",
                hint="rename that group in the image",
            )


def _lines(content: bytes | None, path: str, *, fields: int) -> Iterator[list[bytes]]:
    """The well-formed lines, split at colons; others are skipped, as getpwent(3) does."""
    if content is None:
        return
    for line in _raw_lines(content, path):
        parts = line.split(b":")
        if len(parts) >= fields and parts[0]:
            yield parts


def _raw_lines(content: bytes, path: str) -> Iterator[bytes]:
    """One line after the other: a list of them all would take fifty times the file's size."""
    if len(content) > FILE_LIMIT_BYTES:
        raise InvalidArgument(f"the image's {path} is larger than {FILE_LIMIT_BYTES} bytes")
    for line in io.BytesIO(content):
        if len(line) > LINE_LIMIT_BYTES:
            raise InvalidArgument(
                f"the image's {path} has a line longer than {LINE_LIMIT_BYTES} bytes"
            )
        yield line.removesuffix(b"\n")


def _file_number(field: bytes) -> int | None:
    if not _FILE_NUMBER.fullmatch(field):
        return None
    number = int(field)
    return number if number <= MAX_ID else None


def _home(field: bytes) -> str:
    text = field.decode("utf-8", errors="replace")
    return text if text.startswith("/") and text.isprintable() else "/"


def _distinct(gids: list[int]) -> tuple[int, ...]:
    distinct = tuple(dict.fromkeys(gids))
    if len(distinct) > MAX_GROUPS:
        raise InvalidArgument(
            f"the user would have {len(distinct)} groups; the kernel takes {MAX_GROUPS}"
        )
    return distinct
