"""Usage, metrics, events and resize of real pods, over the socket."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit.calls import until
from tests.kit.limits import group_of_pod, groups_of, in_force, version_2
from tests.kit.messages import namespaces
from tests.kit.node import PATIENCE_S, Node

SLEEP = ["sleep", "1000"]
MIB = 1 << 20
CREATED, STARTED, STOPPED, DELETED = (
    api.CONTAINER_CREATED_EVENT,
    api.CONTAINER_STARTED_EVENT,
    api.CONTAINER_STOPPED_EVENT,
    api.CONTAINER_DELETED_EVENT,
)


def shell(script: str) -> list[str]:
    return ["sh", "-c", script]


def stats(node: Node, container: str) -> api.ContainerStats:
    request = api.ContainerStatsRequest(container_id=container)
    return node.runtime.ContainerStats(request, timeout=PATIENCE_S).stats


def pod_stats(node: Node, pod: str) -> api.PodSandboxStats:
    request = api.PodSandboxStatsRequest(pod_sandbox_id=pod)
    return node.runtime.PodSandboxStats(request, timeout=PATIENCE_S).stats


class Listener:
    """Reads events in a thread, or does not read them at all."""

    def __init__(self, node: Node, *, reads: bool = True) -> None:
        self.events: list[api.ContainerEventResponse] = []
        self._call = node.runtime.GetContainerEvents(api.GetEventsRequest())
        self._thread = threading.Thread(target=self._read)
        if reads:
            self._thread.start()

    def _read(self) -> None:
        try:
            for event in self._call:
                self.events.append(event)
        except grpc.RpcError:
            return

    def lives(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for event in list(self.events):
            found.setdefault(event.container_id, []).append(event.container_event_type)
        return found

    def ended_with(self) -> grpc.StatusCode:
        """The end of the stream, which is waited for."""
        return self._call.code()  # type: ignore[no-any-return]

    def close(self) -> None:
        self._call.cancel()
        if self._thread.is_alive():
            self._thread.join()


@pytest.fixture
def listening(node: Node) -> Iterator[Callable[..., Listener]]:
    made: list[Listener] = []

    def listen(**options: bool) -> Listener:
        made.append(Listener(node, **options))
        return made[-1]

    yield listen
    for listener in made:
        listener.close()


# Usage.


def test_what_a_container_does_is_in_its_numbers(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    limits = api.LinuxContainerResources(memory_limit_in_bytes=256 * MIB)
    work = "head -c 40000000 /dev/zero | tail -c 30000000 > /f; while :; do :; done"
    container = node.run(pod, "main", shell(work), resources=limits)
    first = until(lambda: _with_layer(stats(node, container), 30 * 10**6), "the layer has grown")
    assert first.attributes.labels["name"] == "main"
    assert first.writable_layer.inodes_used.value >= 2
    assert Path(first.writable_layer.fs_id.mountpoint).is_dir()

    def later() -> api.ContainerStats | None:
        found = stats(node, container)
        rated = found.cpu.HasField("usage_nano_cores")
        return found if rated and found.cpu.timestamp > first.cpu.timestamp else None

    second = until(later, "there is a rate after two samples")
    assert second.cpu.usage_core_nano_seconds.value > first.cpu.usage_core_nano_seconds.value
    assert 10**7 < second.cpu.usage_nano_cores.value < 4 * 10**9
    memory = second.memory
    assert 0 < memory.working_set_bytes.value <= memory.usage_bytes.value < 256 * MIB
    assert memory.available_bytes.value == 256 * MIB - memory.working_set_bytes.value
    assert memory.page_faults.value > 0

    def whole_pod() -> api.PodSandboxStats | None:
        # The last look at the pod may be older than that at the container.
        found = pod_stats(node, pod)
        used, processes = found.linux.cpu.usage_core_nano_seconds, found.linux.process
        known = second.cpu.usage_core_nano_seconds.value
        return found if used.value >= known and processes.process_count.value == 2 else None

    of_pod = until(whole_pod, "the pod's numbers have what its container's have")
    assert [c.attributes.id for c in of_pod.linux.containers] == [container]


def _with_files(found: api.ContainerStats, count: int) -> api.ContainerStats | None:
    return found if found.writable_layer.inodes_used.value >= count else None


def _with_layer(found: api.ContainerStats, size: int) -> api.ContainerStats | None:
    return found if found.writable_layer.used_bytes.value >= size else None


def test_the_network_of_a_pod_is_its_default_interface(node: Node) -> None:
    pod, hosted = node.run_pod("pod"), node.run_pod("host", spaces=namespaces(network="NODE"))
    container = node.run(pod, "main", SLEEP)
    before = pod_stats(node, pod).linux.network.default_interface
    assert before.name == "eth0"
    gateway = "$(ip route | sed -n 's/^default via \\([0-9.]*\\).*/\\1/p')"
    assert node.exec(container, "sh", "-c", f"ping -c 3 {gateway}")[0] == 0
    until(
        lambda: (
            pod_stats(node, pod).linux.network.default_interface.tx_bytes.value
            >= before.tx_bytes.value + 3 * 64  # the payloads alone
        ),
        "what was sent is counted",
    )
    assert not pod_stats(node, hosted).linux.HasField("network")


def test_what_has_ended_answers_with_what_is_left(node: Node) -> None:
    pod = node.run_pod("pod")
    container = node.run(pod, "main", shell("echo text > /f"))
    node.wait_exited(container)
    found = until(lambda: _with_files(stats(node, container), 2), "its layer is measured")
    assert not found.HasField("cpu")
    listed = node.runtime.ListContainerStats(api.ListContainerStatsRequest(), timeout=PATIENCE_S)
    assert container not in [s.attributes.id for s in listed.stats]
    node.stop_pod(pod)
    with pytest.raises(grpc.RpcError) as refused:
        pod_stats(node, pod)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION  # type: ignore[attr-defined]


def test_every_metric_has_the_labels_it_is_described_with(node: Node) -> None:
    pod = node.run_pod("pod")
    container = node.run(pod, "main", shell("echo x > /f; sync; exec sleep 1000"))
    described = node.runtime.ListMetricDescriptors(
        api.ListMetricDescriptorsRequest(), timeout=PATIENCE_S
    ).descriptors
    keys = {family.name: list(family.label_keys) for family in described}
    assert len(keys) == 56

    def scraped() -> api.PodSandboxMetrics | None:
        answer = node.runtime.ListPodSandboxMetrics(
            api.ListPodSandboxMetricsRequest(), timeout=PATIENCE_S
        )
        [mine] = [metrics for metrics in answer.pod_metrics if metrics.pod_sandbox_id == pod]
        return mine if mine.container_metrics else None

    # Only a device that was waited for is counted, and not every kernel tells of pressure.
    optional = (
        "container_fs_reads",
        "container_fs_writes",
        "container_blkio",
        "container_pressure",
    )

    def complete() -> bool:
        mine = until(scraped, "the container is scraped")
        [of_container] = mine.container_metrics
        assert of_container.container_id == container
        seen = set()
        for metric in [*mine.metrics, *of_container.metrics]:
            labels = dict(zip(keys[metric.name], metric.label_values, strict=True))
            assert (labels["pod"], labels["namespace"]) == ("pod", "integration")
            seen.add(metric.name)
        return all(name.startswith(optional) for name in keys.keys() - seen)

    until(complete, "a scrape has every metric")


def test_streams_have_what_the_lists_have(node: Node) -> None:
    pods = [node.run_pod(f"pod{n}") for n in range(3)]
    containers = [node.run(pod, "main", SLEEP) for pod in pods]
    runtime = node.runtime
    streamed = {
        item.id
        for part in runtime.StreamPodSandboxes(api.StreamPodSandboxesRequest(), timeout=PATIENCE_S)
        for item in part.pod_sandboxes
    }
    assert streamed == {pod.id for pod in node.pods()}
    found = [
        item.id
        for part in runtime.StreamContainers(api.StreamContainersRequest(), timeout=PATIENCE_S)
        for item in part.containers
    ]
    assert found == [container.id for container in node.containers()]
    usage = [
        item.attributes.id
        for part in runtime.StreamContainerStats(
            api.StreamContainerStatsRequest(), timeout=PATIENCE_S
        )
        for item in part.container_stats
    ]
    assert set(containers) <= set(usage)
    assert len(set(usage)) == len(usage)
    images = [
        item.id
        for part in node.images.StreamImages(api.StreamImagesRequest(), timeout=PATIENCE_S)
        for item in part.images
    ]
    listed = node.images.ListImages(api.ListImagesRequest(), timeout=PATIENCE_S).images
    assert images == [image.id for image in listed]


# Events.


def test_events_of_whole_lives(
    node: Node, handler: str, listening: Callable[..., Listener]
) -> None:
    heard = listening()
    until(lambda: _is_heard(node, heard), "the listener is there")
    pod = node.run_pod("pod", handler=handler)
    lasting = node.run(pod, "lasting", SLEEP)
    short = node.run(pod, "short", ["true"])
    node.wait_exited(short)
    node.stop_container(lasting)
    node.remove_container(lasting)
    node.stop_pod(pod)
    node.stop_pod(pod)
    node.remove_pod(pod)
    whole = [CREATED, STARTED, STOPPED, DELETED]
    until(lambda: heard.lives().get(pod) == whole, "the pod's life was heard")
    assert heard.lives()[lasting] == heard.lives()[short] == whole
    mine = [event for event in heard.events if event.pod_sandbox_status.id == pod]
    order = [(event.container_id, event.container_event_type) for event in mine]
    assert order[:2] == [(pod, CREATED), (pod, STARTED)]
    assert order[-1] == (pod, DELETED)
    assert order.index((pod, STOPPED)) > order.index((short, STOPPED))
    for event in mine:
        assert event.pod_sandbox_status.metadata.uid == "uid-pod"
        states = {status.id: status.state for status in event.containers_statuses}
        if event.container_id == lasting and event.container_event_type == STARTED:
            assert states == {lasting: api.CONTAINER_RUNNING}
        if event.container_event_type == STOPPED and event.container_id != pod:
            assert states[event.container_id] == api.CONTAINER_EXITED
    stamps = [event.created_at for event in mine]
    assert stamps == sorted(stamps)


def _is_heard(node: Node, heard: Listener) -> bool:
    """A subscription begins a moment after the call: knock until it is answered."""
    knock = node.run_pod("knock")
    node.stop_pod(knock)
    node.remove_pod(knock)
    time.sleep(0.05)
    return bool(heard.events)


def test_a_pod_that_loses_its_pause_process_is_told_once(
    node: Node, listening: Callable[..., Listener]
) -> None:
    heard = listening()
    until(lambda: _is_heard(node, heard), "the listener is there")
    pod = node.run_pod("pod")
    node.host("kill", "-KILL", str(node.pod_pid(pod)))
    until(lambda: heard.lives().get(pod) == [CREATED, STARTED, STOPPED], "its end was heard")
    node.remove_pod(pod)
    until(lambda: heard.lives()[pod][-1] == DELETED, "its removal was heard")
    assert heard.lives()[pod] == [CREATED, STARTED, STOPPED, DELETED]


def test_creations_that_fail_are_not_heard_of(
    node: Node, listening: Callable[..., Listener]
) -> None:
    heard = listening()
    until(lambda: _is_heard(node, heard), "the listener is there")
    pod = node.run_pod("pod")
    with pytest.raises(grpc.RpcError):
        node.create(
            pod,
            "bad",
            ["true"],
            mounts=[api.Mount(container_path="/x", host_path="/proc/1/nope/x")],
        )
    node.stop_pod(pod)
    node.remove_pod(pod)
    until(lambda: heard.lives().get(pod, [None])[-1] == DELETED, "the pod's life was heard")
    others = set(heard.lives()) - {pod}
    assert all(heard.lives()[one] == [CREATED, STARTED, STOPPED, DELETED] for one in others)
    named = {e.pod_sandbox_status.metadata.name for e in heard.events if e.container_id in others}
    assert named == {"knock"}


@pytest.mark.cell("LD9")
def test_many_listeners_of_which_half_never_read(
    node: Node, listening: Callable[..., Listener]
) -> None:
    readers = [listening() for _ in range(10)]
    for _ in range(10):
        listening(reads=False)
    until(lambda: _is_heard(node, readers[-1]), "the listeners are there")
    pods = [node.run_pod(f"pod{n}") for n in range(4)]
    for pod in pods:
        node.run(pod, "main", ["true"])
        node.stop_pod(pod)
        node.remove_pod(pod)
    for reader in readers:
        until(lambda r=reader: r.lives().get(pods[-1], [0])[-1] == DELETED, "all was heard")  # type: ignore[misc]
    lives = [{k: v for k, v in r.lives().items() if k in pods} for r in readers]
    assert all(life == lives[0] for life in lives)
    assert all(life == [CREATED, STARTED, STOPPED, DELETED] for life in lives[0].values())


def test_listening_does_not_hold_up_the_end_of_the_daemon(
    node: Node, listening: Callable[..., Listener]
) -> None:
    """It ends the stream itself; who is cut off at the end of the grace hears of a failure."""
    heard = listening()
    until(lambda: _is_heard(node, heard), "the listener is there")
    daemon = node.process
    assert daemon is not None
    daemon.terminate()
    assert heard.ended_with() is grpc.StatusCode.OK
    node.forget_process()
    assert daemon.returncode == 0
    node.start_daemon()


# Limits.


def resize(node: Node, container: str, **limits: object) -> None:
    node.runtime.UpdateContainerResources(
        api.UpdateContainerResourcesRequest(
            container_id=container,
            linux=api.LinuxContainerResources(**limits),  # type: ignore[arg-type]
        ),
        timeout=PATIENCE_S,
    )


def score(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def test_every_limit_can_be_changed(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = node.run(pod, "main", shell("sleep 1000 & exec sleep 1000"))
    resize(
        node,
        container,
        cpu_shares=700,
        cpu_quota=70_000,
        cpu_period=100_000,
        memory_limit_in_bytes=64 * MIB,
        memory_swap_limit_in_bytes=96 * MIB,
        cpuset_cpus="0",
        cpuset_mems="0",
        oom_score_adj=654,
        hugepage_limits=[api.HugepageLimit(page_size="2MB", limit=4 * MIB)],
    )
    told = node.status(container).resources.linux
    assert (told.cpu_shares, told.cpu_quota, told.oom_score_adj) == (700, 70_000, 654)
    assert (told.memory_limit_in_bytes, told.memory_swap_limit_in_bytes) == (64 * MIB, 96 * MIB)
    assert told.cpuset_cpus == "0"
    assert [(h.page_size, h.limit) for h in told.hugepage_limits] == [("2MB", 4 * MIB)]
    pid = node.container_pid(container)
    assert memory_limit(pid) == 64 * MIB
    # Version 2 has a limit for what is swapped, not for both together.
    swap = in_force(pid, "memory", "memory.memsw.limit_in_bytes", "memory.swap.max")
    assert swap == str((32 if version_2() else 96) * MIB)
    assert shares(pid) == (27 if version_2() else 700)
    assert quota(pid) == "70000"
    assert in_force(pid, "cpuset", "cpuset.cpus") == "0"
    huge = in_force(pid, "hugetlb", "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max")
    assert huge == str(4 * MIB)
    procs = next(groups_of(pid, "memory")) / "cgroup.procs"
    until(lambda: len(procs.read_text().split()) == 2, "the shell has started its child")
    assert [score(int(member)) for member in procs.read_text().split()] == [654, 654]
    if handler == "crun":  # runc gives commands the score of the creation
        _, text, _ = node.exec(container, "cat", "/proc/self/oom_score_adj")
        assert text.strip() == "654"


def test_commands_have_the_score_of_their_container(node: Node, handler: str) -> None:
    """Not that of the daemon, which may be protected from the OOM killer."""
    pod = node.run_pod("pod", handler=handler)
    limits = api.LinuxContainerResources(oom_score_adj=321)
    container = node.run(pod, "main", SLEEP, resources=limits)
    _, text, _ = node.exec(container, "cat", "/proc/self/oom_score_adj")
    assert text.strip() == "321"


def memory_limit(pid: int) -> int:
    return int(in_force(pid, "memory", "memory.limit_in_bytes", "memory.max"))


def shares(pid: int) -> int:
    return int(in_force(pid, "cpu", "cpu.shares", "cpu.weight"))


def quota(pid: int) -> str:
    return in_force(pid, "cpu", "cpu.cfs_quota_us", "cpu.max").split()[0]


def test_a_limit_below_what_is_in_use_changes_nothing(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    limits = api.LinuxContainerResources(memory_limit_in_bytes=128 * MIB, cpu_shares=500)
    hold = "exec tail -c 40000000 /dev/zero"  # keeps what it has read
    container = node.run(pod, "main", shell(hold), resources=limits)
    until(lambda: stats(node, container).memory.working_set_bytes.value > 30 * MIB, "it has grown")
    with pytest.raises(grpc.RpcError, match="in use") as refused:
        resize(node, container, memory_limit_in_bytes=20 * MIB, cpu_shares=900, oom_score_adj=1)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION  # type: ignore[attr-defined]
    told = node.status(container).resources.linux
    assert (told.memory_limit_in_bytes, told.cpu_shares) == (128 * MIB, 500)
    pid = node.container_pid(container)
    assert (memory_limit(pid), shares(pid)) == (128 * MIB, 19 if version_2() else 500)
    assert node.status(container).state == api.CONTAINER_RUNNING


def test_a_refusal_in_the_middle_is_undone(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    limits = api.LinuxContainerResources(memory_limit_in_bytes=64 * MIB, cpu_shares=500)
    container = node.run(pod, "main", SLEEP, resources=limits)
    with pytest.raises(grpc.RpcError):
        resize(
            node,
            container,
            cpu_shares=900,
            cpu_quota=30_000,
            memory_limit_in_bytes=96 * MIB,
            cpuset_cpus="4095",
        )
    pid = node.container_pid(container)
    assert (memory_limit(pid), shares(pid)) == (64 * MIB, 19 if version_2() else 500)
    assert quota(pid) in ("-1", "max")
    resize(node, container, cpu_shares=901)
    assert node.status(container).resources.linux.cpu_shares == 901


def test_limits_of_a_pod_are_kept_shown_and_applied_where_the_group_is_ours(node: Node) -> None:
    config = node.pod_config("pod")
    config.linux.cgroup_parent = ""
    config.linux.resources.memory_limit_in_bytes = 200 * MIB
    config.linux.resources.cpu_quota = 60_000
    pod = node.run_config(config)
    container = node.run(pod, "main", SLEEP)
    group = group_of_pod(node.container_pid(container), "memory", pod)
    limit = group / ("memory.max" if version_2() else "memory.limit_in_bytes")
    assert limit.read_text() == f"{200 * MIB}\n"
    request = api.UpdatePodSandboxResourcesRequest(
        pod_sandbox_id=pod,
        resources=api.LinuxContainerResources(memory_limit_in_bytes=300 * MIB),
        overhead=api.LinuxContainerResources(cpu_shares=5),
    )
    node.runtime.UpdatePodSandboxResources(request, timeout=PATIENCE_S)
    assert limit.read_text() == f"{300 * MIB}\n"
    node.restart()
    status = node.runtime.PodSandboxStatus(
        api.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True), timeout=PATIENCE_S
    )
    [text] = status.info.values()
    assert '"memory_limit_bytes":314572800' in text.replace(" ", "")
    assert '"cpu_quota_usec":60000' in text.replace(" ", "")
    assert status.timestamp > 0
    assert [one.id for one in status.containers_statuses] == [container]
