"""Undoing in a task that was called off."""

from __future__ import annotations

import asyncio


def begin_undo() -> None:
    """Say that this task has heard of its cancellation and now undoes what it did.

    Without it no time limit holds in what follows: `asyncio.timeout` of Python 3.11 ends in
    CancelledError instead of TimeoutError while a cancellation is not taken back (3.12 counts those
    that were there before), and a plugin that hangs would end the undo half-way. Whoever calls this
    raises the CancelledError again afterwards, so the task still ends as a cancelled one.
    """
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()
