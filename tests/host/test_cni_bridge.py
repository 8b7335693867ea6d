"""Pods attached to a real bridge by the real plugins."""

from __future__ import annotations

import asyncio
import json

import pytest

from cni.attachment import Bandwidth
from cni.errors import PluginFailed
from cni.network import PortMapping
from tests.host.cni_node import Node

pytestmark = pytest.mark.root

TUNING = {"type": "tuning", "sysctl": {"net.ipv4.conf.eth0.rp_filter": "2"}}
PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": False}


@pytest.fixture
def node(tmp_path):
    made = Node(tmp_path)
    try:
        yield made
    finally:
        made.close()


async def test_a_pod_gets_both_addresses_and_gives_them_back(node):
    node.configure()
    network = node.network()
    assert await network.refresh() == (True, "", "")
    pod = node.pod()

    attached = await network.add(pod)

    assert len(attached.ips) == 2
    assert attached.ips[0].startswith("10.88.77.")
    assert attached.ips[1].startswith("fd00:88:77:")
    assert node.addresses(pod) == set(attached.ips)
    await network.check(pod, config_json=attached.config_json, result_json=attached.result_json)

    await network.delete(pod, config_json=attached.config_json, result_json=attached.result_json)
    assert node.leased() == set()
    assert "eth0" not in node.links(pod)
    assert list((node.root / "cache" / "results").iterdir()) == []
    await network.delete(pod, config_json=attached.config_json, result_json=attached.result_json)


async def test_the_other_family_may_come_first(node):
    node.configure()
    attached = await node.network(ip_pref="ipv6").add(node.pod())

    assert attached.ips[0].startswith("fd00:88:77:")


async def test_check_notices_a_missing_address(node):
    node.configure()
    network = node.network()
    pod = node.pod()
    attached = await network.add(pod)
    await network.check(pod, config_json="", result_json="")
    node.host(
        "nsenter",
        f"--net={pod.netns_path}",
        "ip",
        "addr",
        "flush",
        "dev",
        "eth0",
        "scope",
        "global",
    )

    with pytest.raises(PluginFailed, match="failed CHECK"):
        await network.check(pod, config_json=attached.config_json, result_json=attached.result_json)


async def test_a_chain_with_a_host_port_and_tuning(node):
    node.configure(PORTMAP, TUNING)
    network = node.network()
    ports = (
        PortMapping(container_port=80, host_port=18080, protocol="TCP"),
        PortMapping(container_port=81),
    )
    pod = node.pod(port_mappings=ports)

    attached = await network.add(pod)
    rules = node.host("iptables-save", "-t", "nat")
    assert "--dport 18080" in rules
    assert ":81" not in rules

    await network.delete(pod, config_json=attached.config_json, result_json="")
    assert "18080" not in node.host("iptables-save", "-t", "nat")
    assert node.leased() == set()


async def test_bandwidth_limits_reach_the_kernel(node):
    node.configure({"type": "bandwidth", "capabilities": {"bandwidth": True}})
    pod = node.pod(bandwidth=Bandwidth(ingress_bits_per_s=8_000_000))

    await node.network().add(pod)

    assert "rate 8Mbit" in node.host("tc", "qdisc", "show")


@pytest.mark.cell("CN8")
async def test_delete_after_the_namespace_and_the_configuration_went(node):
    node.configure(PORTMAP)
    pod = node.pod(port_mappings=(PortMapping(container_port=80, host_port=18081),))
    attached = await node.network().add(pod)
    assert len(node.leased()) == 2
    node.remove_namespace(pod)
    (node.conf_dir / "10-test.conflist").unlink()

    later = node.network()
    await later.delete(pod, config_json=attached.config_json, result_json=attached.result_json)

    assert node.leased() == set()
    assert "18081" not in node.host("iptables-save", "-t", "nat")


async def test_delete_uses_the_cache_when_the_caller_has_nothing(node):
    node.configure()
    pod = node.pod()
    await node.network().add(pod)
    assert len(node.leased()) == 2

    await node.network().delete(pod, config_json="", result_json="")

    assert node.leased() == set()


@pytest.mark.cell("CN9")
async def test_delete_when_the_namespace_is_a_plain_file(node, tmp_path):
    node.configure()
    network = node.network()
    pod = node.pod()
    attached = await network.add(pod)
    impostor = tmp_path / "net"
    impostor.touch()
    moved = type(pod)(
        **{**{f: getattr(pod, f) for f in pod.__struct_fields__}, "netns_path": str(impostor)}
    )

    await network.delete(moved, config_json=attached.config_json, result_json=attached.result_json)

    assert node.leased() == set()
    assert impostor.exists()


@pytest.mark.cell("CN5")
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
    assert "eth0" not in node.links(pod)


async def test_gc_frees_what_belongs_to_no_pod(node):
    node.configure()
    gone, kept = node.pod(1), node.pod(2)
    earlier = node.network()
    await earlier.add(gone)
    await earlier.add(kept)

    await node.network().gc({kept.pod_id})

    assert node.leased() == node.addresses(kept)


@pytest.mark.cell("CN14")
async def test_many_pods_at_once_get_different_addresses(node):
    node.configure()
    network = node.network()
    pods = [node.pod(n) for n in range(1, 9)]

    attached = await asyncio.gather(*(network.add(pod) for pod in pods))

    assert len({address for one in attached for address in one.ips}) == 16
    await asyncio.gather(*(network.delete(pod, config_json="", result_json="") for pod in pods))
    assert node.leased() == set()


@pytest.mark.cell("CN14")
async def test_a_range_that_is_used_up_fails_cleanly_and_recovers(node):
    ranges = [[{"subnet": "10.88.78.0/29", "rangeStart": "10.88.78.2", "rangeEnd": "10.88.78.3"}]]
    node.configure(ipam={"type": "host-local", "ranges": ranges, "dataDir": str(node.leases)})
    network = node.network()
    first, second, third = (node.pod(n) for n in (1, 2, 3))
    await network.add(first)
    await network.add(second)

    with pytest.raises(PluginFailed, match="no IP addresses available"):
        await network.add(third)
    await network.delete(third, config_json="", result_json="")
    await network.delete(first, config_json="", result_json="")

    assert (await network.add(third)).ips == ("10.88.78.2",)


async def test_a_version_the_plugins_do_not_speak_is_told_before_any_pod_needs_it(node):
    node.configure(version="1.1.0")
    ok, reason, message = await node.network().refresh()

    assert (ok, reason) == (False, "NetworkPluginNotReady")
    assert message.startswith("Network plugin returns error: ")
    assert "1.1.0" in message


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
async def test_every_version_the_plugins_speak(node, version):
    node.configure(TUNING, version=version)
    network = node.network()
    assert (await network.refresh())[0]
    pod = node.pod()

    attached = await network.add(pod)

    assert json.loads(attached.result_json)["cniVersion"] == version
    assert node.addresses(pod) == set(attached.ips)
    await network.check(pod, config_json="", result_json="")
    await network.delete(pod, config_json="", result_json="")
    assert node.leased() == set()
