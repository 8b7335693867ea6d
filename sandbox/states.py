"""States of pods and containers, and the table of what may follow what.

Container states (CRI ContainerState; CREATING and REMOVING are ours):

    CREATED ──start──► RUNNING ──process exited──► EXITED ──remove──► (gone)
       │                  └──lost track (recovery)──► UNKNOWN ──stop──► EXITED
       └──start failed / process exited / stop──► EXITED
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from sandbox.host.errors import FailedPrecondition

if TYPE_CHECKING:
    from collections.abc import Mapping


class PodState(enum.IntEnum):
    """CRI PodSandboxState as stored; CREATING and REMOVING objects are ours to finish or undo.

    Shown to clients: READY as READY, every other as NOTREADY; CREATING is not listed.
    """

    READY = 0
    NOT_READY = 1
    CREATING = 2
    REMOVING = 3


class ContainerState(enum.IntEnum):
    """CRI ContainerState; CREATING and REMOVING are ours (CREATING is not listed)."""

    CREATED = 0
    RUNNING = 1
    EXITED = 2
    UNKNOWN = 3
    CREATING = 4
    REMOVING = 5


class Event(enum.Enum):
    """What can happen to a container."""

    CREATE_COMPLETED = "create completed"
    STARTED = "started"
    START_FAILED = "start failed"
    PROCESS_EXITED = "process exited"
    TRACK_LOST = "track lost"
    REMOVE_BEGUN = "remove begun"


#: (state, event) -> state; a pair that is not here is refused. The picture is in the module text.
TRANSITIONS: Final[Mapping[tuple[ContainerState, Event], ContainerState]] = {
    (ContainerState.CREATING, Event.CREATE_COMPLETED): ContainerState.CREATED,
    (ContainerState.CREATING, Event.REMOVE_BEGUN): ContainerState.REMOVING,
    (ContainerState.CREATED, Event.STARTED): ContainerState.RUNNING,
    (ContainerState.CREATED, Event.START_FAILED): ContainerState.EXITED,
    (ContainerState.CREATED, Event.PROCESS_EXITED): ContainerState.EXITED,
    (ContainerState.CREATED, Event.TRACK_LOST): ContainerState.UNKNOWN,
    (ContainerState.CREATED, Event.REMOVE_BEGUN): ContainerState.REMOVING,
    (ContainerState.RUNNING, Event.PROCESS_EXITED): ContainerState.EXITED,
    (ContainerState.RUNNING, Event.TRACK_LOST): ContainerState.UNKNOWN,
    (ContainerState.UNKNOWN, Event.PROCESS_EXITED): ContainerState.EXITED,
    (ContainerState.UNKNOWN, Event.REMOVE_BEGUN): ContainerState.REMOVING,
    (ContainerState.EXITED, Event.REMOVE_BEGUN): ContainerState.REMOVING,
    (ContainerState.REMOVING, Event.REMOVE_BEGUN): ContainerState.REMOVING,
}


def next_state(state: ContainerState, event: Event, *, container: str) -> ContainerState:
    """The state after `event`; raises FailedPrecondition where the table has no such pair."""
    try:
        return TRANSITIONS[(state, event)]
    except KeyError:
        raise FailedPrecondition(
            f"container is in state {state.name}: {event.value} is not possible",
            container=container,
        ) from None
