"""What happens to pods and containers, told to every client that listens, in order, once.

    pod        CREATED STARTED ─────────────────────────────────────────── STOPPED DELETED
    container                  CREATED STARTED ── STOPPED DELETED

An event is a value with the pod and all its containers as of that moment; nothing of protobuf.

Exactly once, by construction: of each object the last thing told is kept, and only a step forward
is told. So the places that report need not know of each other: a stop that is repeated, a removal
that follows a stop, an exit that comes before the start has returned (its STARTED is told first)
all end in the same four events, and an object whose creation is undone in none.

Nothing waits for a client. Each has a queue of its own; one that does not read loses its oldest
events, which are counted, and nobody else's. Every event carries the whole status, so what is left
is still true. Nothing is kept for clients that are not there: they list first, as kubelets do.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from sandbox.host.journal import get_logger
from sandbox.states import ContainerState, PodState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from sandbox.host.clock import Clock
    from sandbox.model import Container, PodSandbox

#: Events kept for a client that is slow: those of a full node's pods, started all at once.
QUEUE_LIMIT: Final = 4096

_log = get_logger("events")


class EventType(enum.IntEnum):
    """CRI ContainerEventType; the numbers are the wire's, and their order is that of a life."""

    CREATED = 0
    STARTED = 1
    STOPPED = 2
    DELETED = 3


class ContainerEvent(msgspec.Struct, frozen=True, eq=False):
    """One event; `object_id` is the pod's own id for the pod. `containers` are all of the pod."""

    object_id: str
    type: EventType
    at_ns: int
    pod: PodSandbox
    containers: tuple[Container, ...]


class EventObserver(Protocol):
    """Told of what clients lost."""

    def events_dropped(self, count: int) -> None:
        """A client was too slow for `count` events."""
        ...


class Objects(Protocol):
    """What exists: `sandbox.store.StateStore`."""

    @property
    def pods(self) -> Mapping[str, PodSandbox]:
        """By id."""
        ...

    @property
    def containers(self) -> Mapping[str, Container]:
        """By id."""
        ...

    def containers_of(self, pod_id: str) -> Sequence[Container]:
        """Oldest first."""
        ...


