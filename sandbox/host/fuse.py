"""File systems that a program serves (fuse(4)): fuse-overlayfs, started, watched and ended.

Such a mount lives as long as its program. When that dies, everything in the mount answers ENOTCONN
at once; while it is stopped or stuck, everything waits. So nothing here looks into a mount without
a limit, and what must not wait asks /proc/self/mountinfo and /proc, which know of mounts and
programs without asking them.

The program is our child in a session of its own, runs in the foreground (so its number is known
before it does anything) and stays when we end: it becomes init's child then, as conmon is. What it
says before the mount is there is the reason of a failure; afterwards its standard error is closed
to it, for nobody would read that.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sandbox.host import syscalls as sc
from sandbox.host.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    PodwrightError,
    from_os_error,
)
from sandbox.host.mounts import Mount, list_mounts
from sandbox.host.pidfd import Process, boot_id, start_ticks
from sandbox.host.processes import KILL_WAIT_S
from sandbox.host.threads import in_one_piece, to_its_end

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterator

    from sandbox.host.clock import Clock
    from sandbox.host.processes import ProcessRunner, Spawned

#: Type of a `Mount` that is served by fuse-overlayfs, as the kernel lists it; its source is the
#: program.
FUSE_OVERLAYFS: Final = "fuse.fuse-overlayfs"
DEVICE: Final = Path("/dev/fuse")
#: conmon gives itself the same: what holds a container must not be what the memory killer takes.
OOM_SCORE_ADJ: Final = -1000

#: The reference machine needs 10 ms; beyond this the program is stuck.
START_LIMIT_S: Final = 30.0
_POLL_S: Final = 0.005
_STDERR_TAIL_BYTES: Final = 2048
_NAME: Final = "fuse-overlayfs"


async def serve(
    mount: Mount,
    *,
    runner: ProcessRunner,
    syscalls: sc.Syscalls,
    clock: Clock,
    place: Callable[[int], Awaitable[None]] | None = None,
    limit_s: float = START_LIMIT_S,
) -> Spawned:
    """Start the program of a mount of type `FUSE_OVERLAYFS`; returns when the mount answers.

    Args:
        mount: its words become options as they are; the target must exist.
        runner: starts it.
        syscalls: for taking away the mount of a start that failed.
        clock: for the waiting.
        place: called with the program's number at once, to put it into a control group.
        limit_s: seconds until it is given up.

    Raises:
        NotFound: the program is not installed.
        FailedPrecondition: it ended without a mount; with its own words.
        DeadlineExceeded: it took too long. Of all these nothing is left.
    """
    argv = [mount.source, "-f", "-o", ",".join(_escaped(mount)), str(mount.target)]
    said = os.memfd_create("fuse-stderr", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        program = await runner.spawn(argv, stderr_fd=said)
        try:
            _protect(program.pid)
            if place is not None:
                await place(program.pid)
            async with asyncio.timeout(limit_s):
                await _until_served(mount.target, program, said, clock)
            fcntl.fcntl(said, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        except BaseException as error:
            # Its end also wakes a thread that waits for an answer of the mount.
            program.kill_group(signal.SIGKILL)
            await in_one_piece(_undo(program, mount.target, syscalls))
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(
                    f"{_NAME} did not answer within {limit_s:g} s", path=str(mount.target)
                ) from error
            raise
    finally:
        os.close(said)
    return program


async def _undo(program: Spawned, target: Path, syscalls: sc.Syscalls) -> None:
    await to_its_end(partial(detach, target, syscalls))
    await ended(program)


async def ended(program: Spawned) -> None:
    """Wait for a program whose mount is gone, but not for one that is stuck in the kernel."""
    for _ in range(2):
        with suppress(TimeoutError):
            async with asyncio.timeout(KILL_WAIT_S):
                await program.wait()
                return
        program.kill_group(signal.SIGKILL)


def _escaped(mount: Mount) -> Iterator[str]:
    """The options, each as libfuse reads it: a comma in a value needs a backslash."""
    for word in mount.options:
        if "\0" in word or "\\" in word:
            raise InvalidArgument("mount option cannot be told to fuse", path=str(mount.target))
        yield word.replace(",", "\\,")


def _protect(pid: int) -> None:
    with suppress(OSError):  # it has ended; or it is ours to lower no further
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(OOM_SCORE_ADJ))


async def _until_served(target: Path, program: Spawned, said: int, clock: Clock) -> None:
    above = await asyncio.to_thread(target.parent.stat)
    while True:
        if program.pidfd < 0:  # it has ended and was reaped
            status = await program.wait()
            raise FailedPrecondition(
                f"{_NAME} ended with status {status}: {_tail(said)}", path=str(target)
            )
        try:
            here = await asyncio.to_thread(target.stat)
            if here.st_dev != above.st_dev:
                return
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
                raise from_os_error(error, "cannot mount", path=str(target)) from error
        await clock.sleep(_POLL_S)


def _tail(said: int) -> str:
    size = os.fstat(said).st_size
    tail = os.pread(said, _STDERR_TAIL_BYTES, max(0, size - _STDERR_TAIL_BYTES))
    return " ".join(tail.decode(errors="replace").split()) or "it gave no reason"


def detach(target: Path, syscalls: sc.Syscalls) -> None:
    """Take a mount out of the tree at once, whoever uses it; trouble is passed over. Blocking."""
    with suppress(PodwrightError):
        syscalls.umount2(target, sc.MNT_DETACH | sc.UMOUNT_NOFOLLOW)


def served_below(directory: Path) -> list[Path]:
    """Places below `directory` where fuse-overlayfs is mounted, served or not; blocking."""
    return [
        mount.target
        for mount in list_mounts()
        if mount.type == FUSE_OVERLAYFS and directory in mount.target.parents
    ]


def is_mounted(target: Path) -> bool:
    """Whether fuse-overlayfs is mounted there, served or not; blocking."""
    return any(m.type == FUSE_OVERLAYFS and m.target == target for m in list_mounts())


def servers(proc: Path = Path("/proc")) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Every fuse-overlayfs that runs: its number and its arguments; blocking."""
    for entry in proc.iterdir():
        if not entry.name.isascii() or not entry.name.isdigit():
            continue
        try:
            if (entry / "comm").read_text(errors="replace").strip() != _NAME:
                continue
            words = (entry / "cmdline").read_bytes().decode(errors="surrogateescape").split("\0")
        except OSError:
            continue  # it ended while we looked
        yield int(entry.name), tuple(words[:-1])


def servers_below(directory: Path) -> list[tuple[Path, Process]]:
    """The programs that serve mounts below `directory`, held: to be closed. Blocking.

    Raises:
        ResourceExhausted: no descriptor is left.
    """
    held: list[tuple[Path, Process]] = []
    for pid, words in servers():
        target = Path(words[-1]) if words else Path()
        if directory in target.parents and (ticks := start_ticks(pid)) is not None:
            process = Process.open(pid, ticks, boot_id())
            if process is not None:
                held.append((target, process))
    return held


async def end_all(programs: Collection[Process], *, limit_s: float) -> int:
    """Wait until programs have ended whose mounts are gone; after the limit they are killed.

    Returns:
        The number killed.
    """
    killed = 0
    try:
        async with asyncio.timeout(limit_s):
            for program in programs:
                await program.wait()
    except TimeoutError:
        for program in programs:
            killed += program.send_signal(signal.SIGKILL)
    return killed
