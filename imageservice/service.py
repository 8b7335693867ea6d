"""The façade that `cri` sees: pull, list, status, remove, usage, containers' root file systems.

    images = ImageService(settings, source, runner, syscalls=..., clock=..., containers_dir=...)
    async with asyncio.TaskGroup() as group:
        await images.open(group)
        image = await images.pull("busybox:1", credential, on_progress=bar)
        mounts = await images.prepare_rootfs(cid, image.id, upper_dir=..., work_dir=...)
        ...
        await images.release_rootfs(cid)
        await images.remove("busybox:1")
        await images.close()

`list` and `status` are plain lookups (see `inventory`).
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

from imageservice.catalog import open_database
from imageservice.content import ContentStore
from imageservice.errors import ImageNotFound
from imageservice.flights import Flights
from imageservice.images import Image
from imageservice.keyrings import NodeKeyrings
from imageservice.manifest import Platform
from imageservice.parts import Given, open_parts
from imageservice.progress import Progress, PullObserver, SilentObserver, Stage, measured
from imageservice.reference import parse_reference
from imageservice.unpack.pool import UnpackPool
from imageservice.usage import FsInfo
from sandbox.host.errors import DiskFull
from sandbox.host.files import make_private_dir
from sandbox.host.threads import in_one_piece

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from imageservice.catalog import ImageRecord
    from imageservice.credentials import Credential, Keyring
    from imageservice.digest import Digest
    from imageservice.pull import Pulled
    from imageservice.reference import Reference
    from imageservice.registry.source import ImageSource
    from imageservice.settings import ImageSettings
    from imageservice.snapshots.snapshotter import MappedRoot
    from imageservice.trust.gate import Found
    from sandbox.host.clock import Clock
    from sandbox.host.database import Database
    from sandbox.host.mounts import Mount
    from sandbox.host.processes import ProcessRunner
    from sandbox.host.syscalls import Syscalls

__all__ = ["FsInfo", "Image", "ImageService", "Progress", "PullObserver", "Stage"]

_NS: Final = 1_000_000_000
_MAX_WORKERS: Final = 4


class ImageService:
    """See the module's text. All methods are for one event loop."""

    def __init__(
        self,
        settings: ImageSettings,
        source: ImageSource,
        runner: ProcessRunner,
        *,
        syscalls: Syscalls,
        clock: Clock,
        containers_dir: Path,
        observer: PullObserver | None = None,
        platform: Platform | None = None,
    ) -> None:
        """Nothing is touched before `open`.

        Args:
            settings: what the operator may set.
            source: the registries; closed with the service.
            runner: starts unpack workers and credential helpers.
            syscalls: the kernel.
            clock: durations and stamps.
            containers_dir: where containers' writable directories are, to be measured.
            observer: hears how pulls went.
            platform: what to choose from an index; this machine's by default.
        """
        self._settings = settings
        self._source = source
        self._runner = runner
        self._syscalls = syscalls
        self._clock = clock
        self._observer = observer or SilentObserver()
        self._platform = platform or Platform.host()
        self._containers_dir = containers_dir
        self._content = ContentStore(settings.root)
        self._keyrings = NodeKeyrings(settings, runner)
        self._pool = UnpackPool(
            runner,
            workers=settings.unpack_workers or min(_MAX_WORKERS, os.cpu_count() or 1),
            idle_s=settings.unpack_idle_s,
            no_progress_timeout_s=settings.unpack_progress_timeout_s,
        )

    async def open(self, group: asyncio.TaskGroup) -> None:
        """Bring what is on disk and what is recorded to agree; then everything may be called.

        Args:
            group: where pulls run; it must outlive the service.

        Raises:
            Unsupported, FailedPrecondition: this host cannot keep images at that place.
            Busy: another daemon uses the directory.
            PodwrightError: as the kernel says.
        """
        root = self._settings.root
        await asyncio.to_thread(make_private_dir, root)
        await self._content.open()
        self._database = await open_database(root / "catalog.db", clock=self._clock)
        try:
            await self._open_on(self._database, group)
        except BaseException:
            await self._database.close()
            raise

    async def _open_on(self, database: Database, group: asyncio.TaskGroup) -> None:
        given = Given(
            settings=self._settings,
            source=self._source,
            runner=self._runner,
            syscalls=self._syscalls,
            clock=self._clock,
            containers_dir=self._containers_dir,
            observer=self._observer,
            platform=self._platform,
            content=self._content,
            keyrings=self._keyrings,
            pool=self._pool,
            mender=self,
        )
        parts = await open_parts(database, group, given)
        self.stores, self.inventory = parts.stores, parts.inventory
        self.loader, self.saver, self.verifier = parts.loader, parts.saver, parts.verifier
        self._holdings, self._snapshots = parts.holdings, parts.snapshots
        self._puller, self._sweeper = parts.puller, parts.sweeper
        self._usage, self._gate, self.storage = parts.usage, parts.gate, parts.storage
        self._pulls: Flights[Image, Progress] = Flights(group, "image pull")

    @property
    def reports(self) -> Mapping[str, Callable[[], object]]:
        """Facts for verbose status, by name."""
        return {"stores": self.stores.report, "storage": self.storage.report}

    async def close(self) -> None:
        """End workers, connections and the database, in order; pulls were called off before.

        An orderly end is recorded: layers need no check at the next start.
        """
        self._sweeper.close()
        await self._pool.close()
        await self._source.close()
        try:
            await self._snapshots.close()
        finally:
            await self._database.close()

    async def pull(
        self,
        image: str,
        credential: Credential | None,
        *,
        namespace: str = "",
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Image:
        """Have the image on this node under the name asked for.

        The same reference asked for with the same credential is one pull; different names of one
        manifest share its download. Cancelling a caller ends its waiting, and the work with the
        last caller.

        Args:
            image: a reference, short forms allowed.
            credential: for the registry that the reference names; see `keyrings` for the node's.
            namespace: of the pod it is for; may have credentials and a policy of its own.
            on_progress: hears of each layer, on the event loop; must be quick.

        Raises:
            ReferenceInvalid: not a reference.
            ImageNotFound, PlatformNotFound: there is no such image (for this machine).
            RegistryUnavailable, RegistryUnauthenticated, RegistryDenied, RegistryThrottled: as the
                registry says.
            AuthFileInvalid: the file of credentials that counts for it cannot be used.
            RegistryBlocked, SignatureValidationFailed: the operator does not want it here.
            DigestMismatch, SizeMismatch, ManifestInvalid, Corrupt: it is not what it says it is.
            ImageUnsupported, Unsupported: not a kind of image that can be run here.
            ResourceExhausted: no space, or a limit of the settings.
            DeadlineExceeded: the registry or a worker made no progress.
        """
        reference = parse_reference(image)
        began_ns = self._clock.monotonic_ns()
        failure: BaseException | None = None
        try:
            async with self._keyrings.of_pull(reference, namespace, credential) as keyring:
                rights = "" if keyring is None else keyring.fingerprint
                return await self._pulls.join(
                    (reference, rights, self._gate.party(namespace)),
                    lambda emit: self._pull(reference, keyring, namespace, emit),
                    on_progress,
                )
        except BaseException as error:
            failure = error
            raise
        finally:
            duration_s = (self._clock.monotonic_ns() - began_ns) / _NS
            self._observer.pull_ended(duration_s=duration_s, error=failure)

    async def _pull(
        self,
        reference: Reference,
        credential: Keyring | None,
        namespace: str,
        emit: Callable[[Progress], None],
    ) -> Image:
        await self._sweeper.partials()
        await self._gate.admit_name(reference, namespace)
        with measured(self._observer, "resolve", self._clock):
            named, digest, body, manifest = await self._puller.resolve(reference, credential)
        signatures = await self._gate.admit_pull(reference, named, digest, credential, namespace)
        try:
            with self._puller.holding(digest):
                pulled = await self._puller.fetch(
                    reference, credential, digest, body, manifest, emit
                )
                # An image whose signatures were not kept could not be run where it was called off.
                return await in_one_piece(self._keep(reference, named, pulled, signatures))
        except BaseException as error:
            if isinstance(error, DiskFull):
                # What was fetched and unpacked for nothing is in the way of everybody else. Only
                # then: an image beyond a limit takes nobody's room.
                await in_one_piece(self._make_room())
            else:
                self._sweeper.later()
            raise
        finally:
            self._usage.changed()

    async def _make_room(self) -> None:
        """Remove all rests of pulls, those too of layers that end because another one failed."""
        await self._puller.settle()
        await self._sweeper.partials(older_than_s=0.0)
        await self._sweep_layers(rests_too=True)

    async def _keep(
        self, reference: Reference, named: Digest, pulled: Pulled, signatures: Found
    ) -> Image:
        image = await self._name(reference, named, pulled)
        self._sweeper.named(pulled.chain)
        await self._gate.keep(reference, signatures)
        return image

    async def _name(self, reference: Reference, named: Digest, pulled: Pulled) -> Image:
        names = [str(reference.with_digest(named))]
        if reference.digest is None and reference.tagged is not None:
            names.append(reference.tagged)
        return await self.inventory.add_pulled(pulled, names, created_ns=self._clock.wall_ns())

    def list(self, filter_image: str = "") -> list[Image]:
        """All images, our own first and oldest first, or the one that `filter_image` means."""
        if filter_image:
            image = self.status(filter_image)
            return [] if image is None else [image]
        return self._holdings.list()

    def status(self, image: str) -> Image | None:
        """The image by tag, digest, id, unique beginning of an id, or short name."""
        return self._holdings.find(image)

    async def remove(self, image: str) -> None:
        """Remove the image with all its names and free the space; an unknown one is fine.

        An image in use is removed as well, as the CRI demands; the layers that containers run on
        or have mounted as volumes stay until their `release_rootfs`.

        Raises:
            FailedPrecondition: only a read-only additional store has it.
            ResourceExhausted: a full disk could not record it even after space was freed.
        """
        await in_one_piece(self._forget(self._holdings.own_id(image), None))

    async def forget(self, record: ImageRecord) -> bool:
        """Remove an image unless it was pulled again since it had this record; whether it was.

        Raises:
            ResourceExhausted: see `remove`.
        """
        return await in_one_piece(self._forget(record.id, record))

    async def _forget(self, image: str, only: ImageRecord | None) -> bool:
        """Rows, memory and files, which who is called off in between must not leave apart."""
        known = await self.inventory.remove(image, free_space=self._sweep_layers, only=only)
        if known or only is None:
            await self._gate.sweep()
        return known

    async def pin(self, image: str, *, pinned: bool) -> Image:
        """Keep the kubelet's garbage collection from the image, or no longer; see `Inventory`.

        Raises:
            ImageNotFound: no such image.
            FailedPrecondition: only a read-only additional store has it, which pins it for good.
        """
        found = self._holdings.find(image)
        if found is not None and not found.own and pinned:
            return found
        return await self.inventory.pin(self._holdings.own_id(image), pinned=pinned)

    async def fs_info(self) -> FsInfo:
        """What images and containers take, at most ten seconds old; see `UsageMeter.read`."""
        return await self._usage.read()

    async def admit(self, image_id: str, asked: str, namespace: str) -> None:
        """Ask the operator's policy before a container is made, however the image came here.

        Args:
            image_id: `Image.id`.
            asked: what the pod's author called it; an id or "" where that is not known.
            namespace: of the pod.

        Raises:
            ImageNotFound: no such image on this node.
            SignatureValidationFailed: the policy does not let it be run.
        """
        record = self._holdings.record(image_id)
        if record is None:
            raise ImageNotFound("image is not on this node", image=image_id)
        names = (*record.tags, *record.digests)
        await self._gate.admit_use(asked, names, record.manifest, namespace)

    async def prepare_rootfs(
        self,
        key: str,
        image_id: str,
        *,
        upper_dir: Path,
        work_dir: Path,
        read_only: bool = False,
        mapped: MappedRoot | None = None,
    ) -> tuple[Mount, ...]:
        """Hold the image's layers under `key` and say how to mount them.

        The last mount's target is `Path()`, for the caller to replace. Nothing is mounted here.

        Args:
            key: the container's id; `ID/NAME` for a further image that it has as a volume.
            image_id: `Image.id`.
            upper_dir: for the container's writes.
            work_dir: overlayfs' own, on the same file system; made anew.
            read_only: without upper directory; nothing can ever be written, not even mount points.
            mapped: for a user namespace; the mounts before the last are then for its making only.

        Raises:
            ImageNotFound: no such image on this node.
            Unavailable: an additional store that has layers of it is gone.
            ResourceExhausted: disk full.
        """
        record = self._holdings.record(image_id)
        if record is None:
            raise ImageNotFound("image is not on this node", image=image_id)
        dirs = {"upper_dir": upper_dir, "work_dir": work_dir}
        return await self._snapshots.prepare(
            key, record.chain, **dirs, read_only=read_only, mapped=mapped
        )

    async def release_rootfs(self, key: str) -> None:
        """Give up what a container holds; unmount first. An unknown key is fine.

        Its root file system and its volumes; layers that only they kept are removed.

        Args:
            key: the container's id.

        Raises:
            ResourceExhausted: disk full.
        """
        for held in list(self._snapshots.leases()):
            if held == key or held.startswith(f"{key}/"):
                await self._snapshots.release(held)
        await self._sweep_layers()

    async def leases(self) -> set[str]:
        """Ids of all containers that hold layers, also those of earlier daemons."""
        return {key.partition("/")[0] for key in self._snapshots.leases()}

    async def _sweep_layers(self, *, rests_too: bool = False) -> None:
        if await self._sweeper.layers(rests_too=rests_too):
            self._usage.changed()
