"""What is mounted: the grammar of /proc/PID/mountinfo (proc(5), section "/proc/pid/mountinfo").

Read again each time and never cached: other programs mount and unmount too.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from sandbox.host.errors import Corrupt, NotFound, map_os_errors

_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class MountInfo:
    """One line of mountinfo.

    `propagation` holds the optional fields' words without their numbers: "shared", "master" (a
    slave), "propagate_from", "unbindable"; a private mount has none.
    """

    id: int
    parent: int
    device: str
    root: str
    target: Path
    options: tuple[str, ...]
    propagation: frozenset[str]
    type: str
    source: str
    super_options: tuple[str, ...]


def unescape(text: str) -> str:
    r"""Undo the kernel's octal escapes (\040 for a blank), one character for each byte."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def parse_mountinfo(content: bytes) -> list[MountInfo]:
    """Every mount of `content`, in the kernel's order: a mount comes after the one it lies on.

    Raises:
        Corrupt: a line does not follow the grammar.
    """
    return [_parse_line(line) for line in content.split(b"\n") if line]


def _parse_line(line: bytes) -> MountInfo:
    # Latin-1 keeps every byte one character while escapes are undone; os.fsdecode then makes the
    # text that os functions take back, whatever bytes the name has.
    fields = line.decode("latin-1").split(" ")
    try:
        dash = fields.index("-", 6)
        kind, source, super_options = (*fields[dash + 1 : dash + 3], fields[dash + 3])
        return MountInfo(
            id=int(fields[0]),
            parent=int(fields[1]),
            device=fields[2],
            root=_text(fields[3]),
            target=Path(_text(fields[4])),
            options=tuple(fields[5].split(",")),
            propagation=frozenset(word.partition(":")[0] for word in fields[6:dash]),
            type=_text(kind),
            source=_text(source),
            super_options=tuple(_text(super_options).split(",")),
        )
    except (ValueError, IndexError) as error:
        raise Corrupt("mountinfo line cannot be read", line=line.decode("latin-1")) from error


def _text(field: str) -> str:
    return os.fsdecode(unescape(field).encode("latin-1"))


def list_mounts(pid: int | None = None) -> list[MountInfo]:
    """The mounts that `pid` sees (None: this process). Blocking, short.

    Raises:
        NotFound: no such process.
    """
    path = Path(f"/proc/{'self' if pid is None else pid}/mountinfo")
    with map_os_errors("cannot list mounts", process=pid):
        return parse_mountinfo(path.read_bytes())


def mount_of(path: Path) -> MountInfo:
    """The mount that holds `path`; symlinks are followed.

    By mount id and not by comparing path texts: a text cannot tell which of two mounts at one
    place is on top.

    Raises:
        NotFound: no such path.
    """
    with map_os_errors("cannot look up mount", path=str(path)):
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            number = mount_id(fd)
        finally:
            os.close(fd)
    for mount in list_mounts():
        if mount.id == number:
            return mount
    raise NotFound("mount of path is not listed", path=str(path))


def mount_id(fd: int) -> int:
    """The id of the mount that `fd` was opened on (proc(5), /proc/pid/fdinfo).

    Raises:
        OSError: `fd` is not open.
    """
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "mnt_id":
            return int(value)
    raise Corrupt("fdinfo has no mnt_id", fd=fd)
