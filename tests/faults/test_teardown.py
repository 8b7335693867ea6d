"""Mounts that are busy, slow, copied elsewhere or gone: containers must go all the same."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from tests.kit.calls import until
from tests.kit.faults import stranger
from tests.kit.node import Node
from tests.kit.operations import Bystander

SLEEP = ["sleep", "1000"]
FAILPOINTS = True
#: How long a slow unmount takes; longer than any limit that a call could have by mistake.
SLOW_S = 12


@pytest.mark.cell("MT1")
def test_unmounting_finds_it_busy(node: Node, bystander: Bystander) -> None:
    """A process of the node's own stands in the root file system."""
    pod = node.run_pod("pod")
    container = node.run(pod, "main", SLEEP)
    rootfs = node.run_root / "containers" / container / "rootfs"
    # Its directory is no sign of us: the census finds processes of the node by theirs.
    with stranger(cwd=rootfs):
        node.remove_container(container)
        assert not node.other_containers()
        assert not rootfs.exists()
    bystander.assert_untouched()


@pytest.mark.cell("MT1")
@pytest.mark.parametrize("times", [1, 1000])
def test_unmounting_says_busy(node: Node, times: int) -> None:
    assert node.failpoints is not None
    pod = node.run_pod("pod")
    container = node.run(pod, "main", SLEEP)
    match = r"^umount2 RUN/containers/ID/rootfs"
    with node.failpoints.ordered("fail:EBUSY", match=match, times=times):
        try:
            node.remove_container(container)
        except grpc.RpcError:
            # Told, and still there to be asked for again.
            assert node.other_containers() == [container]
    node.remove_container(container)
    assert not node.other_containers()


@pytest.mark.cell("MT2")
@pytest.mark.parametrize("what", ["RUN/containers/ID/rootfs", "RUN/namespaces/ID/net"])
def test_unmounting_is_slow(node: Node, bystander: Bystander, what: str) -> None:
    """Nothing is given up for it, and everybody else is answered meanwhile."""
    assert node.failpoints is not None
    pod = node.run_pod("pod")
    node.run(pod, "main", SLEEP)
    with node.failpoints.ordered(f"delay:{SLOW_S}", match=f"^umount2 {what}"):
        call = node.runtime.RemovePodSandbox.future(
            api.RemovePodSandboxRequest(pod_sandbox_id=pod), timeout=120
        )
        until(lambda: any(what in step for step in node.failpoints.steps()), "it unmounts")
        answers = 0
        while not call.done():
            node.runtime.Version(api.VersionRequest(), timeout=SLOW_S / 2)
            bystander.assert_untouched()
            answers += 1
            time.sleep(0.2)
        call.result()
    assert answers > 3
    assert pod not in {p.id for p in node.pods()}


@pytest.mark.cell("MT3")
def test_mounts_are_copied_into_another_namespace(node: Node) -> None:
    """Somebody has made a mount namespace while a container was there, and keeps it."""
    pod = node.run_pod("pod")
    container = node.run(pod, "main", SLEEP)
    with stranger("unshare", "--mount", "--propagation", "private", "sleep", "1000") as keeper:
        command = Path(f"/proc/{keeper.pid}/cmdline")
        until(lambda: command.read_bytes().startswith(b"sleep"), "it has a namespace of its own")
        assert container in Path(f"/proc/{keeper.pid}/mountinfo").read_text()
        node.remove_container(container)
        node.stop_pod(pod)
        node.remove_pod(pod)
        assert not node.other_pods()


@pytest.mark.cell("MT4")
@pytest.mark.parametrize("change", ["gone", "file", "link"])
def test_source_of_a_mount_changes_before_the_start(node: Node, handler: str, change: str) -> None:
    """What was mounted is what was there at the creation; where it cannot be, that is said."""
    source = node.work / "volume"
    source.mkdir()
    (source / "mine").write_text("mine\n")
    pod = node.run_pod("pod", handler=handler)
    mounts = [api.Mount(container_path="/volume", host_path=str(source))]
    container = node.create(
        pod, "main", ["sh", "-c", "cat /volume/mine; sleep 1000"], mounts=mounts
    )
    aside = source.with_name("aside")
    source.rename(aside)
    if change == "file":
        source.write_text("of somebody")
    elif change == "link":
        source.symlink_to("/etc")
    with contextlib.suppress(grpc.RpcError):  # in honest words, which is judged at the end
        node.start(container)
        assert node.wait_log("pod", "main", "mine") == "mine\n"
    node.assert_true()
    node.stop_pod(pod)
    node.remove_pod(pod)
    if change != "gone":
        source.unlink()
    subprocess.run(["rm", "-r", aside], check=True)


@pytest.mark.cell("MT4")
def test_source_of_a_mount_is_not_there(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    missing = node.work / "missing" / "deep"
    link = node.work / "dangling"
    link.symlink_to(missing)
    told: list[str] = []
    for source in ("/proc/1/nothing", str(link)):
        mounts = [api.Mount(container_path="/volume", host_path=source)]
        try:
            container = node.create(pod, "main", SLEEP, mounts=mounts)
        except grpc.RpcError as error:
            told.append(error.details() or "")  # type: ignore[attr-defined]
        else:
            node.remove_container(container)
            told.append(source)
        assert source in told[-1]
    link.unlink()
    subprocess.run(["rm", "-rf", node.work / "missing"], check=True)


@pytest.mark.cell("MT5")
def test_what_a_container_wrote_is_deep_and_much(node: Node) -> None:
    """It goes while others are answered."""
    pod = node.run_pod("pod")
    many = "mkdir /many; cd /many; i=0; while [ $i -lt 4000 ]; do : > $i; i=$((i+1)); done; "
    deep = "cd /; i=0; while [ $i -lt 1200 ]; do mkdir d; cd d; i=$((i+1)); done"
    container = node.run(pod, "main", ["sh", "-c", many + deep])
    assert node.wait_exited(container).exit_code == 0
    call = node.runtime.RemoveContainer.future(
        api.RemoveContainerRequest(container_id=container), timeout=120
    )
    while not call.done():
        node.runtime.Version(api.VersionRequest(), timeout=10)
    call.result()
    assert not node.other_containers()


@pytest.mark.cell("MT7")
@pytest.mark.parametrize("state", ["created", "running", "exited"])
def test_root_is_unmounted_behind_our_back(node: Node, handler: str, state: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = node.create(pod, "main", SLEEP)
    if state != "created":
        node.start(container)
    if state == "exited":
        node.stop_container(container)
    rootfs = node.run_root / "containers" / container / "rootfs"
    # Of one that has exited the daemon takes it away by itself, perhaps at this very moment.
    subprocess.run(["umount", "--lazy", rootfs], check=state != "exited")
    assert not os.path.ismount(rootfs)
    if state == "created":
        with contextlib.suppress(grpc.RpcError):  # in honest words, which is judged at the end
            node.start(container)
            assert node.status(container).state == api.CONTAINER_RUNNING
    node.assert_true()
    node.restart()
    node.assert_true()
    node.stop_container(container)
    node.remove_container(container)
    assert node.exec(node.run(pod, "again", SLEEP), "true")[0] == 0
