"""A network's plugins in their order: ADD and CHECK forwards, DEL backwards, over failures.

Knows the protocol and nothing of files, turns or readiness: those are `network`'s.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from cni.attachment import DEFAULT_INTERFACE, Attachment, capability_arguments, cni_args
from cni.config import NetworkConfig, PluginConfig, execution_config
from cni.document import JsonObject, JsonValue, MalformedDocument, decode_object, encode, view
from cni.errors import ConfigInvalid, PluginFailed, ResultInvalid, SpecCode
from cni.idle import IdlePlugins, identity_of
from cni.invoke import OWNER_VARIABLE, Command, PluginCall, PluginExec, find_plugin
from cni.result import Result, as_version, parse_result, pod_addresses
from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from cni.idle import Identity
    from cni.settings import CniSettings
    from sandbox.host.clock import Clock
    from sandbox.host.errors import PodwrightError

    #: A plugin's program by its type, and which file that is; missing where no directory has it.
    Programs = Mapping[str, tuple[Path, Identity | None]]

_log = get_logger(__name__)


class _VersionKeys(msgspec.Struct):
    supportedVersions: list[str]


class FirstFailure:
    """The error to raise when everything was tried: the first one; those after it are logged."""

    def __init__(self) -> None:
        self._error: PodwrightError | None = None

    def note(self, error: PodwrightError, *, pod: str = "") -> None:
        """Keep `error` if it is the first."""
        if self._error is None:
            self._error = error
        else:
            _log.warning("another failure", pod=pod, error=str(error))

    def throw(self) -> None:
        """Raise it, if there is one."""
        if self._error is not None:
            raise self._error


class PluginChain:
    """Runs whole networks."""

    def __init__(
        self, settings: CniSettings, clock: Clock, programs: PluginExec, idle: IdlePlugins
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._programs = programs
        self._idle = idle
        #: Versions that a plugin's program speaks, while its file is the same.
        self._spoken: dict[Identity, frozenset[str]] = {}

    def configure(self, settings: CniSettings) -> None:
        """Take other settings from the next plugin on."""
        self._settings = settings

    def find(self, network: NetworkConfig) -> Programs:
        """The network's programs, found in one go and not before each plugin. Blocking.

        A lookup alone costs a change of threads, 0.2 ms, and 1 ms where threads are busy.
        """
        paths = {p.type: find_plugin(p.type, self._settings.bin_dirs) for p in network.plugins}
        return {name: (path, identity_of(path)) for name, path in paths.items() if path is not None}

    async def add(
        self, network: NetworkConfig, attachment: Attachment, programs: Programs
    ) -> tuple[str, tuple[str, ...]]:
        """ADD by every plugin that has something to do, each given the result of the one before.

        `programs` is what `find` has found.

        Returns:
            The last result as text in the network's version, and the pod's addresses.

        Raises:
            PluginFailed: the first plugin that fails, or answers what is no usable result.
        """
        deadline_ns = self._clock.monotonic_ns() + int(self._settings.add_timeout_s * 1e9)
        result: Result | None = None
        previous: JsonObject | None = None
        ips: tuple[str, ...] = ()
        plugins = self._busy(network, attachment, programs)
        for plugin in plugins:
            left_s = (deadline_ns - self._clock.monotonic_ns()) / 1e9
            stdout = await self._run(
                Command.ADD, network, plugin, attachment, previous, left_s, programs
            )
            try:
                result = parse_result(stdout, version=network.version)
                previous = as_version(result, network.version)
                if plugin is plugins[-1]:
                    ips = pod_addresses(
                        result, interface=attachment.interface, preference=self._settings.ip_pref
                    )
            except ResultInvalid as error:
                raise PluginFailed(plugin.type, Command.ADD, error.message) from error
        if previous is None:
            raise ConfigInvalid("network configuration has no plugins")
        return encode(previous).decode(), ips

    async def delete(
        self, network: NetworkConfig, attachment: Attachment, result: str, programs: Programs
    ) -> None:
        """DEL by every plugin that had something to do, in reverse order, whatever the others say.

        Args:
            network: the one ADD was made with.
            attachment: with an empty `netns_path` where the namespace is gone.
            result: the saved result, or empty.
            programs: what `find` has found.

        Raises:
            PluginFailed: the first failure.
        """
        previous = _previous(network, result, attachment.pod_id)
        timeout_s = self._settings.delete_timeout_s
        failure = FirstFailure()
        for plugin in reversed(self._busy(network, attachment, programs)):
            try:
                await self._run(
                    Command.DEL, network, plugin, attachment, previous, timeout_s, programs
                )
            except PluginFailed as error:
                # By the specification, this code says that there is nothing to clean up.
                if error.code != SpecCode.UNKNOWN_CONTAINER:
                    failure.note(error, pod=attachment.pod_id)
        failure.throw()

    async def check(self, network: NetworkConfig, attachment: Attachment, result: str) -> None:
        """CHECK by every plugin; nothing for networks that do not know or want it.

        Raises:
            ResultInvalid: the saved result is damaged.
            PluginFailed: the first plugin that finds something missing.
        """
        if not network.at_least("0.4.0") or network.disable_check:
            return
        previous = as_version(parse_result(result, version=network.version), network.version)
        timeout_s = self._settings.check_timeout_s
        programs = await asyncio.to_thread(self.find, network)
        for plugin in network.plugins:
            await self._run(
                Command.CHECK, network, plugin, attachment, previous, timeout_s, programs
            )

    async def collect(self, network: NetworkConfig, keep: Collection[str]) -> None:
        """GC by every plugin, whatever the others say; nothing before 1.1.0 or with `disableGC`.

        Args:
            network: the one in force.
            keep: ids of the pods whose attachments are valid.

        Raises:
            PluginFailed: the first failure.
        """
        if not network.at_least("1.1.0") or network.disable_gc:
            return
        attachments: list[JsonValue] = [
            {"containerID": pod_id, "ifname": DEFAULT_INTERFACE} for pod_id in sorted(keep)
        ]
        # The specification's name, and the one that the reference library sends besides it.
        extra: JsonObject = {
            "cni.dev/valid-attachments": attachments,
            "cni.dev/attachments": attachments,
        }
        failure = FirstFailure()
        for plugin in network.plugins:
            try:
                stdin = execution_config(network, plugin, extra=extra)
                await self._query(Command.GC, plugin, stdin)
            except PluginFailed as error:
                if not _is_unknown_command(error):
                    failure.note(error)
        failure.throw()

    async def probe(self, network: NetworkConfig) -> None:
        """Find out whether pods could be attached: programs, their versions, from 1.1.0 STATUS.

        Raises:
            PluginFailed: the first plugin that is missing, speaks other versions or is not ready.
        """
        for plugin in network.plugins:
            await self._check_version(network, plugin)
        if network.at_least("1.1.0"):
            for plugin in network.plugins:
                await self._ask_status(network, plugin)

    def _busy(
        self, network: NetworkConfig, attachment: Attachment, programs: Programs
    ) -> list[PluginConfig]:
        """The plugins that are to be run for a pod; see `idle`."""
        if not self._settings.skip_idle:
            return list(network.plugins)
        wishes = capability_arguments(attachment)
        return [
            plugin
            for plugin in network.plugins
            if not self._idle.has_nothing_to_do(
                network, plugin, wishes, programs.get(plugin.type, (None, None))[1]
            )
        ]

    async def _ask_status(self, network: NetworkConfig, plugin: PluginConfig) -> None:
        try:
            await self._query(Command.STATUS, plugin, execution_config(network, plugin))
        except PluginFailed as error:
            if not _is_unknown_command(error):
                raise

    async def _check_version(self, network: NetworkConfig, plugin: PluginConfig) -> None:
        path = await self._find(plugin.type)
        key = None if path is None else await asyncio.to_thread(identity_of, path)
        spoken = self._spoken.get(key) if key is not None else None
        if spoken is None:
            spoken = await self._ask_versions(network, plugin, missing=key is None)
            if key is not None:
                self._spoken = {k: v for k, v in self._spoken.items() if k[0] != key[0]}
                self._spoken[key] = spoken
        if key is not None:
            await self._idle.learn(plugin.type, key, self._settings.query_timeout_s)
        if spoken and network.version not in spoken:
            raise PluginFailed(
                plugin.type,
                Command.VERSION,
                f"it does not speak version {network.version} of the network configuration",
                hint=f"set cniVersion to one of {', '.join(sorted(spoken))[:120]}",
            )

    async def _ask_versions(
        self, network: NetworkConfig, plugin: PluginConfig, *, missing: bool
    ) -> frozenset[str]:
        try:
            stdin = encode({"cniVersion": network.version})
            stdout = await self._query(Command.VERSION, plugin, stdin)
            return frozenset(view(decode_object(stdout), _VersionKeys).supportedVersions)
        except (PluginFailed, MalformedDocument) as error:
            if missing:
                raise
            # A plugin may be older than the command. What it can do, ADD will show.
            _log.debug("plugin does not say its versions", plugin=plugin.type, error=str(error))
            return frozenset()

    async def _run(
        self,
        command: Command,
        network: NetworkConfig,
        plugin: PluginConfig,
        attachment: Attachment,
        previous: JsonObject | None,
        timeout_s: float,
        programs: Programs,
    ) -> bytes:
        stdin = execution_config(
            network,
            plugin,
            capability_arguments=capability_arguments(attachment),
            previous=previous,
        )
        variables = {
            "CNI_CONTAINERID": attachment.pod_id,
            "CNI_NETNS": attachment.netns_path,
            "CNI_IFNAME": attachment.interface,
            "CNI_ARGS": cni_args(attachment),
        }
        path = programs.get(plugin.type, (None, None))[0]
        return await self._execute(command, plugin, path, variables, stdin, timeout_s)

    async def _query(self, command: Command, plugin: PluginConfig, stdin: bytes) -> bytes:
        path, timeout_s = await self._find(plugin.type), self._settings.query_timeout_s
        return await self._execute(command, plugin, path, {}, stdin, timeout_s)

    async def _execute(
        self,
        command: Command,
        plugin: PluginConfig,
        path: Path | None,
        variables: dict[str, str],
        stdin: bytes,
        timeout_s: float,
    ) -> bytes:
        environment = {
            **dict(self._settings.environment),
            OWNER_VARIABLE: str(self._settings.cache_dir),
            "CNI_COMMAND": command.value,
            "CNI_PATH": ":".join(map(str, self._settings.bin_dirs)),
            **variables,
        }
        call = PluginCall(
            command=command,
            plugin=plugin.type,
            path=path,
            environment=environment,
            stdin=stdin,
            timeout_s=timeout_s,
        )
        return await self._programs.execute(call)

    async def _find(self, name: str) -> Path | None:
        return await asyncio.to_thread(find_plugin, name, self._settings.bin_dirs)


def _is_unknown_command(error: PluginFailed) -> bool:
    """Whether a plugin speaks 1.1.0 without the commands that came with it.

    It has no opinion then. Taken for a failure, it would keep a node from ever being ready though
    every ADD succeeds.
    """
    return error.code == SpecCode.INVALID_ENVIRONMENT and "CNI_COMMAND" in error.msg


def _previous(network: NetworkConfig, result: str, pod_id: str) -> JsonObject | None:
    """The saved result for DEL; none for versions that do not know it, and none if damaged."""
    if not result or not network.at_least("0.4.0"):
        return None
    try:
        return as_version(parse_result(result, version=network.version), network.version)
    except ResultInvalid as error:
        # Plugins must cope without it, and an address that stays reserved would be worse.
        _log.warning("saved result left out of DEL", pod=pod_id, error=str(error))
        return None
