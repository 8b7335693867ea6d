"""What containers are, with both OCI runtimes: their ends, limits, logs, files, users."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit.calls import until
from tests.kit.limits import groups_of, in_force, version_2
from tests.kit.messages import PREDEFINED_GROUP, namespaces
from tests.kit.node import PATIENCE_S, Node

IMAGES = ("registry.localhost/busybox:latest", PREDEFINED_GROUP)

SLEEP = ["sleep", "1000"]
#: A program that writes a line whenever it is sent the signal, and goes on.
STUBBORN = "trap 'echo got {0}' {0}; echo ready; while :; do sleep 0.1; done"


def code_of(error: pytest.ExceptionInfo[grpc.RpcError]) -> grpc.StatusCode:
    return error.value.code()  # type: ignore[attr-defined]


def shell(script: str) -> list[str]:
    return ["sh", "-c", script]


# How they end.


@pytest.mark.parametrize(
    ("script", "code", "reason"),
    [
        ("exit 0", 0, "Completed"),
        ("exit 1", 1, "Error"),
        ("exit 42", 42, "Error"),
        ("exit 255", 255, "Error"),
        ("sh -c 'kill -KILL $$'; exit $?", 137, "Error"),
    ],
)
def test_exit_code_and_reason(
    node: Node, handler: str, script: str, code: int, reason: str
) -> None:
    pod = node.run_pod("pod", handler=handler)
    status = node.wait_exited(node.run(pod, "main", shell(script)))
    assert (status.exit_code, status.reason) == (code, reason)
    assert 0 < status.created_at <= status.started_at <= status.finished_at


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGSEGV, signal.SIGKILL])
def test_death_by_signal_is_128_and_its_number(
    node: Node, handler: str, number: signal.Signals
) -> None:
    pod = node.run_pod("pod", handler=handler, spaces=namespaces(pid="POD"))
    container = node.run(pod, "main", SLEEP, spaces=namespaces(pid="POD"))
    os.kill(node.program_pid(container), number)
    assert node.wait_exited(container).exit_code == 128 + number


@pytest.mark.cell("HD11")
def test_out_of_memory_is_told(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    limits = api.LinuxContainerResources(memory_limit_in_bytes=16 << 20)
    hog = shell("dd if=/dev/zero of=/dev/null bs=64M")
    status = node.wait_exited(node.run(pod, "main", hog, resources=limits))
    assert (status.exit_code, status.reason) == (137, "OOMKilled")


def test_killed_by_us_is_not_out_of_memory(node: Node, handler: str) -> None:
    """A child died for memory long ago; the end of the container is the stop's."""
    pod = node.run_pod("pod", handler=handler)
    limits = api.LinuxContainerResources(memory_limit_in_bytes=16 << 20)
    script = (
        "dd if=/dev/zero of=/dev/null bs=64M; echo after; trap '' TERM; while :; do sleep 1; done"
    )
    container = node.run(pod, "main", shell(script), resources=limits)
    node.wait_log("pod", "main", "after")
    node.stop_container(container)
    status = node.status(container)
    assert (status.exit_code, status.reason) == (137, "Error")


@pytest.mark.parametrize(
    ("command", "words"),
    [(["/no/such/program"], "no such"), (["/etc/passwd"], "permission"), (["/etc"], "")],
)
def test_program_that_cannot_be_run(
    node: Node, handler: str, command: list[str], words: str
) -> None:
    """Some runtimes say so at create, others at start; the container never looks alive."""
    pod = node.run_pod("pod", handler=handler)
    with pytest.raises(grpc.RpcError) as refused:
        node.start(node.create(pod, "main", command))
    assert words in refused.value.details().lower()  # type: ignore[attr-defined]
    for container in node.containers():
        status = node.status(container.id)
        assert status.state == api.CONTAINER_EXITED
        assert (status.exit_code, status.reason) == (128, "StartError")
        assert words in status.message.lower()
        node.remove_container(container.id)
    # The name is free.
    assert node.wait_exited(node.run(pod, "main", ["true"])).exit_code == 0


