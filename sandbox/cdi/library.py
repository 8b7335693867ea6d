"""All CDI files of this node, and what a container gets for the names it asks for.

Later directories win: /etc/cdi is the administrator's and vendors' install, /var/run/cdi what is
made while the node runs. Two files of the same directory that both have a device are a conflict,
and then nobody gets that device, rather than one that depends on names of files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sandbox.cdi.document import FILE_LIMIT_BYTES, SUFFIXES, Specification, parse
from sandbox.cdi.names import DeviceName
from sandbox.host.dropins import DropIns, Problem
from sandbox.host.errors import FailedPrecondition

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from sandbox.cdi.document import ContainerEdits
    from sandbox.host.clock import Clock
    from sandbox.host.dropins import DropIn, Looked

#: Things named in a message; more are only counted.
_NAMED: Final = 3


@dataclass(frozen=True, slots=True)
class Part:
    """Edits to make, and whose they are for messages: a device or a whole file."""

    edits: ContainerEdits
    origin: str


class CdiLibrary(DropIns[Specification]):
    """The CDI files of some directories; see the module text."""

    def __init__(self, directories: Iterable[Path], *, clock: Clock | None = None) -> None:
        super().__init__(
            directories, suffixes=SUFFIXES, parse=parse, limit_bytes=FILE_LIMIT_BYTES, clock=clock
        )

    def find(self, names: Iterable[DeviceName]) -> tuple[Part, ...]:
        """The edits for devices, in order: a file's own edits once, before its first device's.

        Blocking.

        Raises:
            FailedPrecondition: a device that no file has, or several have.
        """
        return find(self.look(), names, self.directories)


def find(
    looked: Looked[Specification], names: Iterable[DeviceName], directories: tuple[Path, ...]
) -> tuple[Part, ...]:
    """See `CdiLibrary.find`."""
    parts: list[Part] = []
    used: set[Path] = set()
    for name in names:
        file, edits = _find(looked, name, directories)
        if file.path not in used:
            used.add(file.path)
            parts.append(Part(file.content.container_edits, f"CDI file {file.path}"))
        parts.append(Part(edits, f"CDI device {name} ({file.path})"))
    return tuple(parts)


def _find(
    looked: Looked[Specification], name: DeviceName, directories: tuple[Path, ...]
) -> tuple[DropIn[Specification], ContainerEdits]:
    holders = [
        (file, device.container_edits)
        for file in looked.files
        if file.content.kind == name.kind
        for device in file.content.devices
        if device.name == name.device
    ]
    if not holders:
        raise _unknown(looked, name, directories)
    rank = max(file.rank for file, _ in holders)
    strongest = [(file, edits) for file, edits in holders if file.rank == rank]
    if len(strongest) > 1:
        raise FailedPrecondition(
            f"CDI device {name} is described by more than one file: "
            + " and ".join(str(file.path) for file, _ in strongest[:_NAMED]),
            hint="take the device out of all but one of them",
        )
    return strongest[0]


def _unknown(
    looked: Looked[Specification], name: DeviceName, directories: tuple[Path, ...]
) -> FailedPrecondition:
    where = ", ".join(map(str, directories)) or "no directory, since runtime.cdi_spec_dirs is empty"
    known = sorted(
        device.name
        for file in looked.files
        if file.content.kind == name.kind
        for device in file.content.devices
    )
    text = f"CDI device {name} is not known on this node; looked in {where}"
    if known:
        text += f"; known of {name.kind}: {_some(known)}"
    if looked.problems:
        text += f"; not usable: {_some([str(problem) for problem in looked.problems])}"
    return FailedPrecondition(
        text,
        hint="have the device's driver or plugin write its CDI file there, or mend the file;"
        " podwright check lists them",
    )


def _some(texts: list[str]) -> str:
    more = len(texts) - _NAMED
    return ", ".join(texts[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def conflicts(looked: Looked[Specification]) -> tuple[Problem, ...]:
    """Devices that nobody can get, because files of equal rank have them; for `podwright check`."""
    holders: dict[DeviceName, list[DropIn[Specification]]] = {}
    for file in looked.files:
        for device in file.content.devices:
            holders.setdefault(DeviceName(file.content.kind, device.name), []).append(file)
    found = []
    for name, files in holders.items():
        rank = max(file.rank for file in files)
        same = [file for file in files if file.rank == rank]
        if len(same) > 1:
            found.append(Problem(same[1].path, f"{name} is in {same[0].path} too"))
    return tuple(found)
