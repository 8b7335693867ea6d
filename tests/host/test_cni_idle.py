"""What is believed of plugins that are left out, tried with the real ones of this machine."""

from __future__ import annotations

import json

import pytest

from cni.config import load_directory
from cni.idle import IdlePlugins, identity_of
from sandbox.host.processes import HostProcessRunner
from tests.host.cni_node import PLUGINS, Node

pytestmark = pytest.mark.root

CHAINED = (
    {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
    {"type": "bandwidth", "capabilities": {"bandwidth": True}},
)


@pytest.fixture
def node(tmp_path):
    made = Node(tmp_path)
    try:
        yield made
    finally:
        made.close()


async def life(node, number):
    """A pod attached, looked at and detached: its result, and what the node had meanwhile."""
    network = node.network()
    assert (await network.refresh())[0]
    pod = node.pod(number)
    attached = await network.add(pod)
    meanwhile = state_of(node)
    await network.delete(pod, config_json=attached.config_json, result_json=attached.result_json)
    return json.loads(attached.result_json), meanwhile, state_of(node)


def state_of(node):
    """What the two plugins could have changed: rules, how many links, queues with a limit."""
    rules = [text for text in node.host("iptables-save").splitlines() if text[:1] not in "#:"]
    links = len(node.host("ip", "-o", "link").splitlines())
    return rules, links, node.host("tc", "qdisc", "show").count("tbf")


async def test_the_real_programs_change_nothing_for_a_pod_that_wants_nothing(node):
    node.configure()
    await life(node, 1)  # makes the bridge
    alone = await life(node, 2)
    # The node's plugins are scripts around the real ones, so these are run.
    node.configure(*CHAINED)
    chained = await life(node, 3)

    assert chained[1:] == alone[1:]
    assert chained[0].keys() == alone[0].keys()
    assert len(chained[0]["interfaces"]) == len(alone[0]["interfaces"])
    assert len(chained[0]["ips"]) == len(alone[0]["ips"])


@pytest.mark.parametrize("plugin", ["portmap", "bandwidth"])
async def test_the_real_programs_say_who_they_are(node, plugin):
    node.configure(*CHAINED)
    network = load_directory(node.conf_dir).config
    assert network is not None
    chosen = next(p for p in network.plugins if p.type == plugin)
    idle = IdlePlugins(HostProcessRunner())
    identity = identity_of(PLUGINS / plugin)
    assert identity is not None
    assert not idle.has_nothing_to_do(network, chosen, {}, identity)

    await idle.learn(plugin, identity, 10.0)

    assert idle.has_nothing_to_do(network, chosen, {}, identity)
    wishes = {"portMappings": [{}], "bandwidth": {}}
    assert not idle.has_nothing_to_do(network, chosen, wishes, identity)


async def test_their_scripts_do_not(node):
    node.configure(*CHAINED)
    network = load_directory(node.conf_dir).config
    assert network is not None
    idle = IdlePlugins(HostProcessRunner())
    identity = identity_of(node.bin_dir / "portmap")
    assert identity is not None
    await idle.learn("portmap", identity, 10.0)
    assert not idle.has_nothing_to_do(network, network.plugins[1], {}, identity)
