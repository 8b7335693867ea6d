"""Teardown as an ordered list of named, idempotent steps.

A failing step never keeps the later ones from being tried: a busy mount must not leak a cgroup too.
Whoever tears down keeps the record until the whole list has succeeded, so the list can be run
again, by the client's next call, by the next start of the daemon, or by a sweep.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sandbox.host.errors import Internal, PodwrightError
from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    Step = tuple[str, Callable[[], Awaitable[object]]]

_log = get_logger("teardown")


async def run_steps(what: str, object_id: str, steps: Sequence[Step]) -> None:
    """Run every step in order; afterwards raise the first failure, the others noted and logged.

    A cancellation (the daemon stops) ends the list at once: the record is still there to go on
    from.
    """
    first: PodwrightError | None = None
    for name, step in steps:
        try:
            await step()
        except asyncio.CancelledError:
            raise
        except PodwrightError as error:
            failure = error
        except Exception as error:
            failure = Internal(f"{what}: step {name} failed: {type(error).__name__}: {error}")
            failure.__cause__ = error
        else:
            continue
        _log.warning(
            "teardown step failed", object=what, id=object_id, step=name, error=str(failure)
        )
        failure.stage = failure.stage or name  # of lists within lists, the innermost step
        if first is None:
            first = failure
        else:
            first.add_note(f"step {name} failed too: {failure}")
    if first is not None:
        raise first
