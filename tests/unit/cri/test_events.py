"""Subscribers hear created, started, stopped, deleted; in order, once, whatever is reported."""

import asyncio

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.events import EventType
from sandbox.model import (
    Container,
    ContainerConfig,
    PodConfig,
    PodMetadata,
    PodSandbox,
    ProcessRef,
)
from sandbox.states import ContainerState, PodState
from tests.fakes.daemon import FakeEvents

CREATED, STARTED, STOPPED, DELETED = EventType
WHOLE = [CREATED, STARTED, STOPPED, DELETED]
PAUSE = ProcessRef(pid=1, start_ticks=1, boot_id="b")
POD = PodSandbox(
    id="pod",
    config=PodConfig(metadata=PodMetadata(name="p", uid="u", namespace="n")),
    state=PodState.READY,
    created_at_ns=1,
    pause=PAUSE,
)
C1 = Container(
    id="c1",
    pod_id="pod",
    config=ContainerConfig(name="c"),
    state=ContainerState.CREATED,
    created_at_ns=2,
)


def changed(value, **fields):
    return msgspec.structs.replace(value, **fields)


@pytest.fixture
def events():
    made = FakeEvents()
    made.pods["pod"] = POD
    return made


def queued(subscription):
    return [(event.object_id, event.type) for event in subscription._queue]


def test_a_whole_life(events):
    broker = events.broker
    with events.subscribe() as heard:
        broker.pod_started(POD)
        broker.container_created(C1)
        broker.container_started(C1)
        broker.container_stopped(C1)
        broker.container_deleted(C1)
        broker.pod_stopped(POD)
        broker.pod_deleted(POD)
    assert queued(heard) == [
        ("pod", CREATED),
        ("pod", STARTED),
        *(("c1", step) for step in WHOLE),
        ("pod", STOPPED),
        ("pod", DELETED),
    ]


def test_an_exit_that_overtakes_its_start(events):
    """The program may end before the runtime's start has returned."""
    ended = changed(C1, state=ContainerState.EXITED, start_begun_ns=5)
    with events.subscribe() as heard:
        events.broker.container_created(C1)
        events.broker.container_stopped(ended)
        events.broker.container_started(ended)
    assert [step for _, step in queued(heard)] == [CREATED, STARTED, STOPPED]


@pytest.mark.parametrize(
    "fields", [{"start_begun_ns": 5, "reason": "StartError"}, {"start_begun_ns": 0}]
)
def test_a_container_that_never_ran_is_not_said_to_have_started(events, fields):
    with events.subscribe() as heard:
        events.broker.container_created(C1)
        events.broker.container_stopped(changed(C1, state=ContainerState.EXITED, **fields))
    assert [step for _, step in queued(heard)] == [CREATED, STOPPED]


def test_a_creation_that_is_undone_is_not_heard_of(events):
    with events.subscribe() as heard:
        events.broker.container_stopped(C1)
        events.broker.container_deleted(C1)
        events.broker.pod_stopped(POD)
        events.broker.pod_deleted(POD)
    assert queued(heard) == []


def test_the_next_attempt_under_the_same_id_is_a_new_life(events):
    """Ids are random; what counts is that nothing of a life is remembered after its end."""
    with events.subscribe() as heard:
        for _ in range(2):
            events.broker.container_created(C1)
            events.broker.container_deleted(C1)
    assert [step for _, step in queued(heard)] == [CREATED, DELETED] * 2


REPORTS = [
    "pod_started", "pod_stopped", "pod_deleted",
    "container_created", "container_started", "container_stopped", "container_deleted",
]  # fmt: skip


@given(st.lists(st.sampled_from(REPORTS), max_size=30), st.booleans())
def test_any_reports_in_any_order_make_lives(reports, begun):
    events = FakeEvents()
    events.pods["pod"] = POD
    container = changed(C1, start_begun_ns=int(begun))
    with events.subscribe() as heard:
        for report in reports:
            value = POD if report.startswith("pod") else container
            getattr(events.broker, report)(value)
    for object_id in ("pod", "c1"):
        last = DELETED
        for step in (step for one, step in queued(heard) if one == object_id):
            assert step is CREATED if last is DELETED else step > last
            last = step


