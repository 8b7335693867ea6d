"""What containers wrote: bytes and inodes of their writable layers, measured by walking them.

The kernel does not count this for an overlay, so each layer is walked, in one thread, when somebody
asks and the last walk is old enough. Asking does not wait for that walk: an answer has the numbers
of the walk before. Only a layer that was never measured is waited for, and that briefly. A layer
that takes long to walk is walked seldom: at most a twentieth of the time goes into any one.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import msgspec

from sandbox.host.errors import PodwrightError
from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from sandbox.host.clock import Clock
    from sandbox.host.trees import TreeUsage

#: A layer is walked again after this many times what the last walk took, if that is longer.
_REST_FACTOR: Final = 20
#: How long an answer waits for layers that were never measured (seconds).
FIRST_WAIT_S: Final = 0.5

_log = get_logger("sampler")


class LayerUsage(msgspec.Struct, frozen=True, gc=False):
    """A writable layer, the hard-linked files once."""

    used_bytes: int
    inodes: int
    measured_at_ns: int


class LayerMeter:
    """Measures writable layers; for one event loop."""

    def __init__(
        self,
        *,
        clock: Clock,
        max_age_s: float,
        measure: Callable[[str], TreeUsage],
    ) -> None:
        """Measure with `measure`, which is given an id and may raise PodwrightError or OSError.

        `max_age_s`: how old a number may be before the layer is walked again.
        """
        self._clock = clock
        self._max_age_ns = int(max_age_s * 1e9)
        self._walk = measure
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="layers")
        self._known: dict[str, LayerUsage] = {}
        self._due_ns: dict[str, int] = {}
        self._walking: Future[None] | None = None
        self._closed = False

    async def read(self, layers: Collection[str]) -> dict[str, LayerUsage]:
        """What is known of the layers with these ids; missing: not measured yet."""
        now_ns = self._clock.monotonic_ns()
        found = {key: known for key in layers if (known := self._known.get(key)) is not None}
        if self._walking is None or self._walking.done():
            due = [key for key in layers if self._due_ns.get(key, 0) <= now_ns]
            if due:
                self._walking = self._thread.submit(self._measure, due)
        if self._walking is None or len(found) == len(layers):
            return found
        await asyncio.wait({asyncio.wrap_future(self._walking)}, timeout=FIRST_WAIT_S)
        return {key: self._known[key] for key in layers if key in self._known}

    def keep(self, ids: set[str]) -> None:
        """Forget all others."""
        for gone in self._known.keys() - ids:
            self._known.pop(gone, None)
            self._due_ns.pop(gone, None)

    def close(self) -> None:
        """End the thread after the layer it is at. Idempotent."""
        self._closed = True
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _measure(self, layers: Collection[str]) -> None:
        # New ones first: somebody waits for them.
        for key in sorted(layers, key=lambda k: k in self._known):
            if self._closed:
                return
            began_ns = self._clock.monotonic_ns()
            try:
                usage = self._walk(key)
            except (PodwrightError, OSError) as error:
                _log.warning("writable layer not measured", container=key, error=error)
                self._due_ns[key] = began_ns + self._max_age_ns
                continue
            ended_ns = self._clock.monotonic_ns()
            rest_ns = max(self._max_age_ns, _REST_FACTOR * (ended_ns - began_ns))
            self._due_ns[key] = ended_ns + rest_ns
            self._known[key] = LayerUsage(usage.used_bytes, usage.inodes, self._clock.wall_ns())
