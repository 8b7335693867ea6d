"""The grammar of control group files, on bytes: this runs for every file of every container. Pure.

What is no number counts as missing; a line of another shape costs only itself. The kernel's own
texts are always well-formed, so the questions are asked in the order that makes those cheap.
"""

from __future__ import annotations

from typing import Final, Protocol

#: Version 1 writes "no limit" as the largest multiple of the page size; nobody means 4 EiB.
_NO_LIMIT: Final = 1 << 62

#: Controller and name of a file; "unified" stands for cgroup2's own.
FileName = tuple[str, str]


class FilesReader(Protocol):
    """Gives the texts of files of one control group."""

    def __call__(self, names: tuple[FileName, ...]) -> list[bytes | None]:
        """Each whole file in the order of `names`, None where there is none."""
        ...


def number(text: bytes | None) -> int | None:
    """The only word of a file."""
    word = (text or b"").strip()
    return int(word) if word.isdigit() else None


def limit(text: bytes | None) -> int | None:
    """The same; None also for "max" and for what version 1 writes instead."""
    found = number(text)
    return None if unlimited(found) else found


def unlimited(found: int | None) -> bool:
    """Whether a number stands for no limit; one that is not there says nothing."""
    return found is not None and found >= _NO_LIMIT


class Keyed:
    """The values of some keys of `KEY N` lines.

    A memory.stat has forty lines and eight of interest: looking for those takes 3 us, making pairs
    of all of them 7 us.
    """

    def __init__(self, *keys: str) -> None:
        """`keys` in the order in which their values are wanted."""
        self._keys = [f"\n{key} ".encode() for key in keys]

    def __call__(self, text: bytes | None) -> list[int | None]:
        """A value for each key, None for one that is missing or has no number."""
        lines = b"\n" + (text or b"")
        words = [lines.partition(key)[2].partition(b"\n")[0] for key in self._keys]
        return [int(word) if word.isdigit() else None for word in words]


def device(word: bytes) -> tuple[int, int] | None:
    """`MAJ:MIN`."""
    major, _, minor = word.partition(b":")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None