@pytest.mark.cell("HD10")
def test_hundred_short_containers_all_have_their_codes(node: Node) -> None:
    pod = node.run_pod("pod")
    with ThreadPoolExecutor(10) as clients:

        def life(number: int) -> int:
            container = node.run(pod, f"c{number}", shell(f"exit {number}"))
            return node.wait_exited(container).exit_code

        assert list(clients.map(life, range(100))) == list(range(100))


# Stopping.


def test_stop_signal_is_the_images_or_the_requests(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    usual = node.run(pod, "usual", shell(STUBBORN.format("TERM")))
    asked = node.run(pod, "asked", shell(STUBBORN.format("USR1")), stop_signal="SIGNAL_SIGUSR1")
    for name in ("usual", "asked"):
        node.wait_log("pod", name, "ready")
    for container, name, number in ((usual, "usual", "TERM"), (asked, "asked", "USR1")):
        with ThreadPoolExecutor(1) as client:
            stopping = client.submit(node.stop_container, container, 1000)
            node.wait_log("pod", name, f"got {number}")
            assert node.status(container).state == api.CONTAINER_RUNNING
            node.stop_container(container, 0)
            stopping.result()
        assert node.status(container).exit_code == 137


def test_grace_is_waited_for_and_ends_with_the_program(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    script = "trap 'sleep 0.5; exit 3' TERM; echo ready; while :; do sleep 0.1; done"
    container = node.run(pod, "main", shell(script))
    node.wait_log("pod", "main", "ready")
    node.stop_container(container, 1000)
    status = node.status(container)
    assert (status.exit_code, status.reason) == (3, "Error")


def test_grace_over_means_kill(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = node.run(pod, "main", shell(STUBBORN.format("TERM")))
    node.wait_log("pod", "main", "ready")
    # Long enough for a shell on a busy machine to come to say that it was asked.
    node.stop_container(container, 3)
    assert node.status(container).exit_code == 137
    assert "got TERM" in node.log_of("pod", "main")


@pytest.mark.cell("LD5")
def test_shorter_grace_wins_and_a_longer_one_does_not(node: Node) -> None:
    pod = node.run_pod("pod")
    container = node.run(pod, "main", shell(STUBBORN.format("TERM")))
    node.wait_log("pod", "main", "ready")
    with ThreadPoolExecutor(8) as clients:
        graces = (3600, 2000, 3600, 1000, 3, 500)
        stops = [clients.submit(node.stop_container, container, grace) for grace in graces]
        for stop in stops:
            stop.result()
    assert node.log_of("pod", "main").count("got TERM") == 1


def test_stop_of_a_created_or_unknown_or_ended_container(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    created = node.create(pod, "created", SLEEP)
    node.stop_container(created, 1000)
    assert node.status(created).state == api.CONTAINER_EXITED
    node.stop_container(created, 1000)
    node.stop_container("0" * 64, 1000)
    with pytest.raises(grpc.RpcError) as refused:
        node.start(created)
    assert code_of(refused) is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.cell("HD12")
def test_frozen_container_is_stopped_at_the_latest_when_it_thaws(node: Node) -> None:
    """Older kernels deliver SIGKILL to a frozen process of cgroup v1 only when it thaws."""
    pod = node.run_pod("pod")
    container = node.run(pod, "main", SLEEP)
    group = next(groups_of(node.container_pid(container), "freezer"))
    freezer, words = group / "freezer.state", ("FROZEN", "THAWED")
    if version_2():
        freezer, words = group / "cgroup.freeze", ("1", "0")
    freezer.write_text(words[0])
    until(lambda: freezer.read_text().strip() == words[0])
    with ThreadPoolExecutor(1) as client:
        stopping = client.submit(node.stop_container, container)
        assert node.run_pod("other")
        with contextlib.suppress(OSError):
            freezer.write_text(words[1])
        stopping.result()
    assert node.status(container).exit_code == 137


def test_remove_takes_a_running_container(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = node.run(pod, "main", SLEEP)
    node.remove_container(container)
    node.remove_container(container)
    assert not node.containers()
    with pytest.raises(grpc.RpcError) as missing:
        node.status(container)
    assert code_of(missing) is grpc.StatusCode.NOT_FOUND


def test_background_children_end_with_their_container(node: Node, handler: str) -> None:
    """In the pod's process namespace nothing but the control group holds them together."""
    spaces = namespaces(pid="POD")
    pod = node.run_pod("pod", handler=handler, spaces=spaces)
    script = "setsid sleep 1234 & setsid setsid sleep 1235 & sleep 0.2; exit 7"
    assert node.wait_exited(node.run(pod, "main", shell(script), spaces=spaces)).exit_code == 7
    until(lambda: not node.processes_doing("sleep 123"), "children are gone")


# Names.


def test_same_request_again_is_the_same_container(node: Node) -> None:
    pod = node.run_pod("pod")
    first = node.create(pod, "main", SLEEP)
    assert node.create(pod, "main", SLEEP) == first
    node.start(first)
    assert node.create(pod, "main", SLEEP) == first
    node.stop_container(first)
    with pytest.raises(grpc.RpcError) as refused:
        node.create(pod, "main", SLEEP)
    assert code_of(refused) is grpc.StatusCode.ALREADY_EXISTS
    assert node.create(pod, "main", SLEEP, attempt=1) != first


def test_start_again_fails_and_harms_nothing(node: Node) -> None:
    pod = node.run_pod("pod")
    container = node.run(pod, "main", SLEEP)
    before = node.status(container)
    with pytest.raises(grpc.RpcError) as refused:
        node.start(container)
    assert code_of(refused) is grpc.StatusCode.FAILED_PRECONDITION
    assert node.status(container) == before


def test_twenty_starts_at_once(node: Node) -> None:
    pod = node.run_pod("pod")
    container = node.create(pod, "main", SLEEP)
    with ThreadPoolExecutor(20) as clients:
        calls = [clients.submit(node.start, container) for _ in range(20)]
        failures = [call.exception() for call in calls]
    assert None in failures
    assert node.status(container).state == api.CONTAINER_RUNNING


def test_unknown_container(node: Node) -> None:
    node.remove_container("0" * 64)
    for call in (
        lambda: node.status("0" * 64),
        lambda: node.start("0" * 64),
        lambda: node.exec("0" * 64, "true"),
        lambda: node.runtime.ReopenContainerLog(
            api.ReopenContainerLogRequest(container_id="0" * 64), timeout=PATIENCE_S
        ),
        lambda: node.create("0" * 64, "main", SLEEP),
    ):
        with pytest.raises(grpc.RpcError) as missing:
            call()
        assert code_of(missing) is grpc.StatusCode.NOT_FOUND


def test_image_that_is_not_here(node: Node) -> None:
    pod = node.run_pod("pod")
    with pytest.raises(grpc.RpcError) as missing:
        node.create(pod, "main", SLEEP, image="registry.localhost/no-such:1")
    assert code_of(missing) is grpc.StatusCode.NOT_FOUND
    assert not node.containers()


# Limits.


def test_limits_are_set_and_changed(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    limits = api.LinuxContainerResources(
        cpu_period=100_000, cpu_quota=50_000, cpu_shares=512, memory_limit_in_bytes=64 << 20
    )
    container = node.run(pod, "main", SLEEP, resources=limits)
    pid = node.container_pid(container)
    assert in_force(pid, "memory", "memory.limit_in_bytes", "memory.max") == str(64 << 20)
    assert in_force(pid, "cpu", "cpu.cfs_quota_us", "cpu.max").split()[0] == "50000"
    node.runtime.UpdateContainerResources(
        api.UpdateContainerResourcesRequest(
            container_id=container,
            linux=api.LinuxContainerResources(memory_limit_in_bytes=128 << 20),
        ),
        timeout=PATIENCE_S,
    )
    assert in_force(pid, "memory", "memory.limit_in_bytes", "memory.max") == str(128 << 20)
    assert in_force(pid, "cpu", "cpu.cfs_quota_us", "cpu.max").split()[0] == "50000"
    told = node.status(container).resources.linux
    assert (told.memory_limit_in_bytes, told.cpu_quota, told.cpu_shares) == (128 << 20, 50_000, 512)
    node.stop_container(container)
    with pytest.raises(grpc.RpcError) as refused:
        node.runtime.UpdateContainerResources(
            api.UpdateContainerResourcesRequest(container_id=container, linux=limits),
            timeout=PATIENCE_S,
        )
    assert code_of(refused) is grpc.StatusCode.FAILED_PRECONDITION


def test_refused_limit_changes_nothing(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    limits = api.LinuxContainerResources(memory_limit_in_bytes=64 << 20)
    container = node.run(pod, "main", SLEEP, resources=limits)
    with pytest.raises(grpc.RpcError):
        node.runtime.UpdateContainerResources(
            api.UpdateContainerResourcesRequest(
                container_id=container, linux=api.LinuxContainerResources(cpuset_cpus="4096")
            ),
            timeout=PATIENCE_S,
        )
    assert node.status(container).resources.linux.memory_limit_in_bytes == 64 << 20
    assert node.status(container).resources.linux.cpuset_cpus == ""
    assert node.status(container).state == api.CONTAINER_RUNNING


# Logs.


def test_log_has_every_line_of_both_streams(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    script = "for i in $(seq 500); do echo out $i; echo err $i >&2; done; printf partial"
    container = node.run(pod, "main", shell(script))
    node.wait_exited(container)
    path = Path(node.status(container).log_path)
    lines = [line.split(" ", 3) for line in path.read_text().splitlines()]
    out = [words[3] for words in lines if words[1] == "stdout" and words[2] == "F"]
    err = [words[3] for words in lines if words[1] == "stderr"]
    assert out[:500] == [f"out {number}" for number in range(1, 501)]
    assert err == [f"err {number}" for number in range(1, 501)]
    assert lines[-1][3] == "partial" or ["stdout", "P", "partial"] in [w[1:] for w in lines]


@pytest.mark.cell("LG1")
def test_reopened_log_loses_and_doubles_no_line(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    script = "i=0; while :; do i=$((i+1)); echo $i; [ $((i % 50)) = 0 ] && sleep 0.01; done"
    container = node.run(pod, "main", shell(script))
    path = Path(node.status(container).log_path)
    moved = []
    for number in range(5):
        until(lambda: path.exists() and path.stat().st_size > 0, "something is logged")
        moved.append(path.with_name(f"old-{number}"))
        path.rename(moved[-1])
        node.runtime.ReopenContainerLog(
            api.ReopenContainerLogRequest(container_id=container), timeout=PATIENCE_S
        )
    node.stop_container(container)
    lines = [line for each in (*moved, path) for line in each.read_text().splitlines()]
    # A monitor that reads late reads many lines at once, and may write one in parts (P).
    heads = (line.split(" ", 3) for line in lines)
    text = "".join(words + ("\n" if tag == "F" else "") for _, _, tag, words in heads)
    numbers = [int(word) for word in text.split()]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.cell("LG3")
def test_log_cannot_be_reopened_after_the_end(node: Node) -> None:
    pod = node.run_pod("pod")
    container = node.run(pod, "main", ["true"])
    path = Path(node.wait_exited(container).log_path)
    path.unlink()
    with pytest.raises(grpc.RpcError) as refused:
        node.runtime.ReopenContainerLog(
            api.ReopenContainerLogRequest(container_id=container), timeout=PATIENCE_S
        )
    assert code_of(refused) is grpc.StatusCode.FAILED_PRECONDITION
    assert not path.exists()


@pytest.mark.cell("LG3")
def test_log_is_reopened_while_the_container_is_stopping(node: Node) -> None:
    pod = node.run_pod("pod")
    container = node.run(pod, "main", shell(STUBBORN.format("TERM")))
    node.wait_log("pod", "main", "ready")
    path = Path(node.status(container).log_path)
    with ThreadPoolExecutor(1) as client:
        stopping = client.submit(node.stop_container, container, 1000)
        node.wait_log("pod", "main", "got TERM")
        path.rename(path.with_name("old"))
        node.runtime.ReopenContainerLog(
            api.ReopenContainerLogRequest(container_id=container), timeout=PATIENCE_S
        )
        assert path.exists()
        assert node.exec(container, "true")[0] == 0
        node.stop_container(container)
        stopping.result()


# Files.


def test_volumes(node: Node, handler: str, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "note").write_text("from the host\n")
    single = tmp_path / "single"
    single.write_text("a file\n")
    pod = node.run_pod("pod", handler=handler)
    mounts = [
        api.Mount(container_path="/data", host_path=str(shared)),
        api.Mount(container_path="/seen", host_path=str(shared), readonly=True),
        api.Mount(container_path="/etc/single", host_path=str(single)),
        api.Mount(container_path="/made", host_path=str(tmp_path / "new" / "deep")),
    ]
    container = node.run(pod, "main", SLEEP, mounts=mounts)
    assert node.exec(container, "cat", "/data/note", "/etc/single")[1] == "from the host\na file\n"
    assert node.exec(container, "sh", "-c", "echo back > /data/answer")[0] == 0
    assert (shared / "answer").read_text() == "back\n"
    assert node.exec(container, "sh", "-c", "echo no > /seen/answer")[0] != 0
    assert (tmp_path / "new" / "deep").is_dir()
    told = node.status(container).mounts
    assert {m.container_path for m in told} >= {"/data", "/seen", "/etc/single", "/made"}


@pytest.mark.parametrize(
    ("propagation", "in_to_out", "out_to_in"),
    [
        (api.PROPAGATION_PRIVATE, False, False),
        (api.PROPAGATION_HOST_TO_CONTAINER, False, True),
        (api.PROPAGATION_BIDIRECTIONAL, True, True),
    ],
)
def test_mount_propagation(
    node: Node,
    handler: str,
    tmp_path: Path,
    propagation: api.MountPropagation,
    in_to_out: bool,
    out_to_in: bool,
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", source], check=True)
    try:
        subprocess.run(["mount", "--make-shared", source], check=True)
        for name in ("outside", "inside"):
            (source / name).mkdir()
        pod = node.run_pod("pod", handler=handler, privileged=True)
        mount = api.Mount(container_path="/source", host_path=str(source), propagation=propagation)
        container = node.run(pod, "main", SLEEP, mounts=[mount], privileged=True)
        subprocess.run(["mount", "-t", "tmpfs", "none", source / "outside"], check=True)
        (source / "outside" / "note").write_text("")
        assert (node.exec(container, "ls", "/source/outside")[1] != "") == out_to_in
        assert node.exec(container, "mount", "-t", "tmpfs", "none", "/source/inside")[0] == 0
        assert node.exec(container, "touch", "/source/inside/note")[0] == 0
        assert ((source / "inside" / "note").exists()) == in_to_out
        node.remove_pod(pod)
    finally:
        subprocess.run(["umount", "--recursive", source], check=True)


def test_read_only_root(node: Node, handler: str, tmp_path: Path) -> None:
    pod = node.run_pod("pod", handler=handler)
    mount = api.Mount(container_path="/data", host_path=str(tmp_path))
    container = node.run(pod, "main", SLEEP, read_only=True, mounts=[mount])
    assert node.exec(container, "touch", "/no")[0] != 0
    assert node.exec(container, "touch", "/data/yes", "/dev/shm/yes")[0] == 0


def test_writable_root_is_the_containers_own(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    one, other = node.run(pod, "one", SLEEP), node.run(pod, "other", SLEEP)
    assert node.exec(one, "sh", "-c", "rm /etc/group && echo x > /new")[0] == 0
    assert node.exec(other, "ls", "/etc/group", "/new")[1] == "/etc/group\n"


def test_users_and_groups(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    whoami = shell("id -u; id -g; id -G; echo $HOME; sleep 1000")

    def identity(name: str, **options: object) -> list[str]:
        node.run(pod, name, whoami, **options)
        log = until(lambda: _lines(node, name, 4), "the container has told who it is")
        return log[:4]

    def groups(line: str) -> set[int]:
        return {int(word) for word in line.split()}

    root = identity("root")
    assert root[:2] == ["0", "0"]
    assert root[3] == "/root"
    number = identity("number", user=1234, group=99, groups=[5, 6])
    assert number[:2] == ["1234", "99"]
    assert groups(number[2]) == {99, 5, 6}
    merged = identity("merged", image=PREDEFINED_GROUP, groups=[1234])
    assert merged[:2] == ["1000", "1000"]
    assert groups(merged[2]) == {1000, 1234, 50000}
    strict = identity("strict", image=PREDEFINED_GROUP, groups=[1234], strict_groups=True)
    assert groups(strict[2]) == {1000, 1234}
    named = identity("named", username="www-data")
    assert named[:2] == ["33", "33"]
    assert named[3] == "/var/www"
    status = node.status(next(c.id for c in node.containers() if c.metadata.name == "merged"))
    assert set(status.user.linux.supplemental_groups) >= {1234, 50000}


def _lines(node: Node, name: str, count: int) -> list[str]:
    try:
        lines = node.log_of("pod", name).splitlines()
    except FileNotFoundError:
        return []
    return lines if len(lines) >= count else []


def test_environment_and_directory(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    value = "a b=c\n'd' $e \\"
    container = node.run(pod, "main", SLEEP, env={"ODD": value})
    assert node.exec(container, "sh", "-c", 'printf %s "$ODD"')[1] == value
    assert node.exec(container, "sh", "-c", "echo $HOSTNAME")[1] == "pod\n"
    assert node.exec(container, "sh", "-c", "echo $PATH; pwd")[1].splitlines()[1] == "/"


def test_terminal(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = node.run(pod, "main", shell("tty; sleep 1000"), tty=True)
    assert "/dev/" in node.wait_log("pod", "main", "/dev/")
    node.stop_container(container)


def test_privileged_has_what_the_daemon_has(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler, privileged=True)
    plain = node.run(pod, "plain", SLEEP)
    privileged = node.run(pod, "privileged", SLEEP, privileged=True)
    ours = Path("/proc/self/status").read_text().split("CapBnd:")[1].split()[0]

    def capabilities(container: str) -> str:
        text = node.exec(container, "cat", "/proc/self/status")[1]
        return text.split("CapEff:")[1].split()[0]

    assert int(capabilities(privileged), 16) & int(ours, 16) == int(capabilities(privileged), 16)
    assert int(capabilities(plain), 16) < int(capabilities(privileged), 16)


def test_verbose_status(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = node.run(pod, "main", SLEEP)
    request = api.ContainerStatusRequest(container_id=container, verbose=True)
    answer = node.runtime.ContainerStatus(request, timeout=PATIENCE_S)
    text = json.dumps(dict(answer.info))
    assert pod in text
    assert "ociVersion" in text
    pid = node.program_pid(container)
    assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\x001000\x00"


def test_times_do_not_move(node: Node) -> None:
    pod = node.run_pod("pod")
    before_ns = time.time_ns()
    container = node.run(pod, "main", ["true"])
    status = node.wait_exited(container)
    after_ns = time.time_ns()
    assert before_ns <= status.created_at <= status.started_at <= status.finished_at <= after_ns
    assert node.status(container) == status


def test_another_user_reaches_a_mount_whose_directories_are_not_in_the_image(
    node: Node, handler: str
) -> None:
    """The runtime makes them, and must not make them with the daemon's own narrow umask."""
    pod = node.run_pod("pod", handler=handler)
    mount = api.Mount(host_path="/usr/bin", container_path="/deep/er/programs")
    container = node.run(pod, "main", SLEEP, user=1234, mounts=[mount])
    assert node.exec(container, "ls", "/deep/er/programs/env") == (
        0,
        "/deep/er/programs/env\n",
        "",
    )
    assert node.exec(container, "sh", "-c", "umask")[1] == "0022\n"
