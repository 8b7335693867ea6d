"""Drivers: how a root file system comes from layers that are directories already, or are mounted.

| driver         | a container costs         | layers shared | needs                              |
|----------------|---------------------------|---------------|------------------------------------|
| overlay        | a mount                   | yes           | overlayfs, where images are kept   |
| fuse-overlayfs | a mount, and a program    | yes           | /dev/fuse and the program          |
| native         | a copy of the whole image | no            | nothing                            |

They are tried in this order, by mounting something, where an operator has not chosen one. The
layers are the same for all three, so images stay when a node is moved from one to another, and a
container keeps what it was made with until it is removed.

What is written goes to `upper_dir` with each. With `native` that is the whole tree, so what a
container is said to use there is its copy of the image and its writes together: these are the real
bytes on the disk, and nothing tells them apart.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, Self

import msgspec

import imageservice
from imageservice.settings import FUSE_OVERLAYFS
from imageservice.snapshots import probe
from imageservice.snapshots.copying import CopyJob, JobLayer
from imageservice.snapshots.root import map_layers, root_mount
from imageservice.snapshots.upper import make_upper
from imageservice.unpack.protocol import Failed
from sandbox.host import errors as host_errors
from sandbox.host import fuse
from sandbox.host.clock import SystemClock
from sandbox.host.errors import (
    Internal,
    PodwrightError,
    Unsupported,
    map_os_errors,
)
from sandbox.host.files import remove_tree
from sandbox.host.journal import get_logger
from sandbox.host.mounts import Mount
from sandbox.host.processes import HostProcessRunner
from sandbox.host.threads import to_its_end

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from imageservice.forms import DriverChoice, DriverName
    from imageservice.settings import ImageSettings
    from imageservice.snapshots.snapshotter import MappedRoot
    from imageservice.snapshots.upper import Correction, LowerLayer
    from sandbox.host.processes import ProcessRunner
    from sandbox.host.syscalls import Syscalls

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A root file system to be made; see `Snapshotter.prepare`.

    Attributes:
        lower: the layers that matter, lowest first.
        empty: a directory without files.
        corrections: see `upper`.
    """

    lower: Sequence[LowerLayer]
    empty: Path
    upper_dir: Path
    work_dir: Path
    read_only: bool
    mapped: MappedRoot | None
    corrections: tuple[Correction, ...] = ()

    @property
    def root_like(self) -> Path | None:
        """The directory that the root looks like; None for root's 0755."""
        described = (layer.path for layer in reversed(self.lower) if b"" not in layer.implied)
        return next(described, None)


class Driver(Protocol):
    """One of the table above, found to work at this place."""

    @property
    def name(self) -> DriverName:
        """Which."""
        ...

    @property
    def corrects(self) -> bool:
        """Whether it wants `Plan.corrections`, where the root file system is writable."""
        ...

    async def compose(self, plan: Plan) -> tuple[Mount, ...]:
        """See `Snapshotter.prepare`; raises as it does."""
        ...

    async def lack_of_mapping(self, directory: Path, namespace: Path) -> str:
        """Why root file systems cannot have the mapping of a user namespace; empty when they can.

        Args:
            directory: made, used and removed; on the file system that holds the layers.
            namespace: where a user namespace is pinned whose root is not the node's.
        """
        ...


class MountingDriver:
    """overlayfs, or fuse-overlayfs, whose options have the same names."""

    corrects = True

    def __init__(self, name: DriverName, options: tuple[str, ...], machine: _Machine) -> None:
        self.name = name
        self._options = options
        self._machine = machine

    async def compose(self, plan: Plan) -> tuple[Mount, ...]:
        """See `Driver`."""
        lower = [layer.path for layer in plan.lower]
        parts: tuple[Mount, ...] = ()
        ids = None
        if plan.mapped is not None:
            ids = plan.mapped.ids
            parts = await to_its_end(partial(map_layers, lower or [plan.empty], plan.mapped))
            lower = [part.target for part in parts]
        writable: tuple[str, ...] = ()
        if not plan.read_only:
            like, corrections = plan.root_like, plan.corrections
            await to_its_end(
                partial(make_upper, plan.upper_dir, plan.work_dir, like, corrections, ids)
            )
            writable = (f"upperdir={plan.upper_dir}", f"workdir={plan.work_dir}")
        root = root_mount(lower, writable, options=self._options, empty=plan.empty)
        if self.name == "fuse-overlayfs" and root.type == "overlay":
            words = (*root.options, "suid", "dev")
            root = Mount(fuse.FUSE_OVERLAYFS, str(self._machine.fuse_overlayfs), Path(), words)
        return (*parts, root)

    async def lack_of_mapping(self, directory: Path, namespace: Path) -> str:
        """See `Driver`."""
        machine = self._machine
        if self.name == "overlay":
            return await asyncio.to_thread(
                probe.probe_mapping, directory, namespace, machine.syscalls
            )
        return await probe.probe_fuse_mapping(
            directory,
            namespace,
            machine.fuse_overlayfs,
            runner=machine.runner,
            syscalls=machine.syscalls,
            clock=SystemClock(),
        )