def test_an_event_carries_the_pod_and_its_containers_as_of_then(events):
    hidden = changed(C1, id="c2", state=ContainerState.CREATING)
    foreign = changed(C1, id="c3", pod_id="other")
    events.containers = {"c1": C1, "c2": hidden, "c3": foreign}
    with events.subscribe() as heard:
        events.broker.container_created(C1)
        running = changed(C1, state=ContainerState.RUNNING)
        events.containers["c1"] = running
        events.pods["pod"] = changed(POD, ips=("10.0.0.1",))
        events.clock.advance(1)
        events.broker.container_started(running)
    first, second = heard._queue
    assert (first.pod, first.containers) == (POD, (C1,))
    assert (second.pod.ips, second.containers) == (("10.0.0.1",), (running,))
    assert second.at_ns == first.at_ns + 1_000_000_000


def test_what_was_there_at_start_is_not_told_again(events):
    events.pods["gone"] = changed(POD, id="gone", state=PodState.NOT_READY)
    events.pods["half"] = changed(POD, id="half", state=PodState.NOT_READY, pause=None)
    states = {
        "made": ContainerState.CREATED,
        "runs": ContainerState.RUNNING,
        "ended": ContainerState.EXITED,
        "half-made": ContainerState.CREATING,
    }
    events.containers = {name: changed(C1, id=name, state=state) for name, state in states.items()}
    events.broker.adopt()
    with events.subscribe() as heard:
        for pod in list(events.pods.values()):
            events.broker.pod_started(pod) if pod.id == "pod" else None
            events.broker.pod_deleted(pod)
        for container in events.containers.values():
            events.broker.container_deleted(container)
    by_id = {}
    for object_id, step in queued(heard):
        by_id.setdefault(object_id, []).append(step)
    assert by_id == {
        "pod": [STOPPED, DELETED],
        "gone": [DELETED],
        "made": [DELETED],
        "runs": [STOPPED, DELETED],
        "ended": [DELETED],
    }


def test_a_container_whose_pod_is_gone_is_forgotten(events):
    events.broker.container_created(C1)
    del events.pods["pod"]
    events.broker.container_deleted(C1)
    assert events.broker._told == {}


def test_who_is_inside_learns_of_each_end_once_even_if_nobody_listens(events):
    ended = []
    events.broker.on_stopped(ended.append)
    events.broker.pod_started(POD)
    events.broker.container_created(C1)
    events.broker.container_started(C1)
    for _ in range(2):
        events.broker.container_stopped(C1)
        events.broker.pod_stopped(POD)
    events.broker.pod_deleted(POD)
    assert ended == ["c1", "pod"]


async def test_a_slow_client_loses_its_own_oldest_and_nobody_elses():
    events = FakeEvents(queue_limit=3)
    events.pods["pod"] = POD
    with events.subscribe() as slow, events.subscribe() as quick:
        heard = []
        for report in ("pod_started", "pod_stopped", "pod_deleted"):
            getattr(events.broker, report)(POD)
            while quick._queue:
                heard.append((await anext(quick)).type)
        assert heard == WHOLE
        assert [step for _, step in queued(slow)] == [STARTED, STOPPED, DELETED]
        assert (slow.lost, quick.lost, events.dropped) == (1, 0, 1)


async def test_an_event_wakes_who_waits(events):
    with events.subscribe() as heard:
        waiting = asyncio.ensure_future(anext(heard))
        await asyncio.sleep(0)
        assert not waiting.done()
        events.broker.pod_started(POD)
        assert (await waiting).type is CREATED
        assert (await anext(heard)).type is STARTED


async def test_a_client_that_left_is_told_nothing(events):
    with events.subscribe() as heard:
        assert events.broker.subscribers == 1
    assert events.broker.subscribers == 0
    events.broker.pod_started(POD)
    assert queued(heard) == []


async def test_at_the_end_what_is_queued_is_still_heard(events):
    with events.subscribe() as heard:
        events.broker.pod_started(POD)
        events.broker.close()
        assert [event.type async for event in heard] == [CREATED, STARTED]
    with events.subscribe() as late:
        assert [event async for event in late] == []
