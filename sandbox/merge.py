"""What is true where the rows of the database and the second copies of the records disagree. Pure.

| row                 | copy          | then                                                   |
|---------------------|---------------|--------------------------------------------------------|
| there               | none          | the row; a copy is made (an older daemon wrote it)     |
| there               | there         | the row; a copy that says something else is made anew  |
| CREATING            | further along | the copy: the transaction that said so was lost, and   |
|                     |               | what runs must not be undone as half-made              |
| none, or unreadable | there         | the copy                                               |
| none, or unreadable | set back      | the copy: old, and better than nothing                 |

After the database was lost, rows come from a backup, which is older than any copy: then the copy is
true where there is one. It is not where it was set back, because a later one could not be written
(`sandbox.records`), nor where it has the object at an earlier point of its life than the row: lives
go one way only, so that copy is the older one. A row without any copy is of an object that was
removed after the backup, unless the node was restarted: then there are no copies, and the backup is
all that is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from sandbox.model import Container, PodSandbox, container_name_key, pod_name_key
from sandbox.states import ContainerState, PodState

if TYPE_CHECKING:
    from collections.abc import Mapping

V = TypeVar("V", PodSandbox, Container)

Objects = tuple[dict[str, PodSandbox], dict[str, Container]]

#: The order of a life; UNKNOWN is on the way from running to ended.
_POD_LIFE: Final = (PodState.CREATING, PodState.READY, PodState.NOT_READY, PodState.REMOVING)
_CONTAINER_LIFE: Final = (
    ContainerState.CREATING,
    ContainerState.CREATED,
    ContainerState.RUNNING,
    ContainerState.UNKNOWN,
    ContainerState.EXITED,
    ContainerState.REMOVING,
)


@dataclass(frozen=True, slots=True)
class Merged:
    """The outcome.

    Attributes:
        pods, containers: what is true, by id.
        write: values whose rows must be made (again).
        erase: ids whose rows must go first.
        copy: values whose second copy must be made, or made anew.
        adopted: how many were taken from copies, and how many rows were dropped, for people.
    """

    pods: dict[str, PodSandbox]
    containers: dict[str, Container]
    write: list[PodSandbox | Container]
    erase: list[str]
    copy: list[PodSandbox | Container]
    adopted: dict[str, int]


def merged(
    rows: Objects,
    copies: Objects,
    *,
    rebuilt: bool,
    restarted: bool,
    set_back: Objects | None = None,
) -> Merged:
    """What is true.

    Args:
        rows: of the database.
        copies: beside it.
        rebuilt: the rows are of a backup.
        restarted: a boot took the copies.
        set_back: copies that are known to be older than the last change of their object.
    """
    drop = rebuilt and not restarted
    old = set_back or ({}, {})
    pods, pod_write, pod_gone = _choose(rows[0], copies[0], old[0], newer=rebuilt, drop=drop)
    containers, write, gone = _choose(rows[1], copies[1], old[1], newer=rebuilt, drop=drop)
    unique_pods = _one_for_each_name(pods, copies[0])
    unique_containers = _one_for_each_name(containers, copies[1])
    values: list[PodSandbox | Container] = [*unique_pods.values(), *unique_containers.values()]
    chosen = {*pod_write, *write}
    present = rows[0].keys() | rows[1].keys()
    known = unique_pods.keys() | unique_containers.keys()
    dropped = {*pod_gone, *gone, *(present - known)}
    adopted = {"adopted": len(chosen & known), "dropped": len(dropped)}
    return Merged(
        pods=unique_pods,
        containers=unique_containers,
        write=[value for value in values if value.id in chosen],
        erase=sorted(chosen | dropped),
        copy=[v for v in values if v not in (copies[0].get(v.id), copies[1].get(v.id))],
        adopted={key: number for key, number in adopted.items() if number},
    )


def _choose(
    rows: Mapping[str, V],
    copies: Mapping[str, V],
    set_back: Mapping[str, V],
    *,
    newer: bool,
    drop: bool,
) -> tuple[dict[str, V], set[str], set[str]]:
    """(what is true, ids taken from copies, ids of dropped rows)."""
    true = dict(rows)
    taken = set()
    for object_id, copy in copies.items():
        row = rows.get(object_id)
        wins = row is None or _further(row, copy) or (newer and not _behind(copy, row))
        if wins and row != copy:
            true[object_id] = copy
            taken.add(object_id)
    for object_id, copy in set_back.items():
        if object_id not in true:
            true[object_id] = copy
            taken.add(object_id)
    kept = copies.keys() | set_back.keys()
    dropped = {object_id for object_id in rows if object_id not in kept} if drop else set()
    for object_id in dropped:
        del true[object_id]
    return true, taken, dropped


def _further(row: PodSandbox | Container, copy: PodSandbox | Container) -> bool:
    making = (PodState.CREATING, ContainerState.CREATING)
    return _is(row, making) and not _is(copy, making)


def _behind(one: PodSandbox | Container, other: PodSandbox | Container) -> bool:
    """Whether `one` has the object at an earlier point of its life."""
    return _point(one) < _point(other)


def _point(value: PodSandbox | Container) -> int:
    if isinstance(value, PodSandbox):
        return _POD_LIFE.index(value.state)
    return _CONTAINER_LIFE.index(value.state)


def _is(value: PodSandbox | Container, states: tuple[PodState, ContainerState]) -> bool:
    # Numbers of the two kinds overlap: compare within the kind.
    return value.state is (states[0] if isinstance(value, PodSandbox) else states[1])


def _one_for_each_name(values: Mapping[str, V], copies: Mapping[str, V]) -> dict[str, V]:
    """One object for each name, which the database demands: rather one that has a copy."""
    chosen: dict[str, V] = {}
    for value in sorted(values.values(), key=lambda v: (v.id in copies, v.created_at_ns)):
        chosen[_name(value)] = value
    return {value.id: value for value in chosen.values()}


def _name(value: PodSandbox | Container) -> str:
    if isinstance(value, PodSandbox):
        return pod_name_key(value.config.metadata)
    return container_name_key(value.pod_id, value.config.name, value.config.attempt)
