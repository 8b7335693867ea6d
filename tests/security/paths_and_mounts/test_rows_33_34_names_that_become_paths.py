"""Names of a request that become paths of the host, and what somebody planted at such a path.

Row 33, CVE-2025-0750: a name that a pod controls climbed out of the log directory, and what was
found there was unmounted.
Row 34, the causes of CVE-2026-53489: the daemon opened or followed what was planted for a log.

Tried: names, uids, namespaces, log directories and log paths that climb; and a link, a FIFO, a
directory, a device, a hard link where the log goes, before the start and before a reopening.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit.node import PATIENCE_S, Node
from tests.security.canary import Canary

SLEEP = ["sleep", "1000"]
CLIMBS = ("..", "../..", "../../../../../../tmp", "a/../../b", "/", "//", "/etc", ".", "\0", "a\nb")


def refusal(call: Callable[[], object]) -> grpc.StatusCode | None:
    """The code of a refused call, None when it was accepted."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code()  # type: ignore[attr-defined]
    return None


#: Where others on the machine mount and unmount meanwhile, such as another run of tests.
BUSY_PLACES = ("/run/", "/tmp/", "/var/tmp/")


def mounts(node: Node) -> set[str]:
    """Where anything is mounted that the node has, or nobody but us would touch."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    targets = {line.split()[4] for line in lines}
    return {each for each in targets if node.tag in each or not each.startswith(BUSY_PLACES)}


def test_names_that_climb_are_refused_and_unmount_nothing(node: Node) -> None:
    canary = Canary.placed(node.work / "names")
    pod = node.run_pod()
    before = mounts(node)
    accepted = []
    for text in CLIMBS:
        for field in ("name", "uid", "namespace"):
            config = node.pod_config("other")
            setattr(config.metadata, field, text)
            if refusal(lambda: node.run_config(config)) is None:  # noqa: B023
                accepted.append((field, text))
        request = node.create_request(pod, "main", SLEEP)
        request.config.metadata.name = text
        if refusal(lambda: node.runtime.CreateContainer(request, timeout=PATIENCE_S)) is None:  # noqa: B023
            accepted.append(("container", text))
    logs = (f"{canary.root}/../x", "relative", "..", "a/..", "/a\0b", "/a\nb", "/" + "x" * 5000)
    for text in logs:
        config = node.pod_config("other", log_directory=text)
        if refusal(lambda: node.run_config(config)) is None:  # noqa: B023
            accepted.append(("log_directory", text))
    for text in (
        "..",
        "../x",
        f"../../../../../../..{canary.root}/x",
        "/etc/x",
        "a/../../x",
        "a:b",
    ):
        request = node.create_request(pod, "main", SLEEP)
        request.config.log_path = text
        if refusal(lambda: node.runtime.CreateContainer(request, timeout=PATIENCE_S)) is None:  # noqa: B023
            accepted.append(("log_path", text))
    assert not accepted
    assert not node.containers()
    assert mounts(node) == before
    canary.assert_untouched()


@pytest.mark.cell("MF9")
def test_unknown_ids_that_are_paths_touch_nothing(node: Node) -> None:
    """Removal derives paths from the id: only from one that it knows."""
    canary = Canary.placed(node.work / "ids")
    node.run_pod()
    before = mounts(node)
    for text in ("..", "../..", ".", "/", f"../../../../../../..{canary.root}", "*", "a\0b"):
        for call in (node.stop_container, node.remove_container, node.stop_pod, node.remove_pod):
            assert refusal(lambda: call(text)) in (None, grpc.StatusCode.INVALID_ARGUMENT)  # noqa: B023
    assert len(node.pods()) == 1
    assert mounts(node) == before
    canary.assert_untouched()


def test_what_is_planted_for_a_log_is_neither_followed_nor_opened(node: Node, handler: str) -> None:
    canary = Canary.placed(node.work / f"logs-{handler}")
    target = canary.root / "file"
    pod = node.run_pod(handler=handler)
    logs = node.logs / "pod"
    logs.mkdir(parents=True, exist_ok=True)
    fifo = logs / "fifo_0.log"
    os.mkfifo(fifo)
    (logs / "link_0.log").symlink_to(target)
    (logs / "dangling_0.log").symlink_to(canary.root / "new")
    (logs / "directory_0.log").mkdir()
    os.mknod(logs / "device_0.log", 0o600 | 0o020000, os.makedev(1, 3))
    other = node.work / f"linked-{handler}"
    other.write_text("x\n")
    os.link(other, logs / "hard_0.log")
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        for name in ("link", "dangling", "fifo", "directory", "device", "hard"):
            code = refusal(lambda: node.run(pod, name, SLEEP))  # noqa: B023
            assert code is not None, name
            assert code is not grpc.StatusCode.INTERNAL, name
        poll = select.poll()
        poll.register(reader, select.POLLIN | select.POLLHUP)
        assert not poll.poll(0), "somebody has opened the FIFO for writing"
    finally:
        os.close(reader)
    assert other.read_text() == "x\n"
    canary.assert_untouched()


def test_what_is_planted_before_a_reopening_is_not_followed(node: Node, handler: str) -> None:
    canary = Canary.placed(node.work / f"reopen-{handler}")
    pod = node.run_pod(handler=handler)
    script = "while :; do echo line; sleep 0.02; done"
    container = node.run(pod, "main", ["sh", "-c", script])
    log = node.logs / "pod" / "main_0.log"
    reopen = api.ReopenContainerLogRequest(container_id=container)
    for suffix in ("", ".tmp"):
        log.unlink(missing_ok=True)
        planted = log.with_name(log.name + suffix)
        planted.unlink(missing_ok=True)
        planted.symlink_to(canary.root / "file")
        node.runtime.ReopenContainerLog(reopen, timeout=PATIENCE_S)
        node.wait_log("pod", "main", "line")
        assert log.is_file()
        assert not log.is_symlink()
    # The whole directory is swapped for one of somebody else.
    away = log.parent.with_name("away")
    log.parent.rename(away)
    log.parent.symlink_to(canary.root / "etc")
    try:
        code = refusal(lambda: node.runtime.ReopenContainerLog(reopen, timeout=PATIENCE_S))
        assert code is not None
        canary.assert_untouched()
    finally:
        log.parent.unlink()
        away.rename(log.parent)
    assert node.status(container).state == api.CONTAINER_RUNNING
