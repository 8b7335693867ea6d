"""A node for CNI tests: real plugins that believe a throw-away network namespace to be the host.

The plugins run behind wrappers that enter the namespace first, so bridges, addresses and netfilter
rules never touch the machine's own, and all of them go with the namespace.
"""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import suppress
from pathlib import Path

from cni.network import Attachment, PodNetwork
from cni.settings import CniSettings
from sandbox.host.clock import SystemClock
from sandbox.host.processes import HostProcessRunner

NETWORK = "pwtest-net"
PLUGINS = Path("/usr/lib/cni")


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


class Node:
    """A pod network over a real bridge, and the namespaces of its pods."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tag = f"pwtest-{os.getpid()}"
        self.conf_dir = root / "net.d"
        self.conf_dir.mkdir()
        self.bin_dir = root / "bin"
        self.bin_dir.mkdir()
        self.leases = root / "leases"
        self.pods: dict[str, str] = {}
        run("ip", "netns", "add", self.tag)
        self.host("ip", "link", "set", "lo", "up")
        for plugin in PLUGINS.iterdir():
            wrapper = self.bin_dir / plugin.name
            wrapper.write_text(f"#!/bin/sh\nexec nsenter --net=/run/netns/{self.tag} {plugin}\n")
            wrapper.chmod(0o755)

    def host(self, *argv: str) -> str:
        """Run in what the plugins take for the host."""
        return run("nsenter", f"--net=/run/netns/{self.tag}", *argv)

    def configure(self, *chained: dict, version: str = "1.0.0", before: tuple = (), **bridge):
        """Write the configuration: the bridge, plugins before it and after it."""
        ranges = [[{"subnet": "10.88.77.0/24"}], [{"subnet": "fd00:88:77::/64"}]]
        first = {
            "type": "bridge",
            "bridge": "pwtest-br",
            "isGateway": True,
            "ipam": {"type": "host-local", "ranges": ranges, "dataDir": str(self.leases)},
            **bridge,
        }
        text = {"cniVersion": version, "name": NETWORK, "plugins": [*before, first, *chained]}
        (self.conf_dir / "10-test.conflist").write_text(json.dumps(text))

    def network(self, **settings) -> PodNetwork:
        return PodNetwork(
            CniSettings(
                conf_dir=self.conf_dir,
                bin_dirs=(self.bin_dir,),
                cache_dir=self.root / "cache",
                **settings,
            ),
            HostProcessRunner(),
            SystemClock(),
            is_namespace=os.path.ismount,
        )

    def pod(self, number: int = 1, **options) -> Attachment:
        name = f"{self.tag}-{number}"
        run("ip", "netns", "add", name)
        pod_id = f"{os.getpid():x}{number:x}".ljust(64, "f")
        self.pods[pod_id] = name
        return Attachment(
            pod_id=pod_id,
            netns_path=f"/run/netns/{name}",
            pod_name=f"pod-{number}",
            pod_namespace="default",
            pod_uid=f"uid-{number}",
            **options,
        )

    def remove_namespace(self, pod: Attachment) -> None:
        run("ip", "netns", "del", self.pods.pop(pod.pod_id))

    def links(self, pod: Attachment) -> str:
        return run("ip", "-n", self.pods[pod.pod_id], "-o", "link")

    def addresses(self, pod: Attachment) -> set[str]:
        """What the pod's interface really has."""
        text = run("ip", "-n", self.pods[pod.pod_id], "-j", "addr", "show", "dev", "eth0")
        links = json.loads(text)
        return {a["local"] for link in links for a in link["addr_info"] if a["scope"] == "global"}

    def leased(self) -> set[str]:
        """What the address manager has given out."""
        names = {p.name for p in self.leases.glob("*/*")}
        return {n for n in names if n != "lock" and not n.startswith("last_reserved")}

    def close(self) -> None:
        for name in [*self.pods.values(), self.tag]:
            with suppress(subprocess.CalledProcessError):
                run("ip", "netns", "del", name)
