"""What `podwright status` shows: conditions, numbers, and what the daemon is busy putting right."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Final

import msgspec
from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cri.rpc.client import DaemonClient

#: Characters of an id that people are shown.
_SHORT: Final = 13


class StatusReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `podwright status` tells."""

    runtime: str
    version: str
    conditions: dict[str, bool]
    problems: dict[str, str]
    handlers: list[str]
    pods: dict[str, int]
    containers: dict[str, int]
    images: int
    #: What is tried again, what was repaired, and other facts that the daemon reports by name.
    upkeep: dict[str, object] = {}
    state: dict[str, object] = {}
    reload: dict[str, object] = {}
    stores: dict[str, object] = {}
    #: How root file systems are made.
    storage: dict[str, object] = {}

    @property
    def ready(self) -> bool:
        """Whether every condition holds."""
        return all(self.conditions.values())


def gather_status(daemon: DaemonClient) -> StatusReport:
    """Ask the daemon. Raises Unavailable when nobody answers."""
    version = daemon.version()
    status = daemon.status()
    conditions = status.status.conditions
    return StatusReport(
        runtime=version.runtime_name,
        version=version.runtime_version,
        conditions={c.type: c.status for c in conditions},
        problems={c.type: f"{c.reason}: {c.message}" for c in conditions if not c.status},
        handlers=[handler.name for handler in status.runtime_handlers if handler.name],
        pods=_counted(daemon.pods_by_state()),
        containers=_counted(daemon.containers_by_state()),
        images=len(daemon.images().images),
        upkeep=_fact(status.info, "upkeep"),
        state=_fact(status.info, "state"),
        reload=_fact(status.info, "reload"),
        stores=_fact(status.info, "stores"),
        storage=_fact(status.info, "storage"),
    )


def _fact(info: Mapping[str, str], name: str) -> dict[str, object]:
    """One of the JSON documents of verbose status; empty from a daemon that has it not."""
    text = info.get(name)
    return msgspec.json.decode(text, type=dict[str, object]) if text else {}


def _counted(states: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(states).items()))


def status_json(report: StatusReport) -> str:
    """The report as JSON."""
    document = {**msgspec.to_builtins(report), "ready": report.ready}
    return msgspec.json.format(msgspec.json.encode(document)).decode()


def show_status(report: StatusReport, console: Console | None = None) -> None:
    """The report as a few lines."""
    console = console or Console()
    console.print(f"{report.runtime} {report.version}", highlight=False)
    for name, holds in report.conditions.items():
        mark = "[green]yes[/green]" if holds else "[red]no[/red]"
        console.print(f"{name}: {mark} {report.problems.get(name, '')}", highlight=False)
    console.print(f"handlers: {', '.join(report.handlers)}", highlight=False)
    for name, states in (("pods", report.pods), ("containers", report.containers)):
        text = ", ".join(f"{number} {state}" for state, number in states.items()) or "none"
        console.print(f"{name}: {text}", highlight=False)
    console.print(f"images: {report.images}", highlight=False)
    if report.storage:
        console.print(f"storage driver: {report.storage.get('driver')}", highlight=False)
    further = (
        store_lines(report.stores),
        upkeep_lines(report.upkeep),
        state_lines(report.state),
        reload_lines(report.reload),
    )
    for line in itertools.chain(*further):
        console.print(line, highlight=False, markup=False)


class _Store(msgspec.Struct, frozen=True):
    """An additional image store, as `imageservice.additional` reports it."""

    images: int
    layers: int
    problems: list[str]


def store_lines(stores: Mapping[str, object]) -> list[str]:
    """Each additional image store, and what is wrong with it."""
    lines = []
    for path, store in msgspec.convert(stores, dict[str, _Store]).items():
        lines.append(f"additional images: {store.images} of {store.layers} layers at {path}")
        lines += [f"  {problem}" for problem in store.problems]
    return lines


class _Retry(msgspec.Struct, frozen=True, rename="camel"):
    """One line of what is retried, as `cri.retries` reports it."""

    kind: str
    id: str
    wish: str
    stage: str
    since: str
    tries: int
    next_in_seconds: int
    error: str


def upkeep_lines(upkeep: Mapping[str, object]) -> list[str]:
    """What is being retried, since when and at which stage, and what was repaired."""
    lines = []
    for retry in msgspec.convert(upkeep.get("retrying", []), list[_Retry]):
        stage = f" at {retry.stage}" if retry.stage != retry.wish else ""
        lines.append(
            f"retrying: {retry.wish} of {retry.kind} {retry.id[:_SHORT]}{stage} since"
            f" {retry.since}, {retry.tries} tries, next in {retry.next_in_seconds} s"
        )
        if retry.error:
            lines.append(f"  {retry.error}")
    repairs = msgspec.convert(upkeep.get("repairs", {}), dict[str, int])
    if repairs:
        text = ", ".join(f"{number} {kind}" for kind, number in sorted(repairs.items()))
        lines.append(f"repaired since start: {text}")
    failed = upkeep.get("failedRepairs")
    if failed:
        lines.append(f"repairs that failed since start: {failed}; see the daemon's log")
    return lines


def state_lines(state: Mapping[str, object]) -> list[str]:
    """What is not as it should be with the stored state."""
    lines = []
    if state.get("lost"):
        source = state.get("begunFrom") or "nothing"
        lines.append(f"state: was lost and begun anew from {source}: {state['lost']}")
        lines.append(f"  the old file is kept as {state.get('aside')}")
    if state.get("adopted"):
        taken = msgspec.convert(state["adopted"], dict[str, int])
        text = ", ".join(f"{number} {kind}" for kind, number in taken.items())
        lines.append(f"state: made whole from second copies: {text}")
    if state.get("quarantined"):
        lines.append(f"state: {state['quarantined']} unreadable records in quarantine")
    if state.get("unwritten"):
        lines.append(f"state: {state['unwritten']} changes not on disk yet; is the disk full?")
    if state.get("backupError"):
        lines.append(f"state: not backed up: {state['backupError']}")
    return lines


def reload_lines(reload: Mapping[str, object]) -> list[str]:
    """How the last SIGHUP went; nothing when there was none."""
    if not reload.get("outcome"):
        return []
    lines = [f"configuration read again {reload.get('secondsAgo')} s ago: {reload['outcome']}"]
    for key, text in (("changed", "changed"), ("needsRestart", "needs a restart")):
        names = msgspec.convert(reload.get(key, []), list[str])
        if names:
            lines.append(f"  {text}: {', '.join(names)}")
    lines += [f"  {problem}" for problem in msgspec.convert(reload.get("problems", []), list[str])]
    return lines