class CopyingDriver:
    """A copy of all that the layers show, for each container; see `copying` for what is kept.

    It is made beside its place and named when it is complete; a copy that was interrupted lies in
    the work directory, which whoever takes the container apart removes.
    """

    name: DriverName = "native"
    corrects = False

    def __init__(self, machine: _Machine) -> None:
        self._machine = machine

    async def compose(self, plan: Plan) -> tuple[Mount, ...]:
        """See `Driver`; a read-only root is a copy in `upper_dir` as well."""
        if not await asyncio.to_thread(plan.upper_dir.exists):
            await self._copy(plan)
        mode = ("ro",) if plan.read_only else ()
        ids = () if plan.mapped is None else (plan.mapped.ids.word,)
        # As overlayfs: what the directory's own mount forbids is not forbidden in the container.
        words = ("bind", "suid", "dev", "exec", *mode, *ids, "private")
        return (Mount("bind", str(plan.upper_dir), Path(), words),)

    async def _copy(self, plan: Plan) -> None:
        place = plan.work_dir / "copy"
        job = CopyJob(
            layers=tuple(
                JobLayer(
                    path=str(layer.path),
                    implied=tuple(path.decode("latin-1") for path in sorted(layer.implied)),
                )
                for layer in plan.lower
            ),
            target=str(place),
        )
        await to_its_end(partial(_clear, plan.work_dir))
        done = await self._machine.runner.run(
            [sys.executable, "-P", "-s", "-m", "imageservice.snapshots.copying"],
            # The package may be on the path by the daemon's environment only.
            env={"PYTHONPATH": str(Path(imageservice.__path__[0]).parent)},
            stdin=msgspec.json.encode(job),
        )
        if done.exit_status:
            raise _failure(done.stdout, done.exit_status, done.message)
        await to_its_end(partial(_publish, place, plan.upper_dir))

    async def lack_of_mapping(self, directory: Path, namespace: Path) -> str:
        """See `Driver`."""
        return await asyncio.to_thread(
            probe.probe_bind_mapping, directory, namespace, self._machine.syscalls
        )


@dataclass(frozen=True, slots=True)
class _Machine:
    """What drivers work with."""

    runner: ProcessRunner
    syscalls: Syscalls
    fuse_overlayfs: Path


@dataclass(frozen=True, slots=True)
class DriverWish:
    """What the operator asks for, and what drivers need for it."""

    choice: DriverChoice
    fuse_overlayfs: Path = FUSE_OVERLAYFS
    runner: ProcessRunner | None = None

    @classmethod
    def of(cls, settings: ImageSettings, runner: ProcessRunner) -> Self:
        """As the settings say."""
        return cls(settings.storage_driver, settings.fuse_overlayfs_path, runner)


@dataclass(frozen=True, slots=True)
class Storage:
    """What was chosen, and why none of those before it in the order."""

    driver: Driver
    reasons: Mapping[DriverName, str]

    def report(self) -> dict[str, object]:
        """For verbose status, as JSON values."""
        return {"driver": self.driver.name, "notUsable": dict(self.reasons)}


#: In the order in which they are tried.
ORDER: Final[tuple[DriverName, ...]] = ("overlay", "fuse-overlayfs", "native")


async def choose_driver(wish: DriverWish, directory: Path, *, syscalls: Syscalls) -> Storage:
    """The driver to use, tried.

    Args:
        wish: what the operator asks for.
        directory: made, used and removed; on the file system that will hold the layers.
        syscalls: the kernel.

    Raises:
        Unsupported: what is asked for does not work here.
    """
    machine = _Machine(wish.runner or HostProcessRunner(), syscalls, wish.fuse_overlayfs)
    wanted = ORDER if wish.choice == "auto" else (wish.choice,)
    reasons: dict[DriverName, str] = {}
    for name in wanted:
        try:
            driver = await _try(name, directory, machine)
        except PodwrightError as error:
            if wish.choice != "auto":
                raise Unsupported(
                    f"image.storage_driver is {name}, which cannot be used: {error.message}",
                    hint=f"{error.hint or 'mend that'}; or set it to auto",
                    path=str(directory.parent),
                ) from error
            reasons[name] = str(error)
        else:
            _log.info("storage driver", driver=name, **_logged(reasons))
            return Storage(driver, reasons)
    raise AssertionError("the last driver needs nothing")


def _logged(reasons: Mapping[DriverName, str]) -> dict[str, str]:
    return {f"no_{name.replace('-', '_')}": reason for name, reason in reasons.items()}


async def _try(name: DriverName, directory: Path, machine: _Machine) -> Driver:
    if name == "native":
        return CopyingDriver(machine)
    if name == "overlay":
        options = await asyncio.to_thread(probe.probe_options, directory, machine.syscalls)
        return MountingDriver(name, options, machine)
    await probe.probe_fuse(
        directory,
        machine.fuse_overlayfs,
        runner=machine.runner,
        syscalls=machine.syscalls,
        clock=SystemClock(),
    )
    return MountingDriver(name, (), machine)


def _clear(work_dir: Path) -> None:
    remove_tree(work_dir)
    with map_os_errors("cannot make root file system directories", path=str(work_dir)):
        work_dir.mkdir(0o700, parents=True)


def _publish(place: Path, upper_dir: Path) -> None:
    with map_os_errors("cannot name the copy of an image", path=str(upper_dir)):
        upper_dir.parent.mkdir(0o700, parents=True, exist_ok=True)
        place.rename(upper_dir)


def _failure(said: bytes, status: int, words: str) -> PodwrightError:
    """The failure as an exception again; what is no message is a fault of ours."""
    try:
        failed = msgspec.json.decode(said, type=Failed)
    except msgspec.MsgspecError:
        return Internal(f"copying an image ended with status {status}: {words or 'no message'}")
    kind = getattr(host_errors, failed.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, PodwrightError)):
        kind = Internal
    error = kind(failed.message, hint=failed.hint)
    error.fields = failed.fields
    return error
