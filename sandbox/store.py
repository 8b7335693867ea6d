"""What the daemon knows about pods and containers: memory for reading, SQLite for surviving.

Every object is one row with its whole document (JSON of the `model` value) plus the columns that
must be unique or searchable before a document can be trusted: id, name, pod. Names are UNIQUE in
the database, so two creations of one pod cannot both win, not even across a crash. Reads never
touch the disk. A write is one transaction that is on disk before memory changes, with two
exceptions: what the kernel has already done (an exit, a start) is noted in memory first
(`note_*`), because a full disk must not make the daemon deny that a process ended; such notes are
written again later. And where a write begins something (`then`), its end may be noted first.

What was stored is read by `sandbox.stored`, which puts aside what cannot be read; a whole database
that is lost is begun anew from its backup and the second copies (`sandbox.statefile`).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from sandbox import rows
from sandbox.host.clock import SystemClock
from sandbox.host.errors import AlreadyExists, PodwrightError
from sandbox.host.journal import get_logger
from sandbox.host.threads import in_one_piece
from sandbox.model import Container, PodSandbox, container_name_key, pod_name_key
from sandbox.prefixes import by_prefix
from sandbox.statefile import Backups, made_again, open_state
from sandbox.states import ContainerState, PodState
from sandbox.stored import read_stored
from sandbox.writing import Sequel, deleting, inserting, updating

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from sandbox.host.clock import Clock
    from sandbox.records import Records
    from sandbox.statefile import Opened
    from sandbox.stored import Stored

    Object = PodSandbox | Container
    Then = Callable[[], Object | None] | None

#: Removed objects that are remembered for the sweep; more are removed in a minute by nobody.
DEPARTED_LIMIT: Final = 4096

_log = get_logger("store")


class StateStore:
    """All pods and containers of this node."""

    def __init__(
        self, opened: Opened, path: Path, records: Records | None, clock: Clock | None = None
    ) -> None:
        """Use `open`."""
        self._opened = opened
        self._database = opened.database
        self._records = records
        self._backups = Backups(opened.database, path, clock or SystemClock())
        self._quarantined = 0
        self._adopted: Mapping[str, int] = {}
        self._pods: dict[str, PodSandbox] = {}
        self._containers: dict[str, Container] = {}
        self._pod_names: dict[str, str] = {}
        self._container_names: dict[str, str] = {}
        self._by_pod: dict[str, set[str]] = {}
        self._unwritten: dict[str, Object] = {}
        #: How often something was noted, by id.
        self._notes: dict[str, int] = {}
        #: Cgroup of what was removed in this life, by id, until a sweep has looked for it.
        self.departed: dict[str, str] = {}

    @classmethod
    async def open(
        cls, path: Path, records: Records | None = None, *, clock: Clock | None = None
    ) -> StateStore:
        """Open or make the state file and load everything; see `sandbox.statefile`.

        Args:
            path: the database.
            records: second copies of the records, from which lost rows are made again.
            clock: stamps backups.

        Raises:
            FailedPrecondition: the file was written by a newer schema.
        """
        restarted = records is not None and not await asyncio.to_thread(records.open)
        opened = await open_state(path)
        store = cls(opened, path, records, clock)
        try:
            rebuilt = bool(opened.lost)
            store._take(
                await read_stored(opened.database, records, rebuilt=rebuilt, restarted=restarted)
            )
            await asyncio.to_thread(made_again, path)
        except BaseException:
            await opened.database.close()
            raise
        return store

    async def close(self) -> None:
        """Write what is still unwritten, then close the file."""
        await self.flush()
        await self._database.close()

    async def back_up(self, *, always: bool = False) -> None:
        """Keep a copy of the file; see `sandbox.statefile.Backups`."""
        await self._backups.make(always=always)

    def report(self) -> dict[str, object]:
        """How the stored state is, as JSON values."""
        return {
            "lost": self._opened.lost,
            "aside": self._opened.aside,
            "begunFrom": self._opened.backup,
            "adopted": self._adopted,
            "quarantined": self._quarantined,
            "unwritten": len(self._unwritten),
            **self._backups.report(),
        }

    # Reading: memory only.

    @property
    def pods(self) -> Mapping[str, PodSandbox]:
        """All pods by id, those being created or removed too."""
        return self._pods

    @property
    def containers(self) -> Mapping[str, Container]:
        """All containers by id, those being created or removed too."""
        return self._containers

    def pod_named(self, key: str) -> PodSandbox | None:
        """The pod that holds the name `key` (see `model.pod_name_key`)."""
        pod_id = self._pod_names.get(key)
        return self._pods.get(pod_id) if pod_id is not None else None

    def container_named(self, key: str) -> Container | None:
        """The container that holds the name `key` (see `model.container_name_key`)."""
        container_id = self._container_names.get(key)
        return self._containers.get(container_id) if container_id is not None else None

    def containers_of(self, pod_id: str) -> list[Container]:
        """The containers of a pod, oldest first."""
        mine = (self._containers[cid] for cid in self._by_pod.get(pod_id, ()))
        return sorted(mine, key=lambda c: (c.created_at_ns, c.id))

    def find_pod(self, pod_id: str) -> PodSandbox:
        """The pod with this id or unique id prefix, if it is one that clients may see.

        Raises:
            NotFound: no such pod.
            InvalidArgument: the id is empty, or the prefix fits several.
        """
        pod = self._pods.get(pod_id)
        if pod is None or pod.state is PodState.CREATING:
            visible = {k: v for k, v in self._pods.items() if v.state is not PodState.CREATING}
            pod = by_prefix(visible, pod_id, "pod sandbox")
        return pod

    def find_container(self, container_id: str) -> Container:
        """The container with this id or unique id prefix, if it is one that clients may see.

        Raises:
            NotFound: no such container.
            InvalidArgument: the id is empty, or the prefix fits several.
        """
        container = self._containers.get(container_id)
        if container is None or container.state is ContainerState.CREATING:
            visible = {
                k: v for k, v in self._containers.items() if v.state is not ContainerState.CREATING
            }
            container = by_prefix(visible, container_id, "container")
        return container

    # Writing: on disk before memory changes.

    async def add_pod(self, pod: PodSandbox) -> None:
        """Record a new pod; raises AlreadyExists naming the holder when its name is taken.

        Not synced, as with `add_container`; what plugins leave on disk is owed by a record of its
        own, which is.
        """
        key = pod_name_key(pod.config.metadata)
        holder = self._pod_names.get(key)
        if holder is not None:
            raise AlreadyExists(f"pod sandbox name {key} is taken", pod=holder)
        self._pod_names[key] = pod.id  # before the await: the second caller must see it
        try:
            await self._insert(pod, synced=False)
        except BaseException:
            self._pod_names.pop(key, None)
            self._forget_record(PodSandbox, pod.id)
            raise
        self._pods[pod.id] = pod

    async def add_container(self, container: Container) -> None:
        """Record a new container; raises AlreadyExists when its name is taken.

        Not synced: a power failure leaves only files of it, which `sandbox.sweep` finds by name.
        """
        config = container.config
        key = container_name_key(container.pod_id, config.name, config.attempt)
        holder = self._container_names.get(key)
        if holder is not None:
            raise AlreadyExists(f"container name {key} is taken", container=holder)
        self._container_names[key] = container.id
        try:
            await self._insert(container, synced=False)
        except BaseException:
            self._container_names.pop(key, None)
            self._forget_record(Container, container.id)
            raise
        self._containers[container.id] = container
        self._by_pod.setdefault(container.pod_id, set()).add(container.id)

    async def save(self, value: Object, *, synced: bool = True, then: Then = None) -> None:
        """Record a new value, as `Database.write`; what was removed, or noted meanwhile, stays.

        What `then` gives has happened, and is recorded as by `note`, in the same way to the disk.
        """
        before = self._current(value.id)
        if before is None:
            return
        if then is not None:
            self._remember(value)  # what it begins may end, and that be noted, before we are back
        notes = self._notes.get(value.id)
        # A note that did not reach the disk before must not do so after this.
        older = self._unwritten.pop(value.id, None)
        sequel = None if then is None else Sequel(then, self._records)
        try:
            await self._update([value], synced=synced, then=sequel)
        except BaseException:
            if self._current(value.id) is value:
                self._remember(before)
            if older is not None and self._current(value.id) is not None:
                self._unwritten.setdefault(value.id, older)
            raise
        if self._notes.get(value.id) != notes:
            return
        if sequel is None or sequel.value is None:
            self._remember(value)
            return
        self._remember(sequel.value)
        self._notes[value.id] = (notes or 0) + 1
        if sequel.unwritten:
            self._unwritten[value.id] = sequel.value

    async def note(self, value: Object, *, synced: bool = True) -> None:
        """Record what has already happened: memory at once, disk now or by a later `flush`.

        `synced` or not, as `Database.write` says.
        """
        if self._current(value.id) is None:
            return
        self._remember(value)
        self._unwritten[value.id] = value
        self._notes[value.id] = self._notes.get(value.id, 0) + 1
        # What other notes need is not known here.
        await self.flush(synced=synced or len(self._unwritten) > 1)

    async def flush(self, *, copies: bool = False, synced: bool = True) -> None:
        """Write the notes that have not reached the disk; a failure is logged, they are kept.

        With `copies`, the second copies that could not be written as well.
        """
        wanted: dict[str, Object] = {}
        if copies and self._records is not None:
            for object_id in self._records.older:
                known = self._current(object_id)
                if known is not None:
                    wanted[object_id] = known
        waiting = list((wanted | self._unwritten).values())
        if not waiting:
            return
        try:
            await self._update(waiting, synced=synced)
        except PodwrightError as error:
            _log.warning(
                "state not written, kept for later", objects=len(waiting), error=str(error)
            )
            return
        for value in waiting:
            if self._unwritten.get(value.id) is value:
                del self._unwritten[value.id]

    async def delete_pod(self, pod_id: str) -> None:
        """Forget a pod and free its name; the last step of its removal."""
        await in_one_piece(self._delete_pod(pod_id))

    async def _delete_pod(self, pod_id: str) -> None:
        await self._delete(PodSandbox, pod_id)
        pod = self._pods.pop(pod_id, None)
        if pod is not None:
            self._depart(pod)
            self._pod_names.pop(pod_name_key(pod.config.metadata), None)

    async def delete_container(self, container_id: str) -> None:
        """Forget a container and free its name; the last step of its removal."""
        await in_one_piece(self._delete_container(container_id))

    async def _delete_container(self, container_id: str) -> None:
        await self._delete(Container, container_id)
        container = self._containers.pop(container_id, None)
        if container is not None:
            config = container.config
            key = container_name_key(container.pod_id, config.name, config.attempt)
            self._container_names.pop(key, None)
            self._depart(container)
            siblings = self._by_pod.get(container.pod_id, set())
            siblings.discard(container_id)
            if not siblings:
                self._by_pod.pop(container.pod_id, None)

    async def read_meta(self, key: str) -> str:
        """A node-wide value such as the boot id of the last start; empty when never written."""
        return await self._database.read(lambda db: rows.read_meta(db, key))

    async def write_meta(self, key: str, value: str) -> None:
        """Record a node-wide value."""
        await self._database.write(lambda db: rows.write_meta(db, key, value))

    # Inside.

    def _depart(self, value: Object) -> None:
        self._unwritten.pop(value.id, None)
        self._notes.pop(value.id, None)
        self.departed[value.id] = value.cgroup_path
        while len(self.departed) > DEPARTED_LIMIT:
            del self.departed[next(iter(self.departed))]

    def _current(self, object_id: str) -> Object | None:
        return self._pods.get(object_id) or self._containers.get(object_id)

    def _remember(self, value: Object) -> None:
        if isinstance(value, PodSandbox):
            if value.id in self._pods:
                self._pods[value.id] = value
        elif value.id in self._containers:
            self._containers[value.id] = value

    async def _update(
        self, values: Iterable[Object], *, synced: bool, then: Sequel | None = None
    ) -> None:
        self._backups.changed = True
        work = updating(values, self._records)
        # A change of what exists may use the space that is kept for cleaning up.
        await self._database.write(work, cleanup=True, synced=synced, then=then)

    async def _insert(self, value: Object, *, synced: bool = True) -> None:
        self._backups.changed = True
        try:
            await self._database.write(inserting(value, self._records), synced=synced)
        except asyncio.CancelledError:
            # The transaction may go on. What is given to its thread now comes after it.
            with suppress(PodwrightError):
                await in_one_piece(self._delete(type(value), value.id))
            raise

    async def _delete(self, kind: type[PodSandbox] | type[Container], object_id: str) -> None:
        self._backups.changed = True
        await self._database.write(deleting(kind, object_id, self._records), cleanup=True)

    def _forget_record(self, kind: type[PodSandbox] | type[Container], object_id: str) -> None:
        if self._records is not None:
            self._records.remove(kind, object_id)

    def _take(self, stored: Stored) -> None:
        self._adopted, self._quarantined = stored.adopted, stored.quarantined
        for pod in stored.pods.values():
            self._pods[pod.id] = pod
            self._pod_names[pod_name_key(pod.config.metadata)] = pod.id
        for container in stored.containers.values():
            self._containers[container.id] = container
            config = container.config
            key = container_name_key(container.pod_id, config.name, config.attempt)
            self._container_names[key] = container.id
            self._by_pod.setdefault(container.pod_id, set()).add(container.id)
