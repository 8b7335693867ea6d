"""What the daemon repeats beside its calls: unwritten state, failed teardowns, the sweep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cri import settings_table as table
from sandbox.host.errors import PodwrightError
from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from cni.network import PodNetwork
    from cri.config import Config
    from cri.lifecycles import Lifecycles
    from cri.retries import Retries
    from sandbox.host.clock import Clock
    from sandbox.store import StateStore

#: Between two rounds of the upkeep (seconds).
UPKEEP_PAUSE_S: Final = 10.0

_log = get_logger("upkeep")


def begin_upkeep(
    group: asyncio.TaskGroup,
    config: Config,
    store: StateStore,
    lifecycles: Lifecycles,
    network: PodNetwork,
    clock: Clock,
) -> None:
    """Begin all of it, each a task of its own: none waits for another."""
    backup_s, sweep_s = config.get(table.BACKUP_INTERVAL), config.get(table.SWEEP_INTERVAL)
    work = {
        "upkeep": upkeep(store, clock),
        "retrying": retrying(lifecycles.retries, group, clock),
        "collecting": collecting(network, store, clock),
        "backup": backing_up(store, backup_s, clock),
        "sweep": sweeping(lifecycles, sweep_s, clock),
    }
    for name, coroutine in work.items():
        group.create_task(coroutine, name=name)


async def upkeep(store: StateStore, clock: Clock) -> None:
    """Write what could not be written at once. Waits for nothing else: no plugin, no unmount."""
    while True:
        await _guarded("writing of state", lambda: store.flush(copies=True))
        await clock.sleep(UPKEEP_PAUSE_S)


async def retrying(retries: Retries, group: asyncio.TaskGroup, clock: Clock) -> None:
    """Try again what is due, again and again; what hangs holds up nothing but itself."""
    while True:
        group.create_task(_guarded("retries", retries.run_due), name="retries")
        await clock.sleep(UPKEEP_PAUSE_S)


async def collecting(network: PodNetwork, store: StateStore, clock: Clock) -> None:
    """Have networks give back what nobody has: once in a life, when one is there to be asked."""
    while not await _collect_networks(network, store):
        await clock.sleep(UPKEEP_PAUSE_S)


async def sweeping(lifecycles: Lifecycles, interval_s: float, clock: Clock) -> None:
    """Sweep every `interval_s`; never, when it is 0. The start itself is `cri.recover`'s."""
    while interval_s:
        await clock.sleep(interval_s)
        await _guarded("sweep", lifecycles.reconciler.round)


async def backing_up(store: StateStore, interval_s: float, clock: Clock) -> None:
    """Back the state up now, then every `interval_s` when it has changed; 0: only now."""
    await _guarded("backup", lambda: store.back_up(always=True))
    while interval_s:
        await clock.sleep(interval_s)
        await _guarded("backup", store.back_up)


async def reloading(reload: Callable[[], Awaitable[None]], asked: asyncio.Event) -> None:
    """Have `reload` done each time that `asked` is set, one at a time."""
    while True:
        await asked.wait()
        asked.clear()
        await _guarded("reload", reload)


class Countdown:
    """The grace that everything which ends with the daemon has together."""

    def __init__(self, clock: Clock, grace_s: float) -> None:
        self._clock = clock
        self._grace_s = grace_s
        self._end_ns: int | None = None

    def begin(self) -> None:
        """The grace begins now; before that, none is left for anybody."""
        self._end_ns = self._clock.monotonic_ns() + round(self._grace_s * 1e9)

    async def spend(self, close: Callable[[float], Awaitable[None]]) -> None:
        """`close` with the seconds that are left."""
        end_ns = self._end_ns
        left_ns = 0 if end_ns is None else max(0, end_ns - self._clock.monotonic_ns())
        await close(left_ns / 1e9)


async def _guarded(what: str, work: Callable[[], Awaitable[object]]) -> None:
    """A failure of what is merely repeated must not end the daemon."""
    try:
        await work()
    except PodwrightError as error:
        _log.warning(f"{what} failed, tried again later", error=error)
    except Exception:
        _log.error(f"{what} failed", exc_info=True)


async def _collect_networks(network: PodNetwork, store: StateStore) -> bool:
    """Give back what networks hold for pods that are no more; False when it must be tried again."""
    try:
        await network.gc([pod.id for pod in store.pods.values() if pod.network_attached])
    except PodwrightError as error:
        _log.info("networks not collected yet", error=str(error))
        return False
    return True
