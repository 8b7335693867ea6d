"""Pods attached to a real bridge by the real plugins, in namespaces of their own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from cni.errors import PluginFailed
from cni.network import Attachment, PodNetwork, PortMapping
from cni.settings import CniSettings
from sandbox.host.clock import SystemClock
from sandbox.host.processes import HostProcessRunner

pytestmark = pytest.mark.root

BRIDGE = "pwtest-br"
NETWORK = "pwtest-net"
PLUGINS = Path("/usr/lib/cni")


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def is_mounted(path: Path) -> bool:
    return os.path.ismount(path)


class Node:
    """A pod network over a real bridge, and the namespaces of its pods."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.conf_dir = root / "net.d"
        self.conf_dir.mkdir()
        self.leases = root / "leases"
        self.names: list[str] = []

    def configure(self, *chained: dict, version: str = "1.0.0", **bridge) -> None:
        ranges = [[{"subnet": "10.88.77.0/24"}], [{"subnet": "fd00:88:77::/64"}]]
        first = {
            "type": "bridge",
            "bridge": BRIDGE,
            "isGateway": True,
            "ipam": {"type": "host-local", "ranges": ranges, "dataDir": str(self.leases)},
            **bridge,
        }
        text = {"cniVersion": version, "name": NETWORK, "plugins": [first, *chained]}
        (self.conf_dir / "10-test.conflist").write_text(json.dumps(text))

    def network(self, **settings) -> PodNetwork:
        return PodNetwork(
            CniSettings(
                conf_dir=self.conf_dir,
                bin_dirs=(PLUGINS,),
                cache_dir=self.root / "cache",
                **settings,
            ),
            HostProcessRunner(),
            SystemClock(),
            is_namespace=is_mounted,
        )

    def pod(self, number: int = 1, **options) -> Attachment:
        name = f"pwtest-{number}"
        ip("netns", "add", name)
        self.names.append(name)
        return Attachment(
            pod_id=f"{number:064x}",
            netns_path=f"/run/netns/{name}",
            pod_name=f"pod-{number}",
            pod_namespace="default",
            pod_uid=f"uid-{number}",
            **options,
        )

    def addresses(self, number: int = 1) -> set[str]:
        links = json.loads(ip("-n", f"pwtest-{number}", "-j", "addr", "show", "dev", "eth0"))
        return {a["local"] for link in links for a in link["addr_info"] if a["scope"] == "global"}

    def leased(self) -> set[str]:
        return {
            p.name
            for p in self.leases.glob("*/*")
            if p.name != "lock" and not p.name.startswith("last_reserved")
        }

    def close(self) -> None:
        for name in self.names:
            with suppress(subprocess.CalledProcessError):
                ip("netns", "del", name)
        with suppress(subprocess.CalledProcessError):
            ip("link", "del", BRIDGE)


@pytest.fixture
def node(tmp_path):
    made = Node(tmp_path)
    try:
        yield made
    finally:
        made.close()
    assert BRIDGE not in ip("-o", "link")


async def test_a_pod_gets_both_addresses_and_gives_them_back(node):
    node.configure()
    network = node.network()
    await network.refresh()
    pod = node.pod()

    attached = await network.add(pod, config_json="")

    assert len(attached.ips) == 2
    assert attached.ips[0].startswith("10.88.77.")
    assert attached.ips[1].startswith("fd00:88:77:")
    assert node.addresses() == set(attached.ips)
    await network.check(pod, config_json=attached.config_json, result_json=attached.result_json)

    await network.delete(pod, config_json=attached.config_json, result_json=attached.result_json)
    assert node.leased() == set()
    assert "eth0" not in ip("-n", "pwtest-1", "-o", "link")
    assert list((node.root / "cache" / "results").iterdir()) == []


async def test_a_chain_with_a_host_port_and_tuning(node):
    node.configure(
        {"type": "portmap", "capabilities": {"portMappings": True}, "snat": False},
        {"type": "tuning", "sysctl": {"net.ipv4.conf.eth0.rp_filter": "2"}},
    )
    network = node.network()
    ports = (
        PortMapping(container_port=80, host_port=18080, protocol="TCP"),
        PortMapping(container_port=81),
    )
    pod = node.pod(port_mappings=ports)

    attached = await network.add(pod)
    rules = subprocess.run(["iptables-save", "-t", "nat"], capture_output=True, text=True).stdout
    assert "--dport 18080" in rules
    assert ":81" not in rules

    await network.delete(pod, config_json=attached.config_json, result_json="")
    rules = subprocess.run(["iptables-save", "-t", "nat"], capture_output=True, text=True).stdout
    assert "18080" not in rules
    assert node.leased() == set()


async def test_delete_after_the_namespace_and_the_configuration_went(node):
    node.configure()
    network = node.network()
    pod = node.pod()
    attached = await network.add(pod)
    assert len(node.leased()) == 2
    ip("netns", "del", node.names.pop())
    (node.conf_dir / "10-test.conflist").unlink()

    await node.network().delete(
        pod, config_json=attached.config_json, result_json=attached.result_json
    )
    assert node.leased() == set()


async def test_delete_uses_the_cache_when_the_caller_has_nothing(node):
    node.configure()
    pod = node.pod()
    await node.network().add(pod)
    assert len(node.leased()) == 2

    await node.network().delete(pod, config_json="", result_json="")

    assert node.leased() == set()


async def test_a_failing_second_plugin_leaves_nothing_after_delete(node):
    node.configure({"type": "tuning", "sysctl": {"net.ipv4.no_such_thing": "1"}})
    network = node.network()
    await network.refresh()
    config = network.current_config_json()
    pod = node.pod()

    with pytest.raises(PluginFailed, match="network plugin tuning failed ADD"):
        await network.add(pod, config_json=config)
    assert len(node.leased()) == 2

    await network.delete(pod, config_json=config, result_json="")
    assert node.leased() == set()
    assert "eth0" not in ip("-n", "pwtest-1", "-o", "link")


async def test_gc_frees_what_belongs_to_no_pod(node):
    node.configure()
    gone, kept = node.pod(1), node.pod(2)
    earlier = node.network()
    await earlier.add(gone)
    await earlier.add(kept)

    await node.network().gc({kept.pod_id})

    assert node.leased() == node.addresses(2)


async def test_many_pods_at_once_get_different_addresses(node):
    node.configure()
    network = node.network()
    pods = [node.pod(n) for n in range(1, 9)]

    attached = await asyncio.gather(*(network.add(pod) for pod in pods))

    assert len({address for one in attached for address in one.ips}) == 16
    await asyncio.gather(*(network.delete(pod, config_json="", result_json="") for pod in pods))
    assert node.leased() == set()


async def test_a_version_the_plugins_do_not_speak_is_told_before_any_pod_needs_it(node):
    node.configure(version="1.1.0")
    ok, reason, message = await node.network().refresh()

    assert (ok, reason) == (False, "NetworkPluginNotReady")
    assert message.startswith("Network plugin returns error: ")
    assert "1.1.0" in message


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
async def test_every_version_the_plugins_speak(node, version):
    node.configure(
        {"type": "tuning", "sysctl": {"net.ipv4.conf.eth0.rp_filter": "2"}}, version=version
    )
    network = node.network()
    assert (await network.refresh())[0]
    pod = node.pod()

    attached = await network.add(pod)

    assert json.loads(attached.result_json)["cniVersion"] == version
    assert node.addresses() == set(attached.ips)
    await network.check(pod, config_json="", result_json="")
    await network.delete(pod, config_json="", result_json="")
    assert node.leased() == set()
