"""`PodNetwork`: attach pods to the network in force, check them, detach them, collect what is left.

What the caller must keep with the pod, and hand back: the configuration before `add` (so that a
detachment is possible even if the daemon dies in between) and the result after it. DEL then is
independent of the directory of configurations, which may be empty by the time a node is drained.

    config = network.current_config_json()          # stored by the caller
    attached = await network.add(attachment, config_json=config)   # may fail half-way: call delete
    await network.delete(attachment, config_json=config, result_json=attached.result_json)

`delete` may be called at any time, any number of times, for anything: before `add`, after a failed
one, without a namespace. It succeeds once every plugin has said that nothing of the pod is left.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from cni.attachment import Attachment, Bandwidth, Dns, IpRange, PortMapping, check_attachment
from cni.cache import AttachmentCache, Record
from cni.chain import FirstFailure, PluginChain
from cni.config import NetworkConfig, parse_network
from cni.errors import NetworkNotReady
from cni.idle import IdlePlugins
from cni.invoke import Observer, PluginPrograms
from cni.leftovers import end_leftovers
from cni.memory import Memory
from cni.readiness import Readiness
from cni.template import FILE_NAME, parse_ranges, write_rendered
from cni.turns import Turns
from sandbox.host.errors import (
    FailedPrecondition,
    PodwrightError,
    map_os_errors,
)
from sandbox.host.journal import get_logger
from sandbox.host.threads import to_its_end

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection
    from pathlib import Path

    from cni.document import JsonObject, JsonValue
    from cni.settings import CniSettings
    from sandbox.host.clock import Clock
    from sandbox.host.processes import ProcessRunner

__all__ = [
    "Attached",
    "Attachment",
    "Bandwidth",
    "Dns",
    "IpRange",
    "Observer",
    "PodNetwork",
    "PortMapping",
]

_log = get_logger(__name__)

#: How long garbage collection waits for a moment in which no pod is attached or detached.
COLLECT_WAIT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Attached:
    """What came of an `add`.

    Attributes:
        ips: the pod's addresses, the primary one first; at least one.
        result_json: the last plugin's result, to be stored and handed back to `delete`.
        config_json: the configuration that was used, the same.
    """

    ips: tuple[str, ...]
    result_json: str
    config_json: str


class PodNetwork:
    """The pod network of this node; one per daemon."""

    def __init__(
        self,
        settings: CniSettings,
        runner: ProcessRunner,
        clock: Clock,
        *,
        is_namespace: Callable[[Path], bool],
        observer: Observer | None = None,
    ) -> None:
        """Nothing is read or run before `start`.

        Args:
            settings: directories and time limits.
            runner: runs the plugins' programs.
            clock: for deadlines and intervals.
            is_namespace: whether a namespace is pinned at a path; blocking.
            observer: told about every run of a plugin.
        """
        self._settings = settings
        self._programs = programs = PluginPrograms(
            runner,
            clock,
            directories=settings.bin_dirs,
            output_limit_bytes=settings.output_limit_bytes,
            observer=observer,
        )
        self._chain = PluginChain(settings, clock, programs, IdlePlugins(runner))
        self._cache = AttachmentCache(settings.cache_dir)
        self._memory = Memory(self._cache, self._chain, is_namespace)
        self._readiness = Readiness(settings, clock, self._chain.probe)
        self._turns = Turns()
        #: Pods whose ADD began in this life of the daemon and whose DEL did not succeed yet.
        self._live: set[str] = set()

    # The network in force.

    async def start(self, group: asyncio.TaskGroup) -> None:
        """End plugins that an earlier life left running, read the directory, follow it."""
        await end_leftovers(self._settings.cache_dir, self._settings.bin_dirs)
        with suppress(PodwrightError):  # untidy is no reason not to start
            await asyncio.to_thread(self._cache.tidy)
        await self._readiness.start(group)

    async def close(self) -> None:
        """Stop following the directory. Attachments stay as they are."""
        await self._readiness.close()

    def configure(self, settings: CniSettings) -> None:
        """Take other settings while running; where results are saved stays as it is.

        Calls in flight go on as they began. A directory that has changed is read at once and
        followed from then on; pods that are there are detached with what was saved for them.
        """
        settings = replace(settings, cache_dir=self._settings.cache_dir)
        if settings == self._settings:
            return
        self._settings = settings
        self._programs.search(settings.bin_dirs)
        self._chain.configure(settings)
        self._readiness.configure(settings)

    def ready(self) -> tuple[bool, str, str]:
        """The NetworkReady condition as (ok, reason, message), from what is known already."""
        state = self._readiness.state
        return state.ok, state.reason, state.message

    async def refresh(self) -> tuple[bool, str, str]:
        """Read the directory and ask the plugins now; the condition as `ready` gives it."""
        await self._readiness.refresh()
        return self.ready()

    def current_config_json(self) -> str:
        """The network in force as text, to be stored before `add` and handed to it.

        Raises:
            NetworkNotReady: there is none (yet).
        """
        return self._readiness.config().to_json()

    def describe(self) -> JsonObject:
        """What is known about the network in force, for verbose status and `podwright check`."""
        loaded = self._readiness.loaded
        problems: list[JsonValue] = [{"path": p.path, "reason": p.reason} for p in loaded.problems]
        described: JsonObject = {
            "confDir": str(self._settings.conf_dir),
            "binDirs": [str(path) for path in self._settings.bin_dirs],
            "problems": problems,
        }
        if loaded.config is not None:
            described["file"] = loaded.config.source
            described["network"] = loaded.config.name
            described["cniVersion"] = loaded.config.version
            described["plugins"] = [plugin.type for plugin in loaded.config.plugins]
        return described

    async def set_pod_cidr(self, text: str) -> bool:
        """Make the configuration of this node from the template; False when there is none to make.

        Without a template, or where somebody else's configuration is in force, nothing happens:
        another component owns the network. One made here before follows the new addresses.

        Raises:
            InvalidArgument: `text` holds no address ranges.
            ConfigInvalid: the template cannot be read, or gives no configuration.
        """
        if not text:
            return False
        ranges = parse_ranges(text)
        settings = self._settings
        if settings.conf_template is None:
            _log.info("pod addresses not used: no network template is set", pod_cidr=text)
            return False
        await self._readiness.reload()
        target = settings.conf_dir / FILE_NAME
        current = self._readiness.loaded.config
        if current is not None and current.source != str(target):
            _log.info("pod addresses not used: a network is configured", path=current.source)
            return False
        await to_its_end(partial(write_rendered, settings.conf_template, ranges, target))
        await self._readiness.refresh()
        return True

    async def status(self) -> None:
        """Ask the plugins of the network in force whether pods can be attached.

        Raises:
            NetworkNotReady: there is no network.
            PluginFailed: the first plugin that is missing, of another version, or not ready.
        """
        await self._chain.probe(self._readiness.config())

    # One pod.

    async def add(self, attachment: Attachment, *, config_json: str = "") -> Attached:
        """Attach a pod: every plugin in order, each with the result of the one before.

        Args:
            attachment: the pod; its namespace must exist.
            config_json: the configuration that was stored for the pod, so that the one stored and
                the one used cannot differ; empty: the one in force now.

        Raises:
            InvalidArgument: the attachment cannot be told to plugins; nothing was run.
            FailedPrecondition: the pod is attached already; the stored configuration is invalid.
            NetworkNotReady: there is no network; nothing was run.
            PluginFailed: a plugin failed or answered nonsense. Call `delete`: it and those before
                it may have done a part of their work.
        """
        check_attachment(attachment)
        network = parse_network(config_json) if config_json else await self._network_now()
        async with self._turns.of(attachment.pod_id):
            record = Record(attachment=attachment, config=network.to_json())
            programs = await to_its_end(partial(self._memory.begin, record, network))
            self._live.add(attachment.pod_id)
            result, ips = await self._chain.add(network, attachment, programs)
            try:
                done = msgspec.structs.replace(record, result=result)
                await to_its_end(partial(self._cache.save, done))
            except PodwrightError as error:
                # The pod is attached and the caller gets the result: not a reason to fail.
                _log.warning("result not cached", pod=attachment.pod_id, error=str(error))
        return Attached(ips=ips, result_json=result, config_json=record.config)

    async def delete(
        self,
        attachment: Attachment,
        *,
        config_json: str,
        result_json: str,
        first: Callable[[], Awaitable[object]] | None = None,
        forget: bool = True,
    ) -> None:
        """Detach a pod: every plugin in reverse order, over failures; safe to repeat.

        Args:
            attachment: the pod; a missing namespace is told to the plugins as an empty path.
            config_json: as stored; empty: what the cache has, and if it has nothing either, the
                pod was never attached and nothing is run.
            result_json: as stored; empty: what the cache has, or none.
            first: is awaited before a plugin is run, when everything has been looked up for it. If
                it fails, that is raised and none is run.
            forget: also what is kept here of it; otherwise the caller will call `forget`, and until
                then the same again may be asked for, which is safe as ever.

        Raises:
            ConfigInvalid: the stored configuration is damaged.
            PluginFailed: the first failure; every other plugin was run all the same.
        """
        async with self._turns.of(attachment.pod_id):
            known = await asyncio.to_thread(self._memory.recall, attachment, config_json)
            if first is not None:
                await first()
            if known is None:
                self._live.discard(attachment.pod_id)
                return
            told = known.told
            await self._chain.delete(
                known.network, told, result_json or known.result, known.programs
            )
            if forget:
                await to_its_end(partial(self._cache.remove, told.pod_id, told.interface))
            self._live.discard(told.pod_id)

    async def forget(self, attachment: Attachment) -> None:
        """Drop what is kept of a pod that was detached. What nobody drops is found by `gc`.

        Raises:
            Denied: the file system is read-only.
        """
        async with self._turns.of(attachment.pod_id):
            known = partial(self._cache.remove, attachment.pod_id, attachment.interface)
            await to_its_end(known)

    async def check(self, attachment: Attachment, *, config_json: str, result_json: str) -> None:
        """Ask the plugins whether a pod's network still is as they made it.

        Does nothing for networks before version 0.4.0 or with `disableCheck`.

        Raises:
            ConfigInvalid, ResultInvalid: what was stored is damaged.
            FailedPrecondition: the pod is not attached.
            PluginFailed: the first plugin that finds something missing.
        """
        check_attachment(attachment)
        async with self._turns.of(attachment.pod_id):
            record = await asyncio.to_thread(self._memory.recorded, attachment)
            config = config_json or (record.config if record else "")
            result = result_json or (record.result if record else "")
            if not config or not result:
                raise FailedPrecondition("pod is not attached", pod=attachment.pod_id)
            await self._chain.check(parse_network(config), attachment, result)

    # All pods.

    async def gc(self, valid: Collection[str]) -> None:
        """Detach what is attached for pods that are no more, and let plugins look for themselves.

        Pods that were attached in this life of the daemon and not detached count as valid, too:
        the caller's list may be older than they are. The network's plugins are only asked if it is
        of version 1.1.0 and does not say `disableGC`, which it must where another runtime uses the
        same network.

        Args:
            valid: ids of all pods that are attached or may be.

        Raises:
            Busy: there was no moment without a pod being attached or detached.
            PluginFailed, ConfigInvalid: the first failure; the rest was tried all the same.
        """
        failure = FirstFailure()
        for record in await asyncio.to_thread(self._cache.all):
            stale = record.attachment
            if stale.pod_id in valid or stale.pod_id in self._live:
                continue
            try:
                await self.delete(stale, config_json=record.config, result_json=record.result)
            except PodwrightError as error:
                failure.note(error, pod=stale.pod_id)
        network = self._readiness.loaded.config
        if network is not None and network.at_least("1.1.0"):
            async with self._turns.alone(wait_s=COLLECT_WAIT_S):
                try:
                    await self._chain.collect(network, {*valid, *self._live})
                except PodwrightError as error:
                    failure.note(error)
        failure.throw()

    async def held(self) -> set[str]:
        """Ids of pods that are attached, or may be half."""
        return await asyncio.to_thread(self._cache.pod_ids)

    async def detach_lost(self, pod_id: str) -> None:
        """Detach a pod that its owner has no record of, by the record kept here.

        Raises:
            PluginFailed, ConfigInvalid: as `delete`.
        """
        found = False
        for record in await asyncio.to_thread(self._cache.all):
            told = record.attachment
            if told.pod_id == pod_id:
                found = True
                await self.delete(told, config_json=record.config, result_json=record.result)
        if not found:
            with map_os_errors("cannot put a record aside", pod=pod_id):
                await asyncio.to_thread(self._cache.put_aside, pod_id)

    # Helpers.

    async def _network_now(self) -> NetworkConfig:
        try:
            return self._readiness.config()
        except NetworkNotReady:
            # Written a moment ago, perhaps, and the event has not come yet.
            await self._readiness.reload()
            return self._readiness.config()
