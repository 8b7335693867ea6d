"""Control groups of real pods: what was asked for is what the kernel enforces, and all of it goes.

The same tests for both versions and both drivers: `PODWRIGHT_TEST_DRIVER` says which driver, the
machine which version. hack/vm has what this one may lack.
"""

from __future__ import annotations

import subprocess
import urllib.request
from pathlib import Path

from protos import api_pb2 as api
from tests.kit import groups
from tests.kit.calls import until
from tests.kit.limits import groups_of, in_force, version_2
from tests.kit.node import PATIENCE_S, Node
from tests.kit.registry import free_port

SLEEP = ["sleep", "1000"]
MIB = 1 << 20
PORT = free_port()
SETTINGS = {"metrics.address": f'"127.0.0.1:{PORT}"', "runtime.pids_limit": "77"}


def units(*names: str) -> list[str]:
    """Units of systemd that carry one of the names; none where it does not run."""
    if not Path("/run/systemd/system").is_dir():
        return []
    listed = subprocess.run(
        ["systemctl", "list-units", "--all", "--no-legend", "--plain", "podwright*"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [line for line in listed.splitlines() if any(name in line for name in names)]


def shown(group: str, name: str) -> str:
    """A property of the scope that is, or is above, a control group."""
    unit = next(part for part in group.split("/") if part.endswith(".scope"))
    return subprocess.run(
        ["systemctl", "show", "--value", "-p", name, unit],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


def huge_pages_can_be_limited(pid: int) -> bool:
    return any((each / "hugetlb.2MB.max").exists() for each in groups_of(pid, "hugetlb")) or any(
        (each / "hugetlb.2MB.limit_in_bytes").exists() for each in groups_of(pid, "hugetlb")
    )


def test_limits_of_a_container_are_in_the_kernel_and_change_there(node: Node, handler: str) -> None:
    pod = node.run_pod("limits", handler=handler)
    two = version_2()
    asked = api.LinuxContainerResources(
        cpu_shares=512,
        cpu_quota=50_000,
        cpu_period=100_000,
        memory_limit_in_bytes=64 * MIB,
        memory_swap_limit_in_bytes=96 * MIB,
        cpuset_cpus="0",
        cpuset_mems="0",
        hugepage_limits=[api.HugepageLimit(page_size="2MB", limit=4 * MIB)],
        unified={"memory.high": str(60 * MIB)} if two else {},
    )
    container = node.run(pod, "main", SLEEP, resources=asked)
    pid = node.container_pid(container)

    # Where it is.
    own = groups.container(node.tag, "limits", container)
    assert own in Path(f"/proc/{pid}/cgroup").read_text()

    def limits() -> dict[str, str]:
        return {
            "weight": in_force(pid, "cpu", "cpu.shares", "cpu.weight"),
            "quota": in_force(pid, "cpu", "cpu.cfs_quota_us", "cpu.max").split()[0],
            "memory": in_force(pid, "memory", "memory.limit_in_bytes", "memory.max"),
            "swap": in_force(pid, "memory", "memory.memsw.limit_in_bytes", "memory.swap.max"),
            "cpus": in_force(pid, "cpuset", "cpuset.cpus"),
            "mems": in_force(pid, "cpuset", "cpuset.mems"),
            "pids": in_force(pid, "pids", "pids.max"),
            "huge": in_force(pid, "hugetlb", "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max"),
        }

    expected = {
        "weight": "20" if two else "512",
        "quota": "50000",
        "memory": str(64 * MIB),
        "swap": str((32 if two else 96) * MIB),
        "cpus": "0",
        "mems": "0",
        "pids": "77",
        "huge": str(4 * MIB),
    }
    assert limits() == expected
    if two:
        assert in_force(pid, "memory", "memory.high") == str(60 * MIB)

    node.runtime.UpdateContainerResources(
        api.UpdateContainerResourcesRequest(
            container_id=container,
            linux=api.LinuxContainerResources(
                cpu_shares=1024,
                cpu_quota=70_000,
                cpu_period=100_000,
                memory_limit_in_bytes=128 * MIB,
                memory_swap_limit_in_bytes=160 * MIB,
                cpuset_cpus="1",
                hugepage_limits=[api.HugepageLimit(page_size="2MB", limit=8 * MIB)],
                unified={"memory.high": str(100 * MIB)} if two else {},
            ),
        ),
        timeout=PATIENCE_S,
    )
    changed = {
        "weight": "39" if two else "1024",
        "quota": "70000",
        "memory": str(128 * MIB),
        "swap": str((32 if two else 160) * MIB),
        "cpus": "1",
        "huge": str(8 * MIB),
    }
    assert limits() == {**expected, **changed}
    if two:
        assert in_force(pid, "memory", "memory.high") == str(100 * MIB)

    # A reload makes systemd write its own idea of every unit again.
    if groups.DRIVER == "systemd":
        # crun's limit is on the group below the scope, so this one would be systemd's 15 %.
        assert shown(own, "TasksMax") == "77"
        subprocess.run(["systemctl", "daemon-reload"], check=True)
        assert limits() == {**expected, **changed}

    # A command is where its container is, so it is under the same limits.
    code, text, _ = node.exec(container, "cat", "/proc/self/cgroup")
    assert code == 0
    inside = node.exec(container, "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!")[1]
    assert inside.strip()
    assert text
    members = {
        process
        for directory in [next(iter(groups_of(pid, "memory")))]
        for process in (directory / "cgroup.procs").read_text().split()
    }
    assert len(members) == 2

    # The daemon finds it again, and its limits can still be changed.
    node.restart()
    assert node.status(container).state == api.CONTAINER_RUNNING
    node.runtime.UpdateContainerResources(
        api.UpdateContainerResourcesRequest(
            container_id=container,
            linux=api.LinuxContainerResources(memory_limit_in_bytes=96 * MIB),
        ),
        timeout=PATIENCE_S,
    )
    assert limits()["memory"] == str(96 * MIB)

    node.stop_container(container)
    node.remove_container(container)
    assert not units(container)
    assert not any(Path(f"{root}{own}").exists() for root in groups.hierarchies())
    node.stop_pod(pod)
    node.remove_pod(pod)
    assert not units(pod)


def test_what_needs_too_much_memory_is_killed_and_told(node: Node, handler: str) -> None:
    pod = node.run_pod("oom", handler=handler)
    limits = api.LinuxContainerResources(
        memory_limit_in_bytes=24 * MIB, memory_swap_limit_in_bytes=24 * MIB
    )
    script = "head -c 200000000 /dev/zero | tail -c 100000000 | cat; exit 3"
    alone = node.run(pod, "alone", ["tail", "-c", "100000000", "/dev/zero"], resources=limits)
    part = node.run(pod, "part", ["sh", "-c", script], resources=limits)
    status = node.wait_exited(alone)
    assert (status.exit_code, status.reason) == (137, "OOMKilled")
    # The kernel killed a part of it, and the rest ended by itself: still the same reason.
    assert node.wait_exited(part).reason in ("OOMKilled", "Error")
    for container in (alone, part):
        node.remove_container(container)
        assert not units(container), "a scope that failed stays loaded until somebody says reset"


def test_what_forks_and_ignores_signals_ends_with_its_container(node: Node, handler: str) -> None:
    pod = node.run_pod("stop", handler=handler)
    script = "trap '' TERM; for i in 1 2 3; do setsid sleep 1000 & done; while :; do sleep 1; done"
    container = node.run(pod, "main", ["sh", "-c", script])
    pid = node.container_pid(container)
    group = next(iter(groups_of(pid, "memory")))
    until(lambda: len((group / "cgroup.procs").read_text().split()) >= 4, "it has forked")
    node.stop_container(container, grace_s=1)
    assert node.status(container).exit_code == 137
    until(
        lambda: not group.exists() or not (group / "cgroup.procs").read_text().split(),
        "nothing of it lives",
    )


def test_usage_comes_from_the_groups(node: Node, handler: str) -> None:
    pod = node.run_pod("usage", handler=handler)
    limits = api.LinuxContainerResources(memory_limit_in_bytes=128 * MIB)
    work = "tail -c 30000000 /dev/zero & while :; do :; done"
    container = node.run(pod, "main", ["sh", "-c", work], resources=limits)
    request = api.ContainerStatsRequest(container_id=container)

    def used() -> api.ContainerStats | None:
        found = node.runtime.ContainerStats(request, timeout=PATIENCE_S).stats
        return found if found.memory.working_set_bytes.value > 25 * MIB else None

    stats = until(used, "its memory is seen")
    assert stats.cpu.usage_core_nano_seconds.value > 10**6
    assert 25 * MIB < stats.memory.rss_bytes.value < 128 * MIB
    assert stats.memory.available_bytes.value == 128 * MIB - stats.memory.working_set_bytes.value

    def pod_used() -> bool:
        # The last look at the pod may be older than that at the container.
        answer = node.runtime.PodSandboxStats(
            api.PodSandboxStatsRequest(pod_sandbox_id=pod), timeout=PATIENCE_S
        )
        found = answer.stats.linux
        grown = found.memory.working_set_bytes.value > 25 * MIB
        return bool(grown and found.process.process_count.value == 3)

    until(pod_used, "its pod's memory and the three processes are seen")
    pid = node.container_pid(container)
    if version_2() and any((g / "cpu.pressure").exists() for g in groups_of(pid, "cpu")):
        assert stats.cpu.psi.Some.Total > 0
        assert stats.memory.HasField("psi")
    metrics = node.runtime.ListPodSandboxMetrics(
        api.ListPodSandboxMetricsRequest(), timeout=PATIENCE_S
    )
    names = {
        metric.name
        for each in metrics.pod_metrics
        for one in each.container_metrics
        for metric in one.metrics
    }
    assert {
        "container_cpu_usage_seconds_total",
        "container_memory_working_set_bytes",
        "container_spec_memory_limit_bytes",
        "container_processes",
    } <= names
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=PATIENCE_S) as answer:
        assert answer.status == 200


def test_a_pod_that_names_no_parent_has_one_while_it_lives(node: Node, handler: str) -> None:
    config = node.pod_config("orphan")
    config.linux.cgroup_parent = ""
    config.linux.resources.memory_limit_in_bytes = 200 * MIB
    config.linux.resources.cpu_quota = 60_000
    pod = node.run_config(config, handler=handler)
    container = node.run(pod, "main", SLEEP)
    pid = node.container_pid(container)
    memory = ("memory.limit_in_bytes", "memory.max")

    def parent_limit() -> int:
        values = [
            int(text)
            for group in groups_of(pid, "memory")
            for name in memory
            if (group / name).exists() and pod in group.name
            if (text := (group / name).read_text().strip()).isdecimal()
        ]
        return max(values, default=0)

    # systemd counts in pages.
    assert 0 <= 200 * MIB - parent_limit() < 4096
    assert in_force(pid, "cpu", "cpu.cfs_quota_us", "cpu.max").split()[0] in ("60000", "-1")
    node.runtime.UpdatePodSandboxResources(
        api.UpdatePodSandboxResourcesRequest(
            pod_sandbox_id=pod,
            resources=api.LinuxContainerResources(memory_limit_in_bytes=300 * MIB),
        ),
        timeout=PATIENCE_S,
    )
    assert 0 <= 300 * MIB - parent_limit() < 4096
    parent = next(group for group in groups_of(pid, "memory") if f"pod{pod}" in group.name)
    node.stop_pod(pod)
    node.remove_pod(pod)
    assert not parent.exists()
    assert not units(pod, container)
