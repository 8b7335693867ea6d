"""What is mounted: the grammar of /proc/PID/mountinfo (proc(5), section "/proc/pid/mountinfo").

Read again each time and never cached: other programs mount and unmount too.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.host.errors import Corrupt, NotFound, map_os_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

_ESCAPE = re.compile(r"\\([0-7]{3})")
#: What the kernel writes as an escape (fs/proc_namespace.c).
_ESCAPED = re.compile(rb"[ \t\n\\#]")


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
    with map_os_errors("cannot list mounts", process=pid):
        return parse_mountinfo(_read(pid))


def mounts_below(place: Path, *, content: bytes | None = None) -> list[MountInfo]:
    """The mounts at `place`, which is a real path, and below it. Blocking, short.

    Lines of other places are not taken apart: a node of 500 pods has 3,000 mounts, every removal
    asks for those of one directory, and taking all apart would hold the interpreter for as many
    milliseconds as the rest of the removal takes.

    Args:
        place: an absolute path without symbolic links.
        content: what mountinfo says (None: read it).
    """
    with map_os_errors("cannot list mounts"):
        text = _read(None) if content is None else content
    found = []
    for line in _lines_with(text, _ESCAPED.split(os.fsencode(place), maxsplit=1)[0]):
        mount = _parse_line(line)
        if mount.target == place or place in mount.target.parents:
            found.append(mount)
    return found


def _lines_with(text: bytes, part: bytes) -> Iterator[bytes]:
    at = text.find(part)
    while at >= 0:
        end = text.find(b"\n", at)
        end = len(text) if end < 0 else end
        yield text[text.rfind(b"\n", 0, at) + 1 : end]
        at = text.find(part, end)


def _read(pid: int | None) -> bytes:
    return Path(f"/proc/{'self' if pid is None else pid}/mountinfo").read_bytes()


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
        # The id begins its line; no other line is taken apart.
        text = b"\n" + _read(None)
    at = text.find(b"\n%d " % number)
    if at >= 0:
        return _parse_line(text[at + 1 :].partition(b"\n")[0])
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
