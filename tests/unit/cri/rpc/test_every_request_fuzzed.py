"""Every method of the contract under hostile requests: an answer or a failure that was planned.

An exception of no class of ours would reach a client as INTERNAL with a number; here it fails the
test with its trace. A code that clients take for something else (UNKNOWN, INTERNAL, DATA_LOSS) is
as wrong: nothing a client sends may look like a fault of the node.
"""

import asyncio
import random

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cri.rpc.method import StreamCall
from cri.rpc.service import build_methods
from cri.server import planned_failure
from cri.status import code_of, text_of
from protos import api_pb2 as pb
from sandbox.host.clock import SystemClock
from sandbox.host.errors import NotFound
from tests.fakes.daemon import (
    FakeContainers,
    FakeEvents,
    FakeImages,
    FakeNode,
    FakePods,
    FakeUsages,
)
from tests.fakes.streaming import FakeStreaming
from tests.unit.cri.messages import messages

RPCS = {
    method.name: GetMessageClass(method.input_type)
    for service in pb.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
#: What would be said of a fault of ours, or what clients read as something else.
WRONG = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS}
#: Unplanned exceptions come out of these in a text; so does a path of the source.
LEAKS = ("Traceback", ".py", "Error(", "object at 0x")
#: A list as long as the whole message may be.
MANY = 20_000


class Images(FakeImages):
    async def pull(self, image, credential, *, namespace="", on_progress=None):
        if image not in self.images:
            raise NotFound("no such image", image=image)
        return await super().pull(image, credential, namespace=namespace, on_progress=on_progress)

    async def fs_info(self):
        raise NotFound("nothing is measured here")


def all_methods():
    pods, containers = FakePods(), FakeContainers()
    methods = build_methods(
        pods=pods,
        containers=containers,
        images=Images(),
        node=FakeNode(),
        usages=FakeUsages(),
        streaming=FakeStreaming(),
        events=FakeEvents(),
        clock=SystemClock(),
        version="1.2.3",
    )
    return {method.name: method for method in methods}


def skeleton(name):
    """What the first checks of a method ask for, so that random parts reach the later ones."""
    metadata = pb.PodSandboxMetadata(name="a", uid="a", namespace="a")
    pod = pb.PodSandboxConfig(metadata=metadata)
    container = pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name="a"), image=pb.ImageSpec(image="a")
    )
    known = {
        "config": container if name == "CreateContainer" else pod,
        "sandbox_config": pod,
        "pod_sandbox_id": "a",
        "container_id": "a",
        "cmd": ["a"],
        "stdout": True,
        "linux": pb.LinuxContainerResources(),
        "image": pb.ImageSpec(image="a"),
    }
    fields = RPCS[name].DESCRIPTOR.fields_by_name
    wanted = {key: value for key, value in known.items() if key in fields}
    if name == "UpdateRuntimeConfig":
        return pb.UpdateRuntimeConfigRequest()
    return RPCS[name](**wanted)


def swell(message, seed):
    """One list somewhere in the message becomes very long."""
    lists = list(_lists(message))
    if not lists:
        return
    owner, field = random.Random(seed).choice(lists)
    values = getattr(owner, field.name)
    if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        if field.message_type.GetOptions().map_entry:
            for number in range(MANY):
                if field.message_type.fields_by_name["value"].cpp_type != (
                    FieldDescriptor.CPPTYPE_STRING
                ):
                    return
                values[f"k{number}"] = "v"
            return
        one = values[0] if values else GetMessageClass(field.message_type)()
        values.extend([one] * MANY)
    elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        values.extend(["a"] * MANY)
    else:
        values.extend([1] * MANY)


def _lists(message):
    for field in message.DESCRIPTOR.fields:
        if field.is_repeated:
            yield message, field
        elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE and message.HasField(field.name):
            yield from _lists(getattr(message, field.name))


async def outcome(method, data):
    """The code that the server would answer with; raises what nobody planned for."""
    try:
        call = method.open(data)
        if isinstance(call, StreamCall):
            answers = call.answers()
            first = asyncio.ensure_future(anext(answers, b""))
            # Events come only when something happens: being silent is an answer as well.
            done, _ = await asyncio.wait({first}, timeout=0.005)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            await answers.aclose()
            for task in done:
                task.result()
        else:
            answer = await call.answer()
            assert isinstance(answer, bytes)
    except Exception as error:
        planned = planned_failure(error)
        if planned is None:
            raise
        text = text_of(planned)
        assert code_of(planned) not in WRONG, text
        assert not any(word in text for word in LEAKS), text
        return code_of(planned)
    return grpc.StatusCode.OK


FUZZ = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def test_the_contract_has_all_its_methods_here():
    assert set(RPCS) <= set(all_methods())
    assert len(RPCS) >= 43


@pytest.mark.parametrize("name", sorted(RPCS))
def test_hostile_messages(name):
    @FUZZ
    @given(messages(RPCS[name]), st.booleans(), st.none() | st.integers(0, 1000))
    def run(message, complete, long_list):
        if complete:
            message.MergeFrom(skeleton(name))
        if long_list is not None:
            swell(message, long_list)
        method = all_methods()[name]
        asyncio.run(outcome(method, message.SerializeToString()))

    run()


@pytest.mark.parametrize("name", sorted(RPCS))
def test_bytes_that_are_hardly_messages(name):
    @FUZZ
    @given(st.binary(max_size=200), messages(RPCS[name]), st.integers(0, 400), st.booleans())
    def run(noise, message, where, is_cut):
        data = message.SerializeToString()
        if is_cut:
            data = data[:where]
        data = data[:where] + noise + data[where + 1 :]
        asyncio.run(outcome(all_methods()[name], data))

    run()
