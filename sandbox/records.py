"""A second copy of what is known about each object: one small file each, beside the database.

The database is the place of record. It is also one file, and one file can be lost whole: emptied by
a full disk's repair, damaged by a bad sector, deleted by a person. The pods do not care, so their
records must not die with it. These files are under the run root, because what they are for is the
objects that run: they cost no disk and no sync, and after a boot there is nothing left that they
could describe (the database's last backup then tells what networks have to give back).

A file is written before the transaction that says the same is committed, and erased before the one
that erases the row. So a file without a row means a creation that was just begun, or a row that was
lost: both are told apart by recovery, which looks at what is there.

A file that could not be written anew (the run root is full) is older than what it describes. It is
set back, under another name that needs no room, so that it cannot pass for the truth: it counts
only where there is nothing else. It is written again as soon as that can be.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from sandbox.host.errors import NotFound, PodwrightError
from sandbox.host.files import make_private_dir, read_limited, remove_temporaries, write_atomic
from sandbox.host.journal import get_logger
from sandbox.model import Container, PodSandbox

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

V = TypeVar("V", PodSandbox, Container)

_CURRENT: Final = ".json"
#: Of files that are older than the last change of their object.
_SET_BACK: Final = ".older"
#: Of the files that tell of an object, as opposed to those put aside.
RECORD_SUFFIXES: Final = (_CURRENT, _SET_BACK)

#: A document holds a request, which the server bounds at 16 MiB, and little else.
RECORD_LIMIT_BYTES: Final = 32 * 1024 * 1024

_log = get_logger("records")


class Records:
    """The files below one directory; every method blocks."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._failing = False
        self._set_back: set[str] = set()

    def open(self) -> bool:
        """Make the directories, and tidy what a killed daemon was just writing.

        Returns:
            Whether they were there: else the node was restarted, and nothing ran before.

        Raises:
            PodwrightError: as the kernel says.
        """
        there = self._root.is_dir()
        for directory in (self._root, self._place(PodSandbox), self._place(Container)):
            make_private_dir(directory)
            remove_temporaries(directory)
        return there

    def _place(self, kind: type[PodSandbox] | type[Container]) -> Path:
        return self._root / ("pods" if kind is PodSandbox else "containers")

    def _file(self, kind: type[PodSandbox] | type[Container], object_id: str) -> Path:
        return self._place(kind) / f"{object_id}{_CURRENT}"

    @property
    def older(self) -> list[str]:
        """Ids of objects whose copy is older than they are, or missing. For any thread."""
        return list(self._set_back)

    def write(self, value: PodSandbox | Container, document: bytes) -> None:
        """Write or replace one; a copy that cannot be written is no reason to fail."""
        file = self._file(type(value), value.id)
        try:
            write_atomic(file, document, mode=0o600, durable=False)
        except PodwrightError as error:
            if not self._failing:
                _log.warning("second copies of records are not written", error=error)
            self._failing = True
            self._set_back.add(value.id)
            with suppress(OSError):  # there may be none yet
                file.rename(file.with_suffix(_SET_BACK))
            return
        self._failing = False
        if value.id in self._set_back:
            self._set_back.discard(value.id)
            with suppress(OSError):
                file.with_suffix(_SET_BACK).unlink(missing_ok=True)

    def write_all(self, values: Iterable[PodSandbox | Container]) -> None:
        """Write several."""
        for value in values:
            self.write(value, msgspec.json.encode(value))

    def remove(self, kind: type[PodSandbox] | type[Container], object_id: str) -> None:
        """Erase one; unknown is fine."""
        file = self._file(kind, object_id)
        with suppress(OSError):
            file.unlink(missing_ok=True)
        if object_id in self._set_back:
            self._set_back.discard(object_id)
            with suppress(OSError):
                file.with_suffix(_SET_BACK).unlink(missing_ok=True)

    def load(self, kind: type[V]) -> dict[str, V]:
        """Every one that can be read, by id; others are put aside beside it and logged."""
        return self._load(kind, _CURRENT)

    def load_set_back(self, kind: type[V]) -> dict[str, V]:
        """Those that were set back, the same; a current one beside it may be there as well."""
        found = self._load(kind, _SET_BACK)
        self._set_back.update(found)
        return found

    def _load(self, kind: type[V], suffix: str) -> dict[str, V]:
        found: dict[str, V] = {}
        for path in sorted(self._place(kind).glob(f"*{suffix}")):
            try:
                value = msgspec.json.decode(read_limited(path, RECORD_LIMIT_BYTES), type=kind)
                if value.id != path.stem:
                    raise NotFound("record is not of the object that its name says")
            except (PodwrightError, msgspec.MsgspecError, UnicodeError, RecursionError) as error:
                _log.warning("second copy cannot be read, put aside", path=str(path), error=error)
                with suppress(OSError):
                    path.rename(path.with_name(f"{path.name}.unreadable"))
                continue
            found[value.id] = value
        return found
