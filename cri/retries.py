"""What could not be taken apart and is tried again: since when, at which stage, what it said.

A teardown that fails keeps its record, so that the client's next call goes on with it. Clients that
never call again exist (a kubelet that was reinstalled, a person with crictl), and so do leftovers
that no client has ever heard of; therefore the daemon repeats by itself, with growing pauses. One
entry for each object, whoever tried last.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from sandbox.host.errors import DeadlineExceeded, Internal, PodwrightError
from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from sandbox.host.clock import Clock

    Again = Callable[[], Awaitable[object]]

#: Pauses between tries (seconds), doubled from first to last: a busy mount is free soon, a plugin
#: that is missing is installed by a person.
FIRST_PAUSE_S: Final = 10.0
LAST_PAUSE_S: Final = 300.0
#: Tries at once; each may wait for a plugin or the kernel.
WIDTH: Final = 8
#: For one try (seconds). Each step of a teardown has its own limit, and none is that long. What
#: takes longer is stuck in the kernel; it goes on as work of the daemon, and the next try joins it.
TRY_LIMIT_S: Final = 300.0

_log = get_logger("retries")


@dataclass(slots=True)
class _Entry:
    kind: str
    id: str
    wish: str
    again: Again
    stage: str
    error: str
    since_ns: int
    due_ns: int
    tries: int = 0
    running: bool = False


class Retries:
    """See the module text; for the event loop's thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._entries: dict[tuple[str, str], _Entry] = {}
        self._width = asyncio.Semaphore(WIDTH)

    def owe(self, kind: str, object_id: str, wish: str, stage: str, again: Again) -> None:
        """Have `again` done soon; what is there already for the object is left as it is."""
        if (kind, object_id) not in self._entries:
            self._entries[kind, object_id] = _Entry(
                kind=kind,
                id=object_id,
                wish=wish,
                again=again,
                stage=stage,
                error="",
                since_ns=self._clock.wall_ns(),
                due_ns=self._clock.monotonic_ns(),
            )

    def failed(
        self, kind: str, object_id: str, wish: str, error: BaseException, again: Again
    ) -> None:
        """Note a try that failed; `again` is the next one.

        Args:
            kind: pod or container.
            object_id: whose teardown it was.
            wish: what was wanted of it, such as stop.
            error: why not; its `stage` says where.
            again: does the same again; PodwrightError when it fails again.
        """
        self.owe(kind, object_id, wish, "", again)
        entry = self._entries[kind, object_id]
        pause_s = min(FIRST_PAUSE_S * 2**entry.tries, LAST_PAUSE_S)
        entry.tries += 1
        entry.wish, entry.again = wish, again
        entry.stage = getattr(error, "stage", "") or wish
        entry.error = str(error)
        entry.due_ns = self._clock.monotonic_ns() + round(pause_s * 1e9)

    def settled(self, kind: str, object_id: str, wish: str = "") -> None:
        """Note that it is done, for good; or only `wish`, where something else is owed as well."""
        entry = self._entries.get((kind, object_id))
        if entry is not None and wish in ("", entry.wish):
            del self._entries[kind, object_id]
            if entry.tries:
                _log.info("done at last", kind=kind, id=object_id, wish=entry.wish)

    async def run_due(self) -> None:
        """Try again what is due; returns when every one of those has ended.

        May be called while an earlier call has not returned: what that one tries is left to it.
        """
        now_ns = self._clock.monotonic_ns()
        due = [e for e in self._entries.values() if e.due_ns <= now_ns and not e.running]
        for entry in due:
            entry.running = True  # from here on: it may have to wait for its turn

        async def one(entry: _Entry) -> None:
            async with self._width:
                await self._again(entry)

        await asyncio.gather(*(one(entry) for entry in due))

    async def _again(self, entry: _Entry) -> None:
        before = entry.tries
        failure: PodwrightError
        try:
            async with asyncio.timeout(TRY_LIMIT_S):
                await entry.again()
        except TimeoutError:
            failure = DeadlineExceeded(f"not done within {TRY_LIMIT_S:.0f} s, and going on")
        except PodwrightError as error:
            failure = error
        except Exception as error:
            failure = Internal(f"{type(error).__name__}: {error}")
        else:
            self.settled(entry.kind, entry.id)
            return
        finally:
            entry.running = False
        if entry.tries == before:  # whoever does the work has not noted it himself
            self.failed(entry.kind, entry.id, entry.wish, failure, entry.again)
        _log.warning(
            "still not done, tried again later",
            kind=entry.kind,
            id=entry.id,
            wish=entry.wish,
            stage=entry.stage,
            tries=entry.tries,
            error=str(failure),
        )

    def ids(self) -> set[str]:
        """Every object that something is owed to."""
        return {object_id for _, object_id in self._entries}

    def counts(self) -> Mapping[str, int]:
        """How many of each kind."""
        return Counter(entry.kind for entry in self._entries.values())

    def report(self) -> list[dict[str, object]]:
        """Every entry as JSON values, the oldest first."""
        now_ns = self._clock.monotonic_ns()
        return [
            {
                "kind": entry.kind,
                "id": entry.id,
                "wish": entry.wish,
                "stage": entry.stage,
                "since": datetime.fromtimestamp(entry.since_ns / 1e9, UTC).isoformat(
                    "T", "seconds"
                ),
                "tries": entry.tries,
                "nextInSeconds": max(0, round((entry.due_ns - now_ns) / 1e9)),
                "error": entry.error,
            }
            for entry in sorted(self._entries.values(), key=lambda e: e.since_ns)
        ]
