"""The fake registry for tests that are no coroutines: it runs on an event loop of its own thread.

    with scripted_registry() as registry:
        image = registry.add_image("team/app", "1")
        registry.on(f"/blobs/{image.layers[0].digest}", Cut(after_bytes=1000))
        node.pull(registry.reference("team/app:1"))

What a test adds or scripts is seen by the next request. `release` is the one method that must run
on the loop, and does.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.fakes.registry import FakeRegistry


class ScriptedRegistry(FakeRegistry):
    """See the module's text."""

    loop: asyncio.AbstractEventLoop

    def release(self) -> None:
        self.loop.call_soon_threadsafe(super().release)


@contextmanager
def scripted_registry(**options: object) -> Iterator[ScriptedRegistry]:
    """A registry that serves until the block ends; `options` are the fake's."""
    ready: list[ScriptedRegistry] = []
    began, over = threading.Event(), threading.Event()

    async def serve() -> None:
        registry = ScriptedRegistry(**options)  # type: ignore[arg-type]
        registry.loop = asyncio.get_running_loop()
        async with registry:
            ready.append(registry)
            began.set()
            await asyncio.to_thread(over.wait)

    def run() -> None:
        try:
            asyncio.run(serve())
        finally:
            began.set()

    thread = threading.Thread(target=run, name="registry")
    thread.start()
    began.wait()
    try:
        [registry] = ready  # otherwise it could not be opened, and the thread has said why
        yield registry
    finally:
        over.set()
        thread.join()
