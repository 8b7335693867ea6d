"""Findings about the pod network: its configuration, the plugins' programs, forwarding."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final

from cni.config import load_directory
from cni.invoke import find_plugin
from cri.check.finding import Finding, Level
from sandbox.host.processes import MINIMAL_ENV

if TYPE_CHECKING:
    from pathlib import Path

    from cni.config import NetworkConfig
    from cni.settings import CniSettings

GROUP: Final = "network"


def network(settings: CniSettings, proc: Path) -> list[Finding]:
    """Whether a pod could get a network now."""
    loaded = load_directory(settings.conf_dir, name=settings.default_network)
    findings = [
        Finding(
            GROUP, "configuration", Level.WARNING, f"{problem.path}: {problem.reason}", "mend it"
        )
        for problem in loaded.problems
    ]
    config = loaded.config
    if config is None:
        findings.append(
            Finding(
                GROUP,
                "configuration",
                Level.ERROR,
                f"no valid one in {settings.conf_dir}",
                "install a pod network, or write a .conflist there; the daemon notices it",
            )
        )
        return findings
    findings.append(
        Finding(
            GROUP,
            "configuration",
            Level.OK,
            f"{config.name} (CNI {config.version}) from {config.source}",
        )
    )
    findings += _plugins(config, settings)
    findings += _forwarding(proc)
    return findings


def _plugins(config: NetworkConfig, settings: CniSettings) -> list[Finding]:
    wanted = []
    for plugin in config.plugins:
        wanted.append(plugin.type)
        ipam = plugin.document.get("ipam")
        if isinstance(ipam, dict) and isinstance(kind := ipam.get("type"), str) and kind:
            wanted.append(kind)
    where = ", ".join(map(str, settings.bin_dirs))
    findings = []
    for name in dict.fromkeys(wanted):
        path = find_plugin(name, settings.bin_dirs)
        if path is None:
            remedy = "install the CNI plugins, or set cni.bin_dirs"
            findings.append(
                Finding(GROUP, f"plugin {name}", Level.ERROR, f"not in {where}", remedy)
            )
        else:
            findings.append(Finding(GROUP, f"plugin {name}", Level.OK, str(path)))
    if any(name in {"portmap", "firewall"} for name in wanted):
        findings.append(_filter_programs())
    return findings


def _filter_programs() -> Finding:
    for name in ("iptables", "nft"):
        if (path := shutil.which(name, path=MINIMAL_ENV["PATH"])) is not None:
            return Finding(GROUP, "packet filter", Level.OK, path)
    return Finding(
        GROUP, "packet filter", Level.ERROR, "neither iptables nor nft", "install iptables"
    )


def _forwarding(proc: Path) -> list[Finding]:
    try:
        forwards = (proc / "sys/net/ipv4/ip_forward").read_text().strip() == "1"
    except OSError:
        return []
    return [
        Finding(
            GROUP,
            "IPv4 forwarding",
            Level.OK if forwards else Level.WARNING,
            "on" if forwards else "off: pods reach nothing outside of the node",
            "sysctl net.ipv4.ip_forward=1",
        )
    ]
