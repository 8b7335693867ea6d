"""The 43 RPCs of CRI 0.37 against `cri.rpc.service`: a new one cannot be forgotten."""

import json
import typing
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cri.rpc import checkpoint, containers, images, node, observe, pods, sessions
from cri.rpc.archives import SERVICE as ARCHIVES
from cri.rpc.progress import SERVICE
from cri.rpc.service import LARGER, QUIET, build_methods, python_name
from cri.rpc.verify import SERVICE as STORE
from protos import api_pb2 as pb
from sandbox.host.clock import SystemClock
from tests.fakes.daemon import (
    FakeContainers,
    FakeEvents,
    FakeImages,
    FakeNode,
    FakePods,
    FakeUsages,
)
from tests.fakes.streaming import FakeStreaming

FACTS = json.loads((Path(__file__).parents[1] / "golden/cri-v1-0.37.json").read_text())
CLASSES = (
    pods.PodCalls, containers.ContainerCalls, sessions.SessionCalls, observe.ObserveCalls,
    checkpoint.CheckpointCalls, node.NodeCalls, images.ImageCalls,
)  # fmt: skip
METHODS = [
    (service, name, request, response)
    for service, methods in FACTS["services"].items()
    for name, (request, response) in methods.items()
]


@pytest.fixture
def answered():
    return build_methods(
        pods=FakePods(),
        containers=FakeContainers(),
        images=FakeImages(),
        node=FakeNode(),
        usages=FakeUsages(),
        streaming=FakeStreaming(),
        events=FakeEvents(),
        clock=SystemClock(),
        version="0",
    )


def test_all_of_the_contract_and_three_services_of_our_own(answered):
    assert len(METHODS) == 43
    ours = {(m.service, m.name) for m in answered if m.service not in {SERVICE, ARCHIVES, STORE}}
    assert ours == {(f"runtime.v1.{service}", name) for service, name, _, _ in METHODS}
    assert len(answered) == 48
    assert len({m.path for m in answered}) == 48


@pytest.mark.parametrize(("service", "name", "request_type", "response_type"), METHODS)
def test_handlers_take_and_give_what_the_contract_says(
    service, name, request_type, response_type, answered
):
    [handler] = [
        getattr(owner, python_name(name)) for owner in CLASSES if hasattr(owner, python_name(name))
    ]
    hints = typing.get_type_hints(handler, localns={"pb": pb, "AsyncIterator": AsyncIterator})
    returned = hints.pop("return")
    streams = response_type.startswith("stream ")
    response = getattr(pb, response_type.removeprefix("stream "))
    if returned in (bytes, AsyncIterator[bytes]):
        # Joined by hand: the response must have one repeated field, number 1, and nothing else.
        [field] = response.DESCRIPTOR.fields
        assert (field.number, field.is_repeated) == (1, True)
        assert streams == (returned is not bytes)
    else:
        assert returned == (AsyncIterator[response] if streams else response)
    assert list(hints.values()) == [getattr(pb, request_type)]
    [method] = [m for m in answered if (m.service, m.name) == (f"runtime.v1.{service}", name)]
    assert method.streams == streams


def test_no_class_has_a_method_that_the_contract_has_not():
    known = {python_name(name) for _, name, _, _ in METHODS}
    for owner in CLASSES:
        assert {name for name in vars(owner) if not name.startswith("_")} <= known


def test_tables_name_methods_of_the_contract():
    names = {name for _, name, _, _ in METHODS}
    assert names >= QUIET
    assert names >= {*LARGER, *LARGER.values()}
