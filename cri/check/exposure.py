"""Which known holes are on this node: versions found out, then held against `holes`."""

from __future__ import annotations

import asyncio
import os
import re
from typing import TYPE_CHECKING, Final

from cni.config import load_directory
from cni.invoke import find_plugin
from cri import settings_security as security
from cri.check.finding import Finding, Level
from cri.check.holes import GROUP, findings, libraries
from cri.check.programs import TIMEOUT_S, is_program, package_version, version_in
from sandbox.host.errors import PodwrightError
from sandbox.host.journal import get_logger

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from cni.settings import CniSettings
    from cri.config import Config
    from sandbox.host.processes import ProcessRunner

#: "#1 SMP PREEMPT_DYNAMIC Debian 6.1.90-1 (2024-05-03)".
_DEBIAN_KERNEL: Final = re.compile(r"\bDebian (\d[0-9a-z.+~-]*)")
_RUNTIMES: Final = ("crun", "runc")
#: The reference plugins; others have versions of their own.
_PLUGINS: Final = frozenset(
    {
        "bandwidth", "bridge", "dhcp", "firewall", "host-device", "host-local", "ipvlan",
        "loopback", "macvlan", "portmap", "ptp", "sbr", "static", "tap", "tuning", "vlan", "vrf",
    }
)  # fmt: skip

_log = get_logger("check")


async def exposure(config: Config, runner: ProcessRunner) -> list[Finding]:
    """Findings about the runtimes, the network plugins and the daemon's libraries."""
    accepted = config.get(security.ACCEPTED_ADVISORIES)
    said = [
        *kernel(os.uname(), accepted),
        *await _runtimes(config, runner, accepted),
        *await _plugins(config.cni(), runner, accepted),
    ]
    if not said:
        said = [Finding(GROUP, "programs", Level.OK, "none in kernel, runtimes, network plugins")]
    return [*said, *await asyncio.to_thread(libraries, accepted)]


def kernel(uname: os.uname_result, accepted: Collection[str] = ()) -> list[Finding]:
    """About the running kernel; Debian's says in its version text which package it is."""
    package = _DEBIAN_KERNEL.search(uname.version)
    release = version_in(uname.release.partition("-")[0].encode())
    return findings("linux", release, package[1] if package else "", accepted=accepted)


async def warn(config: Config, runner: ProcessRunner) -> None:
    """Write what `exposure` finds to the log, once, in a daemon that has started."""
    try:
        found = await exposure(config, runner)
    except (PodwrightError, OSError) as error:
        _log.warning("versions cannot be held against known holes", error=error)
        return
    for finding in found:
        if finding.level is not Level.OK:
            _log.warning(
                "known hole", component=finding.name, found=finding.detail, hint=finding.remedy
            )


async def _runtimes(
    config: Config, runner: ProcessRunner, accepted: Collection[str]
) -> list[Finding]:
    said = []
    default = config.sandbox().handler("").path
    paths = dict.fromkeys(h.path for h in config.handlers)
    for path in paths:
        component = next((name for name in _RUNTIMES if name in path.name), "")
        if component and is_program(path):
            release = await _release(path, runner, "--version")
            package = await package_version(path, runner)
            said += findings(
                component,
                release,
                package,
                reached_by_all=path == default,
                accepted=accepted,
            )
    return said


async def _plugins(
    settings: CniSettings, runner: ProcessRunner, accepted: Collection[str]
) -> list[Finding]:
    loaded = await asyncio.to_thread(
        load_directory, settings.conf_dir, name=settings.default_network
    )
    said: dict[Finding, None] = {}
    for plugin in loaded.config.plugins if loaded.config is not None else ():
        path = find_plugin(plugin.type, settings.bin_dirs)
        if plugin.type in _PLUGINS and path is not None:
            # Called without a command a reference plugin says which version it is.
            release = await _release(path, runner)
            package = await package_version(path, runner)
            said |= dict.fromkeys(findings("cni-plugins", release, package, accepted=accepted))
    return list(said)


async def _release(path: Path, runner: ProcessRunner, *options: str) -> str:
    try:
        finished = await runner.run([str(path), *options], timeout_s=TIMEOUT_S)
    except PodwrightError:
        return ""
    first_line = (finished.stdout or finished.stderr).partition(b"\n")[0]
    return version_in(first_line)
