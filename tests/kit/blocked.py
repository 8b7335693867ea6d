"""Something in a thread that goes on only when a test lets it: for what is called off meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Iterable, Iterator
from contextlib import contextmanager

import pytest

from sandbox.host.spawning import spawn


class Blocked:
    """Stands in the place of what a thread is to do."""

    def __init__(self) -> None:
        self.begun, self.may_go_on = threading.Event(), threading.Event()
        self.ended = False

    def __call__(self, *_args: object, **_options: object) -> tuple[()]:
        self.begun.set()
        self.may_go_on.wait()
        self.ended = True
        return ()


@contextmanager
def start_told_late(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Programs start, and who started one hears of it only once the event is set, or at the end."""
    may_be_told = threading.Event()

    def slow(*args: object, **options: object) -> tuple[int, int]:
        started = spawn(*args, **options)  # type: ignore[arg-type]
        may_be_told.wait()
        return started

    with monkeypatch.context() as patch:
        patch.setattr("sandbox.host.children.spawn", slow)
        try:
            yield may_be_told
        finally:
            may_be_told.set()


async def assert_waited_for(work: Awaitable[object], blocked: Blocked) -> None:
    """Whoever is called off, however often, ends after the thread."""
    task = asyncio.ensure_future(work)
    await asyncio.to_thread(blocked.begun.wait)
    for _ in range(2):
        task.cancel()
        for _ in range(20):
            await asyncio.sleep(0)
    early = task.done()
    blocked.may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not early
    assert blocked.ended


async def call_off_within(work: Awaitable[object], blocked: Blocked) -> None:
    """Call it off while its thread is at work, and then let the thread go on."""
    task = asyncio.ensure_future(work)
    await asyncio.to_thread(blocked.begun.wait)
    task.cancel()
    await asyncio.sleep(0)
    blocked.may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task


def slow_tuple(values: Iterable[str], blocked: Blocked) -> tuple[str, ...]:
    """Those values, which another thread, as a database's, reads only when it is let."""

    class Slow(tuple[str, ...]):
        def __iter__(self) -> Iterator[str]:
            if threading.current_thread() is not threading.main_thread():
                blocked()
            return super().__iter__()

    return Slow(values)


def slow_set(values: Iterable[bytes], blocked: Blocked) -> frozenset[bytes]:
    """The same."""

    class Slow(frozenset[bytes]):
        def __iter__(self) -> Iterator[bytes]:
            if threading.current_thread() is not threading.main_thread():
                blocked()
            return super().__iter__()

    return Slow(values)
