"""Plugins that have nothing to do for a pod, and are then not run.

Nearly every node's network ends in `portmap`, and few pods have a host port. Without one, the
reference plugin hands the result on at ADD as it got it, and does nothing at DEL; `bandwidth` the
same without a limit (containernetworking/plugins, meta/*/main.go, cmdAdd and cmdDel, read in v1.1
to v1.5; the machine's own are tried by tests/host/test_cni_idle.py). To run one takes 3 to 5 ms.

What a plugin of that name does is known of the reference programs only. Such a program says who it
is when it is run without a command (containernetworking/cni, pkg/skel, v0.7), which is asked once
for each file; whoever says something else, or nothing, is always run. So is a script, which may do
something of its own before it runs the program that it speaks for, the first plugin of a network,
which would have no result to hand on, and every plugin of a version without results in DEL. DEL is
told what ADD was told, so that what has run for a pod at ADD runs at DEL.

Measured on the reference machine, medians of 25 lives of a pod in turn with the state before, with
a bridge and `portmap`: RunPodSandbox from 22.3 to 19.0 ms, StopPodSandbox from 27.4 to 21.4, of
which 1 to 2 are other changes of the same day. Switched off by `cni.skip_idle = false`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sandbox.host.errors import PodwrightError, map_os_errors
from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cni.config import NetworkConfig, PluginConfig
    from cni.document import JsonObject
    from sandbox.host.processes import ProcessRunner

    #: A file: its path, number, time of change (ns) and size.
    Identity = tuple[str, int, int, int]

_log = get_logger(__name__)

#: Plugin -> the capability that asks for its work.
_CAPABILITIES: Final[Mapping[str, str]] = {"portmap": "portMappings", "bandwidth": "bandwidth"}
#: Plugin -> keys of its own configuration, in small letters, as the plugins' parser takes them in
#: any, that may give it work for every pod.
_STANDING_WORK: Final[Mapping[str, frozenset[str]]] = {
    "portmap": frozenset({"runtimeconfig"}),
    "bandwidth": frozenset(
        {"runtimeconfig", "ingressrate", "ingressburst", "egressrate", "egressburst"}
    ),
}
#: What a file begins with that is a program and no script (elf(5), EI_MAG0).
_ELF: Final = b"\x7fELF"
#: A word about itself is shorter than this.
_ABOUT_LIMIT_BYTES: Final = 64 * 1024


def identity_of(path: Path) -> Identity | None:
    """What tells a plugin's file from the one it is replaced with; blocking."""
    try:
        found = path.stat()
    except OSError:
        return None
    return str(path), found.st_ino, found.st_mtime_ns, found.st_size


def _is_elf(path: Path) -> bool:
    with map_os_errors("plugin cannot be read"), path.open("rb") as file:
        return file.read(len(_ELF)) == _ELF


class IdlePlugins:
    """Knows which programs may be left out, and for whom."""

    def __init__(self, runner: ProcessRunner) -> None:
        self._runner = runner
        #: Files that were asked, and whether each is the reference program of its name.
        self._asked: dict[Identity, bool] = {}

    async def learn(self, plugin: str, identity: Identity, timeout_s: float) -> None:
        """Ask a program who it is, unless that is known of this file or is of no use."""
        if plugin not in _CAPABILITIES or identity in self._asked:
            return
        try:
            known = await self._is_reference(plugin, Path(identity[0]), timeout_s)
        except PodwrightError as error:
            _log.debug("plugin does not say who it is", plugin=plugin, error=str(error))
            return
        others = {i: k for i, k in self._asked.items() if i[0] != identity[0]}
        self._asked = {**others, identity: known}

    async def _is_reference(self, plugin: str, path: Path, timeout_s: float) -> bool:
        if not await asyncio.to_thread(_is_elf, path):
            return False
        finished = await self._runner.run(
            [str(path)], timeout_s=timeout_s, output_limit_bytes=_ABOUT_LIMIT_BYTES, cwd=Path("/")
        )
        said = finished.stderr.decode(errors="replace")
        return finished.exit_status == 0 and said.startswith(f"CNI {plugin} plugin ")

    def has_nothing_to_do(
        self,
        network: NetworkConfig,
        plugin: PluginConfig,
        wishes: JsonObject,
        identity: Identity | None,
    ) -> bool:
        """Whether the plugin would change nothing for a pod that wishes for `wishes`.

        Args:
            network: the plugin's.
            plugin: its configuration.
            wishes: the pod's capability arguments, declared by the plugin or not.
            identity: of the program that would be run.
        """
        if identity is None or not self._asked.get(identity, False):
            return False
        if plugin is network.plugins[0] or not network.at_least("0.4.0"):
            return False
        capability = _CAPABILITIES[plugin.type]
        asked_for = capability in plugin.capabilities and capability in wishes
        keys = {key.lower() for key in plugin.document}
        return not asked_for and _STANDING_WORK[plugin.type].isdisjoint(keys)
