"""When layers are walked, and who waits for it."""

import asyncio
import threading

import pytest

from metrics.disk_usage import LayerMeter
from sandbox.host.errors import Denied
from sandbox.host.trees import TreeUsage
from tests.fakes.clock import FakeClock

A, B = "a", "b"


class Walker:
    """Sizes by layer, and a record of the walks; each takes time of the clock where told."""

    def __init__(self, clock):
        self.clock = clock
        self.walks = []
        self.bytes = {A: 100, B: 200}
        self.takes_s = 0.0
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, key):
        self.gate.wait()
        self.walks.append(key)
        self.clock.advance(self.takes_s)
        if key not in self.bytes:
            raise Denied("not allowed", layer=key)
        return TreeUsage(self.bytes[key], 3)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def walker(clock):
    return Walker(clock)


@pytest.fixture
def meter(clock, walker):
    made = LayerMeter(clock=clock, max_age_s=10, measure=walker)
    yield made
    walker.gate.set()
    made.close()


async def settled(meter, layers):
    """Until the walk that `read` began is over."""
    await meter.read(layers)
    await asyncio.wrap_future(meter._walking)
    return await meter.read(layers)


async def test_a_new_layer_is_waited_for(meter, clock):
    usage = (await meter.read([A]))["a"]
    assert (usage.used_bytes, usage.inodes, usage.measured_at_ns) == (100, 3, clock.wall_ns())


async def test_an_answer_does_not_wait_for_a_walk_that_was_done_before(meter, clock, walker):
    await meter.read([A])
    clock.advance(11)
    walker.bytes[A] = 150
    walker.gate.clear()
    assert (await meter.read([A]))["a"].used_bytes == 100
    walker.gate.set()
    assert (await settled(meter, [A]))["a"].used_bytes == 150


async def test_a_young_number_is_not_measured_again(meter, clock, walker):
    for _ in range(3):
        await meter.read([A])
        clock.advance(3)
    assert walker.walks == [A]


async def test_a_layer_that_takes_long_is_walked_seldom(meter, clock, walker):
    walker.takes_s = 2.0
    await meter.read([A])
    for _ in range(3):
        clock.advance(11)
        await meter.read([A])
    assert walker.walks == [A]
    clock.advance(8)
    await settled(meter, [A])
    assert walker.walks == [A, A]


async def test_new_layers_come_first(meter, clock, walker):
    await meter.read([A])
    clock.advance(11)
    await settled(meter, [A, B])
    assert walker.walks == [A, B, A]


async def test_a_layer_that_cannot_be_walked_is_missing_and_costs_nobody_else(meter, walker):
    found = await meter.read(["x", A])
    assert set(found) == {"a"}
    await meter.read(["x"])
    assert walker.walks.count("x") == 1


async def test_what_is_gone_is_forgotten(meter, walker):
    await meter.read([A, B])
    meter.keep({"b"})
    await meter.read([A, B])
    assert walker.walks == [A, B, A]
