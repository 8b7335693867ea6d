"""Root file systems and image volumes of containers: mounted, served by a program, taken away.

Most are mounts of the kernel's and need nothing once they are there. One of fuse-overlayfs needs
its program, which outlives the daemon as conmon does: it has a session of its own, sits where
monitors do and is no more likely to be killed for memory than they are. Nothing of it is recorded.
After a start it is found by its arguments, whose last is the mount point; when the mount is taken
away it ends by itself.

A container whose program has died cannot go on: each file answers ENOTCONN, and touching a page
that was not in memory yet is SIGBUS. It is ended then, with that as its message, and whoever
manages it makes another; to leave it would leave something that runs and does not work.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Final

from sandbox.host import files, fuse, mounts
from sandbox.host.journal import get_logger
from sandbox.host.threads import to_its_end
from sandbox.image_mounts import VOLUME_OPTIONS, mount_image
from sandbox.placing import open_to_pod

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from pathlib import Path

    from sandbox.cgroups import Cgroups
    from sandbox.host.clock import Clock
    from sandbox.host.idmap import IdMap
    from sandbox.host.mounts import Mount
    from sandbox.host.pidfd import Process
    from sandbox.host.processes import ProcessRunner
    from sandbox.host.syscalls import Syscalls
    from sandbox.model import Container
    from sandbox.paths import Paths

    Lost = Callable[[str, str], Awaitable[None]]

#: The driver of a container whose root file system a program serves (`Container.storage_driver`).
SERVED: Final = "fuse-overlayfs"
#: How long the program may take to write what it has, and then to end (seconds); else it is killed.
UNMOUNT_LIMIT_S: Final = 5.0

_log = get_logger("roots")


class Roots:
    """Mounts what the snapshotter says; for one event loop."""

    def __init__(
        self,
        paths: Paths,
        *,
        runner: ProcessRunner,
        cgroups: Cgroups,
        monitor_cgroup: str,
        syscalls: Syscalls,
        clock: Clock,
        group: asyncio.TaskGroup,
    ) -> None:
        """`monitor_cgroup`: where programs that serve are put; empty: they stay in ours."""
        self._paths = paths
        self._runner = runner
        self._cgroups = cgroups
        self._monitor_cgroup = monitor_cgroup
        self._syscalls = syscalls
        self._clock = clock
        self._group = group
        self._on_lost: Lost | None = None

    def on_lost(self, call: Lost) -> None:
        """Have `call` told of each container (id, why) that has lost its root file system."""
        self._on_lost = call

    async def mount(
        self,
        container: Container,
        parts: Sequence[Mount],
        *,
        label: str = "",
        ids: IdMap | None = None,
    ) -> Path:
        """Make the container's directories and mount its root file system.

        Args:
            container: the reserved container.
            parts: mounts as the snapshotter gave them: targets are relative to the rootfs, but for
                what is only to make it of, below `Paths.lower`.
            label: SELinux label of everything in it, where there is SELinux.
            ids: the mapping of the pod's user namespace, whose root must reach the rootfs.

        Returns:
            The mount point.
        """
        rootfs = self._paths.rootfs(container.id)

        def work() -> Sequence[Mount]:
            if ids is not None:
                open_to_pod(self._paths.container(container.id), ids)
            else:
                files.make_private_dir(self._paths.container(container.id), mode=0o700)
            return mount_image(rootfs, parts, label=label, syscalls=self._syscalls)

        await self._serve(container.id, await to_its_end(work))
        return rootfs

    async def mount_volume(
        self, container: Container, image_id: str, parts: Sequence[Mount], *, label: str = ""
    ) -> Path:
        """Mount an image where the container's mounts take it from; after `mount`.

        Args:
            container: the container.
            image_id: names the mount point.
            parts: mounts as the snapshotter gave them.
            label: SELinux label of everything in it, where there is SELinux.

        Returns:
            The mount point.
        """
        place = self._paths.image_volume(container.id, image_id)

        def work() -> Sequence[Mount]:
            files.make_private_dir(place.parent, mode=0o711)
            return mount_image(
                place, parts, label=label, options=VOLUME_OPTIONS, syscalls=self._syscalls
            )

        await self._serve(container.id, await to_its_end(work))
        return place

    async def _serve(self, container_id: str, parts: Sequence[Mount]) -> None:
        """Have the last part served; those before it are what it is made of."""
        if not parts:
            return
        *below, served = parts
        program = await fuse.serve(
            served,
            runner=self._runner,
            syscalls=self._syscalls,
            clock=self._clock,
            place=self._place,
        )
        # It has them open, and whoever copies the mount table from now on need not copy these.
        for part in reversed(below):
            await asyncio.to_thread(fuse.detach, part.target, self._syscalls)
        self._watch(container_id, served.target, program.wait)

    async def _place(self, pid: int) -> None:
        if self._monitor_cgroup:
            await self._cgroups.enter(self._monitor_cgroup, pid)

    def _watch(
        self, container_id: str, target: Path, ended: Callable[[], Awaitable[object]]
    ) -> None:
        async def watch() -> None:
            try:
                await ended()
                await self._lost(container_id, target)
            except Exception as error:
                # A task that raises would end the daemon.
                _log.error("cannot end a container", container=container_id, error=error)

        self._group.create_task(watch(), name=f"serve {container_id[:12]}")

    async def _lost(self, container_id: str, target: Path) -> None:
        # After an unmount it ends as it should, and the container is no longer there to be ended.
        if self._on_lost is not None and await asyncio.to_thread(fuse.is_mounted, target):
            await self._on_lost(container_id, f"{SERVED}, which served {target.name}, has ended")

    async def adopt(self, containers: Iterable[Container]) -> None:
        """After a start: watch the programs of living containers; tell of those that are gone."""
        served = [c for c in containers if c.storage_driver == SERVED]
        if not served:
            return
        found = await asyncio.to_thread(self._find, served)
        for container_id, target, process in found:
            self._adopt(container_id, target, process)

    def _find(self, served: Iterable[Container]) -> list[tuple[str, Path, Process | None]]:
        programs = dict(fuse.servers_below(self._paths.containers))
        found = [
            (container.id, target, programs.pop(target, None))
            for container in served
            for target in fuse.served_below(self._paths.container(container.id))
        ]
        for process in programs.values():  # of containers that are being taken apart
            process.close()
        return found

    def _adopt(self, container_id: str, target: Path, process: Process | None) -> None:
        async def ended() -> None:
            if process is not None:
                with process:
                    await process.wait()

        self._watch(container_id, target, ended)

    async def unmount(self, container: Container) -> None:
        """Take away everything that is mounted in the container's run directory.

        Raises:
            PodwrightError: as the kernel says.
        """
        directory = self._paths.container(container.id)
        work = functools.partial(mounts.unmount_tree, directory, syscalls=self._syscalls)
        if container.storage_driver != SERVED:
            await asyncio.to_thread(work)
            return
        programs = [held for _, held in await asyncio.to_thread(fuse.servers_below, directory)]
        try:
            unmounting = asyncio.get_running_loop().run_in_executor(None, work)
            done, _ = await asyncio.wait({unmounting}, timeout=UNMOUNT_LIMIT_S)
            if not done:
                # Stopped or stuck, and the kernel waits for it to write what nobody will read.
                await fuse.end_all(programs, limit_s=0)
            await asyncio.shield(unmounting)
            if killed := await fuse.end_all(programs, limit_s=UNMOUNT_LIMIT_S):
                _log.warning("fuse-overlayfs killed", container=container.id, programs=killed)
        finally:
            for program in programs:
                program.close()
