"""What the measurement of a node's load takes for granted about the kernel, time and calls."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit.measure import Target
from tests.kit.measure_node import (
    LOOKED_AT,
    Arrivals,
    cpu_seconds,
    cpu_ticks,
    delay_ms,
    failures_noted,
    kill,
    poll_of,
    remove_cgroups,
    supported,
)

STARTED = api.CONTAINER_STARTED_EVENT
STOPPED = api.CONTAINER_STOPPED_EVENT


class Refusal(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code


class Failure(Refusal):
    def details(self) -> str:
        return "no such task"


class Events:
    """A stream of events that ends, with an error if there is one."""

    def __init__(self, *events: tuple[str, int], error: Exception | None = None) -> None:
        self._events = events
        self._error = error
        self.cancelled = False

    def __iter__(self) -> Iterator[api.ContainerEventResponse]:
        for container, kind in self._events:
            yield api.ContainerEventResponse(container_id=container, container_event_type=kind)
        if self._error is not None:
            raise self._error

    def cancel(self) -> None:
        self.cancelled = True


def refuse(code: grpc.StatusCode) -> None:
    raise Refusal(code)


def test_a_method_that_does_not_exist_is_told_from_one_that_fails() -> None:
    assert supported(lambda: None)
    assert not supported(lambda: refuse(grpc.StatusCode.UNIMPLEMENTED))
    assert supported(lambda: refuse(grpc.StatusCode.INTERNAL))


def test_failed_calls_are_counted_and_shown() -> None:
    target = Target(name="one", socket=Path("/none"))
    with failures_noted(target, "failed"):
        pass
    assert target.samples == {}
    for _ in range(2):
        with failures_noted(target, "failed"):
            raise Failure(grpc.StatusCode.NOT_FOUND)
    assert target.samples == {"failed": [2]}


def test_events_are_told_apart_by_container_and_type() -> None:
    began_ns = time.monotonic_ns()
    events = Events(("one", STARTED), ("one", STOPPED), ("two", STARTED))
    arrivals = Arrivals(events)
    stopped_ns = arrivals.wait("one", STOPPED)
    assert began_ns <= arrivals.wait("one", STARTED) <= stopped_ns <= arrivals.wait("two", STARTED)
    with pytest.raises(LookupError):
        arrivals.wait("two", STOPPED)
    arrivals.close()
    assert events.cancelled


def test_a_runtime_without_events_says_so_to_whoever_waits() -> None:
    arrivals = Arrivals(Events(error=Refusal(grpc.StatusCode.UNIMPLEMENTED)))
    assert not supported(lambda: arrivals.wait("one", STARTED))
    arrivals.close()


def test_an_event_before_its_answer_has_no_delay() -> None:
    assert delay_ms(5_000_000, 3_000_000) == 0
    assert delay_ms(3_000_000, 5_000_000) == 2.0


def test_every_pod_is_looked_at_in_turn() -> None:
    seen = [number for second in range(20) for number in poll_of(second, 60).looked_at]
    assert seen == list(range(60))
    assert len(poll_of(7, 2).looked_at) == min(2, LOOKED_AT)


def test_how_often_a_kubelet_asks_in_a_minute() -> None:
    polls = [poll_of(second, 60) for second in range(60)]
    assert sum(poll.usage for poll in polls) == 6
    assert sum(poll.image_filesystem for poll in polls) == 2
    assert sum(poll.status for poll in polls) == 12


def test_processor_time_whatever_the_program_is_called() -> None:
    after = "S 1 2 3 4 5 6 7 8 9 10 70 30 5 5 20 0 1"
    assert cpu_ticks(f"42 (pod) wright) {after}") == 100


def test_processor_time_of_this_process() -> None:
    used = os.times()
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    assert cpu_seconds(os.getpid()) >= used.user + used.system - 2 * tick_s


def test_the_end_of_a_killed_process_is_seen() -> None:
    process = subprocess.Popen(["sleep", "1000"])
    before_ns = time.monotonic_ns()
    ended_ns = kill(process.pid)
    assert before_ns < ended_ns <= time.monotonic_ns()
    assert process.wait() == -9


def test_our_control_groups_go_from_every_hierarchy_and_no_others(tmp_path: Path) -> None:
    for hierarchy in ("cpu", "memory", "elsewhere"):
        for name in ("bench/pod/container", "others"):
            (tmp_path / hierarchy / name).mkdir(parents=True)
    kinds = {"cpu": "cgroup", "memory": "cgroup2", "elsewhere": "tmpfs"}
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "".join(f"1 2 0:3 / {tmp_path}/{n} rw shared:9 - {k} x rw\n" for n, k in kinds.items())
    )
    remove_cgroups("bench", mounts)
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.glob("*/*"))
    assert left == ["cpu/others", "elsewhere/bench", "elsewhere/others", "memory/others"]
