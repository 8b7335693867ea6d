"""Ready or not, and why: the judgement as a function, and one look after the other."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from cni.config import ConfigProblem, Loaded, parse_network
from cni.errors import NetworkNotReady, PluginFailed, PluginMissing
from cni.readiness import NetworkState, Readiness, judge, not_ready
from cni.settings import CniSettings
from tests.fakes.clock import FakeClock

NETWORK = parse_network('{"name": "net", "plugins": [{"type": "a"}]}')
READY = NetworkState(ok=True)
UNREADY = not_ready("before")
BUSY = PluginFailed("a", "STATUS", "controller is starting", code=50)
OTHER_VERSION = PluginFailed("a", "VERSION", "does not speak it")
MISSING = PluginMissing("a", "STATUS", "no executable file")


def judged(previous, loaded, failure=None, failing_s=0.0):
    return judge(
        previous,
        loaded,
        failure,
        directory=Path("/etc/cni/net.d"),
        failing_s=failing_s,
        grace_s=10.0,
    )


@pytest.mark.parametrize("previous", [READY, UNREADY])
def test_without_a_network_the_reason_names_directory_and_files(previous):
    problems = tuple(ConfigProblem(f"/etc/cni/net.d/{n}.conf", f"why {n}") for n in range(5))

    state = judged(previous, Loaded(None, problems))

    assert (state.ok, state.reason) == (False, "NetworkPluginNotReady")
    assert state.message == (
        "Network plugin returns error: no network configuration in /etc/cni/net.d "
        "(0.conf: why 0; 1.conf: why 1; 2.conf: why 2; and 2 more)"
    )
    empty = judged(previous, Loaded(None))
    assert empty.message.endswith("no network configuration in /etc/cni/net.d")


@pytest.mark.parametrize("previous", [READY, UNREADY])
def test_a_network_whose_plugins_are_well_is_ready(previous):
    assert judged(previous, Loaded(NETWORK)) == NetworkState(ok=True, reason="", message="")


@pytest.mark.parametrize(
    ("previous", "failure", "failing_s", "ok"),
    [
        (READY, BUSY, 0.0, True),
        (READY, BUSY, 9.9, True),
        (READY, BUSY, 10.0, False),
        (READY, MISSING, 0.0, False),
        (READY, OTHER_VERSION, 0.0, False),
        (UNREADY, BUSY, 0.0, False),
        (UNREADY, MISSING, 0.0, False),
    ],
)
def test_a_ready_network_may_be_unwell_for_a_while(previous, failure, failing_s, ok):
    state = judged(previous, Loaded(NETWORK), failure, failing_s)
    assert state.ok is ok
    if not ok:
        assert state.message == f"Network plugin returns error: {failure}"


class Bench:
    """A readiness over a directory, with plugins whose state is a list of answers."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clock = FakeClock()
        self.failure: PluginFailed | None = None
        self.asked: list[str] = []
        settings = CniSettings(conf_dir=root, status_grace_s=10)
        self.readiness = Readiness(settings, self.clock, self.probe)

    async def probe(self, network) -> None:
        self.asked.append(network.name)
        if self.failure is not None:
            raise self.failure

    def configure(self, name: str, file: str = "10-net.conflist") -> Path:
        path = self.root / file
        path.write_text(json.dumps({"name": name, "plugins": [{"type": "a"}]}))
        return path


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


async def test_from_nothing_to_ready_and_back(bench):
    readiness = bench.readiness
    assert not readiness.state.ok
    with pytest.raises(NetworkNotReady, match="no network configuration"):
        readiness.config()

    assert not (await readiness.refresh()).ok
    assert bench.asked == []

    path = bench.configure("net")
    assert (await readiness.refresh()).ok
    assert readiness.config().name == "net"

    path.write_text("{")
    state = await readiness.refresh()
    assert "10-net.conflist: network configuration is invalid" in state.message
    with pytest.raises(NetworkNotReady, match="10-net"):
        readiness.config()

    path.unlink()
    bench.root.rmdir()
    assert not (await readiness.refresh()).ok
    bench.root.mkdir()
    bench.configure("again")
    assert (await readiness.refresh()).ok


async def test_the_grace_counts_from_the_first_failure_and_anew_after_a_success(bench):
    bench.configure("net")
    await bench.readiness.refresh()
    bench.failure = BUSY
    assert (await bench.readiness.refresh()).ok
    bench.clock.advance(9)
    assert (await bench.readiness.refresh()).ok
    bench.failure = None
    assert (await bench.readiness.refresh()).ok
    bench.failure = BUSY
    assert (await bench.readiness.refresh()).ok
    bench.clock.advance(10)
    assert not (await bench.readiness.refresh()).ok
    bench.failure = None
    assert (await bench.readiness.refresh()).ok


async def test_a_new_configuration_counts_before_its_plugins_answered(bench):
    """A pod that starts now must get the new network, however long STATUS takes."""
    bench.configure("net")
    answer = asyncio.Event()

    async def slow(network) -> None:
        await answer.wait()

    readiness = Readiness(CniSettings(conf_dir=bench.root), bench.clock, slow)
    async with asyncio.TaskGroup() as group:
        looking = group.create_task(readiness.refresh())
        await readiness.reload()
        assert readiness.config().name == "net"
        assert not readiness.state.ok
        answer.set()
    assert looking.result().ok


async def test_losing_the_network_is_known_at_once(bench):
    path = bench.configure("net")
    await bench.readiness.refresh()
    path.unlink()
    await bench.readiness.reload()
    assert not bench.readiness.state.ok