class Events:
    """Tells events to subscribers; for the event loop's thread."""

    def __init__(
        self,
        objects: Objects,
        *,
        clock: Clock,
        observer: EventObserver,
        queue_limit: int = QUEUE_LIMIT,
    ) -> None:
        self._objects = objects
        self._clock = clock
        self._observer = observer
        self._queue_limit = queue_limit
        self._told: dict[str, EventType] = {}
        self._subscribers: set[Subscription] = set()
        self._on_stopped: list[Callable[[str], None]] = []
        self._closed = False

    def on_stopped(self, call: Callable[[str], None]) -> None:
        """Have `call` told the id of every pod and container that stops, before any client is."""
        self._on_stopped.append(call)

    # Reporting.

    def adopt(self) -> None:
        """Take what exists at start as told: clients list it."""
        for pod in self._objects.pods.values():
            if pod.pause is not None:
                ready = pod.state is PodState.READY
                self._told[pod.id] = EventType.STARTED if ready else EventType.STOPPED
        for container in self._objects.containers.values():
            if container.state is not ContainerState.CREATING and not container.failed:
                self._told[container.id] = _STAGES[container.state]

    def pod_started(self, pod: PodSandbox) -> None:
        """A pod was made and is ready."""
        self._tell(EventType.CREATED, pod.id, pod)
        self._tell(EventType.STARTED, pod.id, pod)

    def pod_stopped(self, pod: PodSandbox) -> None:
        """A pod is ready no more, and what was stopped with it is stopped."""
        self._tell(EventType.STOPPED, pod.id, self._objects.pods.get(pod.id, pod))

    def pod_deleted(self, pod: PodSandbox) -> None:
        """A pod's record is gone; `pod` is its last value."""
        self.pod_stopped(pod)
        self._tell(EventType.DELETED, pod.id, pod)

    def container_created(self, container: Container) -> None:
        """A container was made."""
        self._tell_of(EventType.CREATED, container)

    def container_started(self, container: Container) -> None:
        """A container's program was started."""
        self._tell_of(EventType.STARTED, container)

    def container_stopped(self, container: Container) -> None:
        """The end of a container was recorded."""
        if container.start_begun_ns and container.reason != "StartError":
            self._tell_of(EventType.STARTED, container)
        self._tell_of(EventType.STOPPED, container)

    def container_deleted(self, container: Container) -> None:
        """A container's record is gone; `container` is its last value."""
        if self._told.get(container.id) is EventType.STARTED:
            self._tell_of(EventType.STOPPED, container)
        self._tell_of(EventType.DELETED, container)

    def _tell_of(self, type_: EventType, container: Container) -> None:
        pod = self._objects.pods.get(container.pod_id)
        if pod is not None:
            self._tell(type_, container.id, pod)
        elif type_ is EventType.DELETED:
            self._told.pop(container.id, None)

    def _tell(self, type_: EventType, object_id: str, pod: PodSandbox) -> None:
        told = self._told.get(object_id)
        first = type_ is EventType.CREATED
        if first != (told is None) or (told is not None and type_ <= told):
            return
        if type_ is EventType.DELETED:
            del self._told[object_id]
        else:
            self._told[object_id] = type_
        if type_ is EventType.STOPPED:
            for call in self._on_stopped:
                call(object_id)
        if not self._subscribers:
            return
        containers = self._objects.containers_of(pod.id)
        event = ContainerEvent(
            object_id,
            type_,
            self._clock.wall_ns(),
            pod,
            tuple(c for c in containers if c.state is not ContainerState.CREATING),
        )
        for subscriber in self._subscribers:
            if not subscriber.push(event):
                self._observer.events_dropped(1)

    # Listening.

    @property
    def subscribers(self) -> int:
        """How many clients listen."""
        return len(self._subscribers)

    def subscribe(self) -> Subscription:
        """Everything that happens from now on; a context manager, and iterated over inside it."""
        return Subscription(self, self._queue_limit)

    def join(self, subscriber: Subscription) -> None:
        """Begin to tell `subscriber`; called by itself."""
        if self._closed:
            subscriber.end()
        else:
            self._subscribers.add(subscriber)

    def leave(self, subscriber: Subscription) -> None:
        """End telling it; called by itself."""
        self._subscribers.discard(subscriber)

    def close(self) -> None:
        """End all subscriptions, those to come too: a daemon that stops must not wait for them."""
        self._closed = True
        for subscriber in list(self._subscribers):
            subscriber.end()


class Subscription:
    """One client's events. `lost` counts those it was too slow for."""

    def __init__(self, events: Events, limit: int) -> None:
        self.lost = 0
        self._events = events
        self._limit = limit
        self._queue: deque[ContainerEvent] = deque()
        self._wake = asyncio.Event()
        self._ended = False

    def __enter__(self) -> Subscription:
        self._events.join(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._events.leave(self)

    def push(self, event: ContainerEvent) -> bool:
        """Queue an event; False when the oldest one had to go for it."""
        self._queue.append(event)
        self._wake.set()
        if len(self._queue) <= self._limit:
            return True
        self._queue.popleft()
        self.lost += 1
        if self.lost == 1:
            _log.warning("a client does not read its events and loses some", queued=self._limit)
        return False

    def end(self) -> None:
        """No more events; what is queued is still given."""
        self._ended = True
        self._wake.set()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> ContainerEvent:
        while not self._queue:
            if self._ended:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return self._queue.popleft()


#: What a container's state says about what was told of it in an earlier life of the daemon.
_STAGES: Final[Mapping[ContainerState, EventType]] = {
    ContainerState.CREATED: EventType.CREATED,
    ContainerState.RUNNING: EventType.STARTED,
    ContainerState.UNKNOWN: EventType.STARTED,
    ContainerState.EXITED: EventType.STOPPED,
    ContainerState.REMOVING: EventType.STOPPED,
}
