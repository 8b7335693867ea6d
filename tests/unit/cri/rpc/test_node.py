import json

import pytest

from cri.rpc.node import NodeCalls
from protos import api_pb2 as pb
from tests.fakes.daemon import FakeNode


@pytest.fixture
def calls():
    return NodeCalls(FakeNode(), "1.2.3")


async def test_no_field_of_version_is_empty(calls):
    answer = await calls.version(pb.VersionRequest())
    assert len(answer.ListFields()) == 4


async def test_status_has_conditions_handlers_and_features(calls):
    answer = await calls.status(pb.StatusRequest())
    conditions = {c.type: (c.status, c.reason, c.message) for c in answer.status.conditions}
    assert conditions == {
        "RuntimeReady": (True, "", ""),
        "NetworkReady": (False, "NetworkPluginNotReady", "no configuration"),
    }
    handlers = [(h.name, h.features.recursive_read_only_mounts) for h in answer.runtime_handlers]
    assert handlers == [("", False), ("crun", True)]
    assert answer.features.supplemental_groups_policy
    assert not answer.features.mount_options
    assert not answer.info


async def test_verbose_status_has_one_document_per_key(calls):
    answer = await calls.status(pb.StatusRequest(verbose=True))
    assert {key: json.loads(value) for key, value in answer.info.items()} == {"config": {"a": 1}}


async def test_the_cgroup_driver(calls):
    answer = await calls.runtime_config(pb.RuntimeConfigRequest())
    assert answer.linux.cgroup_driver == pb.SYSTEMD


async def test_pod_addresses_are_handed_over():
    node = FakeNode()
    config = pb.RuntimeConfig(network_config=pb.NetworkConfig(pod_cidr="10.1.2.0/24"))
    calls = NodeCalls(node, "1.2.3")
    await calls.update_runtime_config(pb.UpdateRuntimeConfigRequest(runtime_config=config))
    await calls.update_runtime_config(pb.UpdateRuntimeConfigRequest())
    assert node.pod_cidrs == ["10.1.2.0/24", ""]
