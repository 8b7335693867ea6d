"""Findings about the stored state: what was put aside for a person to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cri.check.finding import Finding, Level
from sandbox.host.database import as_text
from sandbox.host.errors import NotFound, PodwrightError
from sandbox.host.sqlite_file import rows_of_copy

if TYPE_CHECKING:
    from pathlib import Path

    from sandbox.paths import Paths

STATE: Final = "state"
#: Named in a line; more are only counted.
_NAMED: Final = 3


def state(paths: Paths) -> list[Finding]:
    """Records and files of the state that could not be read. Blocking."""
    return [_quarantine(paths.state_file), _aside(paths)]


def _quarantine(state_file: Path) -> Finding:
    """Records that were moved out of the way, by the database itself (of a copy of it)."""
    try:
        rows = rows_of_copy(state_file, "SELECT origin, id FROM quarantine")
    except NotFound:
        return Finding(STATE, "records", Level.OK, "no state yet")
    except PodwrightError as error:
        return Finding(
            STATE,
            "records",
            Level.WARNING,
            f"cannot be looked at: {error}",
            "run podwright check as root; a daemon that starts says what it finds",
        )
    if not rows:
        return Finding(STATE, "records", Level.OK, "all can be read")
    names = [f"{as_text(origin)[:-1]} {as_text(object_id)[:13]}" for origin, object_id in rows]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return Finding(
        STATE,
        "records",
        Level.WARNING,
        f"{len(names)} could not be read and are quarantined: {', '.join(names[:_NAMED])}{more}",
        "what they were of has been swept; once nobody wants to look at them, stop the daemon and"
        f" empty the table quarantine of {state_file} with sqlite3",
    )


def _aside(paths: Paths) -> Finding:
    """Files that were renamed because nothing could be made of them."""
    try:
        databases = state_siblings(paths.state_file)
        copies = sorted(paths.records.glob("*/*.unreadable"))
    except OSError as error:
        detail = f"cannot be looked at: {error.strerror}"
        return Finding(STATE, "files put aside", Level.WARNING, detail, "run it as root")
    found = [*databases, *copies]
    if not found:
        return Finding(STATE, "files put aside", Level.OK, "none")
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return Finding(
        STATE,
        "files put aside",
        Level.WARNING,
        ", ".join(map(str, found[:_NAMED])) + more,
        "the state was made again without them; look at why, then delete them",
    )


def state_siblings(state_file: Path) -> list[Path]:
    """Databases that were put aside, without their logs."""
    found = state_file.parent.glob(f"{state_file.name}.corrupt-*")
    return sorted(path for path in found if not path.name.endswith(("-wal", "-shm", "-journal")))
