"""`podwright wipe`: take away every trace of containers from this node, and prove it.

For a node that leaves the cluster, or whose state nobody wants any more. Works while no daemon does
(the run root is held meanwhile, so none can start), with the means of the daemon: networks are
detached by their plugins, cgroups killed and removed, mounts taken away, files removed last. What
cannot be done does not stop the rest. Afterwards the machine itself is asked what is left: the
exit status is that answer, not the sum of what was tried.

A disk that an operator has mounted at one of our directories is his: it is emptied where it holds
what is ours, and stays mounted (`cri.wipe_mounts`).
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING

import click
import msgspec

from cni.network import PodNetwork
from cri.attachment import make_attachment
from cri.runtimes import shared_books
from cri.server import claim_run_root, planned_failure
from cri.wipe_mounts import Ground
from imageservice.registry.client import RegistryClient
from imageservice.service import ImageService
from sandbox.cgroups import NAME, Cgroups, real_path
from sandbox.host import mounts
from sandbox.host.cgroupfs import CgroupLayout
from sandbox.host.clock import SystemClock
from sandbox.host.errors import PodwrightError, map_os_errors
from sandbox.host.files import make_private_dir
from sandbox.host.journal import get_logger
from sandbox.host.libc import LibcSyscalls
from sandbox.host.namespaces import NamespaceWorker
from sandbox.host.processes import HostProcessRunner
from sandbox.host.systemd import Systemd
from sandbox.host.trees import remove_tree
from sandbox.leavings import Leavings
from sandbox.paths import Paths
from sandbox.records import Records
from sandbox.runtime.crun import CommandRuntime
from sandbox.store import StateStore
from sandbox.sweep import Sweeper

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterator
    from pathlib import Path

    from cri.config import Config
    from sandbox.model import Container, PodSandbox

_log = get_logger("wipe")


class Remains(msgspec.Struct, frozen=True, kw_only=True):
    """What there is of containers (and images) on this node, by kind; names for people."""

    pods: list[str] = []
    containers: list[str] = []
    traces: list[str] = []
    processes: list[str] = []
    mounts: list[str] = []
    cgroups: list[str] = []
    addresses: list[str] = []
    leases: list[str] = []
    files: list[str] = []

    def lines(self) -> list[str]:
        """A line for each kind of which there is something."""
        found = msgspec.structs.asdict(self)
        return [f"{kind}: {len(names)}" for kind, names in found.items() if names]


class Wiper:
    """Holds the run root of a node from `open` on; an async context manager."""

    def __init__(self, config: Config, *, images: bool) -> None:
        """Nothing is touched before it is entered.

        Args:
            config: says where everything is.
            images: images are to go as well.
        """
        self._config = config
        self._images_too = images
        self._sandbox = config.sandbox()
        self._paths = Paths(run_root=self._sandbox.run_root, state_root=self._sandbox.state_root)
        self._image_root = config.images().root
        #: Other nodes may use them; they are no part of this one, wherever they lie.
        self._stores = config.images().additional_stores
        self._clock = SystemClock()
        self._syscalls = LibcSyscalls()
        self._runner = HostProcessRunner(clock=self._clock)
        self._leavings = Leavings(h.path.name for h in self._sandbox.handlers)
        self._ground = Ground(self._paths.run_root, self._paths.state_root, self._image_root)
        self._pods: dict[str, PodSandbox] = {}
        self._containers: dict[str, Container] = {}
        #: Real paths of every recorded cgroup; looked for after the wipe as well.
        self._groups: set[str] = set()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Wiper:
        paths = self._paths
        # So that the lock has its place; both go in the end.
        await asyncio.to_thread(make_private_dir, paths.run_root, 0o711)
        self._stack.callback(claim_run_root(paths.run_root).close)
        systemd = Systemd(self._runner)
        self._cgroups = Cgroups(
            CgroupLayout.detect(),
            self._sandbox.cgroup_driver,
            clock=self._clock,
            kill_s=self._sandbox.timeouts.kill_s,
            systemd=systemd,
        )
        self._namespaces = NamespaceWorker(syscalls=self._syscalls, clock=self._clock)
        self._stack.callback(self._namespaces.close)
        runtimes = {
            handler.name: CommandRuntime(
                handler,
                runner=self._runner,
                clock=self._clock,
                systemd_cgroup=self._cgroups.systemd,
                timeouts=self._sandbox.timeouts,
            )
            for handler in self._sandbox.handlers
        }
        self._sweeper = Sweeper(
            paths=paths,
            runtimes=runtimes,
            namespaces=self._namespaces,
            cgroups=self._cgroups,
            leavings=self._leavings,
            syscalls=self._syscalls,
            shared_books=shared_books(self._sandbox.handlers, paths.run_root),
        )
        self._network = PodNetwork(
            self._config.cni(),
            self._runner,
            self._clock,
            is_namespace=self._namespaces.is_pinned,
        )
        if paths.state_root.is_dir() or paths.records.is_dir():
            await asyncio.to_thread(make_private_dir, paths.state_root)
            store = await StateStore.open(
                paths.state_file, Records(paths.records), clock=self._clock
            )
            # Read once: what follows looks at the machine, and removes the file in the end.
            self._pods, self._containers = dict(store.pods), dict(store.containers)
            await store.close()
        self._groups = {
            *(real_path(pod.cgroup_path) for pod in self._pods.values()),
            *(real_path(container.cgroup_path) for container in self._containers.values()),
            *(
                self._cgroups.parent_path("", pod.id)
                for pod in self._pods.values()
                if not pod.config.cgroup_parent
            ),
        }
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def census(self) -> Remains:
        """What is there now, asked of the machine."""
        seen = await self._sweeper.look()
        known = self._pods.keys() | self._containers.keys()
        return Remains(
            pods=sorted(self._pods),
            containers=sorted(self._containers),
            traces=sorted(seen.ids - known),
            processes=await asyncio.to_thread(self._processes),
            mounts=await asyncio.to_thread(lambda: [str(path) for path in self._mounts()]),
            cgroups=await asyncio.to_thread(self._cgroup_directories),
            addresses=sorted(await self._network.held()),
            files=await asyncio.to_thread(lambda: [str(path) for path in self._files()]),
        )

    def _processes(self) -> list[str]:
        found = self._leavings.working_below(self._paths.run_root)
        for group in self._groups:
            found |= self._cgroups.layout.procs(group, recursive=True)
        return [str(pid) for pid in sorted(found)]

    def _cgroup_directories(self) -> list[str]:
        layout = self._cgroups.layout
        found = [d for path in self._groups for d in layout.dirs(path) if d.is_dir()]
        return sorted(map(str, (*found, *self._own_groups())))

    def _mounts(self) -> list[Path]:
        """What we have mounted and is to go, in the order in which it was."""
        targets = [mount.target for mount in mounts.list_mounts()]
        return [target for target in self._ground.own(targets) if not self._spared(target)]

    def _spared(self, path: Path) -> bool:
        return not self._images_too and path.is_relative_to(self._image_root)

    def _foreign(self) -> list[Path]:
        """Where others have mounted something below our directories."""
        return self._ground.foreign(mount.target for mount in mounts.list_mounts())

    def _files(self) -> list[Path]:
        found = {p for p in _entries(self._paths.run_root) if p.name != "lock"}
        found |= set(_entries(self._paths.state_root))
        if self._images_too:
            found |= set(_entries(self._image_root))
        foreign = self._foreign()
        whole = {path for top in found for path in self._around(top, foreign)}
        return sorted(path for path in whole if not self._kept(path))

    def _around(self, path: Path, foreign: Collection[Path]) -> Iterator[Path]:
        """`path`, or what of it can go where a mount of others is on it or below it."""
        if path in foreign and not self._ground.holds_ours(path):
            return
        if self._kept(path) or not any(place.is_relative_to(path) for place in foreign):
            yield path
            return
        for entry in _entries(path):
            yield from self._around(entry, foreign)

    def _kept(self, path: Path) -> bool:
        kept = (*self._stores, *(() if self._images_too else (self._image_root,)))
        keeps_images = any(root.is_relative_to(path) for root in kept)
        # That of a file system of its own, which is emptied and not removed.
        return keeps_images or path.name == "lost+found"

    async def wipe(self) -> list[str]:
        """Take everything away; what failed, in words."""
        failures: list[str] = []

        async def step(what: str, work: Callable[[], Awaitable[object]]) -> None:
            try:
                await work()
            except PodwrightError as error:
                failures.append(f"{what}: {error}")
                _log.warning("cannot be wiped", what=what, error=error)

        for pod in self._pods.values():
            if pod.network_attached:
                await step(f"network of pod {pod.id}", partial(self._detach, pod))
        for pod_id in await self._network.held():
            await step(f"network of {pod_id}", partial(self._network.detach_lost, pod_id))
        seen = await self._sweeper.look()
        ids = seen.ids | self._containers.keys()
        # Containers before the pods whose namespaces they are in.
        for object_id in [*sorted(ids - self._pods.keys()), *self._pods]:
            await step(object_id, partial(self._sweeper.sweep, object_id))
        for group in sorted(self._groups, key=lambda path: -path.count("/")):
            await step(f"cgroup {group}", partial(self._sweeper.sweep_cgroup, group))
        await step("leases of images", self._release_leases)
        await step("files", lambda: asyncio.to_thread(self._remove_files))
        await step(f"cgroup /{NAME}", lambda: asyncio.to_thread(self._remove_own_group))
        failures += [
            f"{place}: something is mounted there that is not the daemon's, and was left alone"
            for place in await asyncio.to_thread(self._foreign)
            if not self._ground.holds_ours(place)
        ]
        # The records are gone: what is left is asked of the machine alone.
        self._pods, self._containers = {}, {}
        return failures

    async def _detach(self, pod: PodSandbox) -> None:
        attachment = make_attachment(pod, self._paths.pins(pod.id) / "net")
        await self._network.delete(
            attachment, config_json=pod.cni_config, result_json=pod.cni_result
        )

    async def _release_leases(self) -> None:
        if self._images_too or not (self._image_root / "catalog.db").exists():
            return
        try:
            await self._release_each_lease()
        except BaseExceptionGroup as failures:
            raise (planned_failure(failures) or failures) from failures

    async def _release_each_lease(self) -> None:
        settings = self._config.images()
        async with asyncio.TaskGroup() as group:
            images = ImageService(
                settings,
                RegistryClient(settings, clock=self._clock),
                self._runner,
                syscalls=self._syscalls,
                clock=self._clock,
                containers_dir=self._paths.layers,
            )
            await images.open(group)
            try:
                for key in await images.leases():
                    await images.release_rootfs(key)
            finally:
                await images.close()

    def _remove_files(self) -> None:
        """All of it is tried; the first failure is raised at the end."""
        failures: list[PodwrightError] = []
        for target in reversed(self._mounts()):
            try:
                mounts.unmount(target, syscalls=self._syscalls, clock=self._clock)
            except PodwrightError as error:
                failures.append(error)
        for path in self._files():
            try:
                self._remove(path)
            except PodwrightError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    @staticmethod
    def _remove(path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            remove_tree(path)
        else:
            with map_os_errors("cannot remove", path=str(path)):
                path.unlink(missing_ok=True)

    def _own_groups(self) -> list[Path]:
        """Our own group above pods without a parent, wherever nothing is in it.

        Something in it is another daemon's, with other directories.
        """
        found = [d for d in self._cgroups.layout.dirs(f"/{NAME}") if d.is_dir()]
        return [d for d in found if not any(entry.is_dir() for entry in d.iterdir())]

    def _remove_own_group(self) -> None:
        for directory in self._own_groups():
            # One that has processes of its own is somebody's, and busy.
            with suppress(OSError):
                directory.rmdir()


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except FileNotFoundError:
        return []


async def wipe_node(config: Config, *, images: bool, dry_run: bool, yes: bool) -> bool:
    """Carry out `podwright wipe`, telling a person; whether nothing is left.

    Raises:
        FailedPrecondition: the daemon runs.
        PodwrightError: as the kernel says.
    """
    async with Wiper(config, images=images) as wiper:
        before = await wiper.census()
        for line in before.lines():
            click.echo(line)
        if dry_run:
            _show("would go", before)
            return True
        if not yes:
            click.confirm("Remove all of this?", abort=True)
        for failure in await wiper.wipe():
            click.echo(f"Error: {failure}", err=True)
        after = await wiper.census()
        _show("left", after)
        if not after.lines():
            click.echo("nothing is left")
        return not after.lines()


def _show(what: str, remains: Remains) -> None:
    for kind, names in msgspec.structs.asdict(remains).items():
        for name in names:
            click.echo(f"{what}: {kind} {name}")
