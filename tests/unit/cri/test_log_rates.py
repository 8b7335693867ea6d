import logging
from types import SimpleNamespace

import pytest

from cri.log_rates import LogRates
from metrics.instruments import Instruments
from metrics.settings import LogRateSettings
from sandbox.states import ContainerState
from tests.fakes.clock import FakeClock


class Store:
    """As much of the state store as is looked at."""

    def __init__(self, directory):
        self.directory = directory
        self.pods, self.containers = {}, {}

    def add(self, pod, container, state=ContainerState.RUNNING):
        metadata = SimpleNamespace(name=pod, namespace="n")
        self.pods[pod] = SimpleNamespace(config=SimpleNamespace(metadata=metadata))
        path = self.directory / f"{container}.log"
        path.touch()
        self.containers[container] = SimpleNamespace(
            id=container,
            pod_id=pod,
            state=state,
            log_path=str(path),
            config=SimpleNamespace(name=f"name-{container}"),
        )
        return path


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


@pytest.fixture
def make(store):
    made = []

    def build(**settings):
        clock, instruments = FakeClock(), Instruments("0")
        rates = LogRates(
            LogRateSettings(**settings), store=store, instruments=instruments, clock=clock
        )
        made.append(rates)
        return rates, clock, instruments

    yield build
    for rates in made:
        rates.close()


def value(instruments, line):
    lines = instruments.exposition().decode().splitlines()
    return [float(text.rpartition(" ")[2]) for text in lines if text.startswith(line)]


async def test_everything_is_counted_together(store, make):
    one, two = store.add("p", "one"), store.add("q", "two")
    ended = store.add("q", "ended", ContainerState.EXITED)
    rates, clock, instruments = make()
    await rates.look()
    one.write_bytes(b"x" * 100)
    two.write_bytes(b"x" * 11)
    ended.write_bytes(b"x" * 5000)
    clock.advance(1)
    await rates.look()
    assert value(instruments, "podwright_container_log_bytes_total") == [111.0]
    assert b'pod="' not in instruments.exposition()
    one.rename(one.with_suffix(".1"))
    one.write_bytes(b"x")
    await rates.look()
    assert value(instruments, "podwright_container_log_rotations_total") == [1.0]


async def test_a_loud_container_is_named_once_until_it_is_quiet(store, make, caplog):
    path = store.add("p", "one")
    rates, clock, _ = make(warning_bytes=100)

    async def second(size):
        with path.open("ab") as file:
            file.write(b"x" * size)
        clock.advance(1)
        await rates.look()
        return len(caplog.records)

    with caplog.at_level(logging.WARNING):
        assert [await second(n) for n in (9, 100, 101, 500, 50, 200)] == [0, 0, 1, 1, 1, 2]
    said = caplog.records[0].podwright_fields
    assert (said["namespace"], said["pod"], said["name"]) == ("n", "p", "name-one")
    assert said["bytes_per_s"] == 101


async def test_no_warning_without_a_limit(store, make, caplog):
    path = store.add("p", "one")
    rates, clock, _ = make(warning_bytes=0)
    await rates.look()
    path.write_bytes(b"x" * 100_000)
    clock.advance(1)
    with caplog.at_level(logging.WARNING):
        await rates.look()
    assert caplog.records == []


async def test_only_the_fastest_pods_have_a_series(store, make):
    paths = {f"c{n}": store.add(f"pod{n // 2}", f"c{n}") for n in range(8)}
    rates, clock, instruments = make(pods=2)
    await rates.look()
    for number, path in enumerate(paths.values()):
        path.write_bytes(b"x" * 10 * number)
    clock.advance(1)
    await rates.look()
    lines = instruments.exposition().decode().splitlines()
    series = [line for line in lines if line.startswith("podwright_pod_log_bytes_per_second{")]
    assert series == [
        'podwright_pod_log_bytes_per_second{namespace="n",pod="pod2"} 90.0',
        'podwright_pod_log_bytes_per_second{namespace="n",pod="pod3"} 130.0',
    ]
    clock.advance(1)
    await rates.look()
    assert "podwright_pod_log_bytes_per_second{" not in instruments.exposition().decode()
