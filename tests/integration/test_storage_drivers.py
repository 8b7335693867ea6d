"""Containers whose root file system is not the kernel's overlay: served by a program, or a copy."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from protos import api_pb2 as api
from sandbox.host.fuse import servers_below
from sandbox.host.mountinfo import list_mounts
from sandbox.host.pidfd import Process
from sandbox.layer_limits import ANNOTATION
from tests import probes
from tests.kit.calls import until
from tests.kit.catalog import base_layer
from tests.kit.faults import PATIENCE_S
from tests.kit.messages import BUSYBOX, namespaces, user_namespace
from tests.kit.node import Node
from tests.kit.oci import OCI, Entry, Image, ImageConfig, make_image, make_layer
from tests.kit.registry import Pusher, running_registry, write_hosts

DATA, MANY = "drivers.localhost/data:1", "drivers.localhost/many:1"
#: So many files that a copy of them is seen while it is made.
MANY_FILES = 5_000
SLEEP = ("sleep", "1000")
DRIVERS = ("overlay", "fuse-overlayfs", "native")


def _data() -> Image:
    """Three layers: a file removed, a directory made opaque, one that the top does not describe."""
    program = Path(shutil.which("busybox") or "busybox").read_bytes()
    low = [
        Entry("bin"),
        Entry("bin/busybox", mode=0o755, content=program),
        *(Entry(f"bin/{name}", symlink="busybox") for name in ("sh", "cat", "ls", "sleep", "stat")),
        *(Entry(f"bin/{name}", symlink="busybox") for name in ("id", "ln", "rm", "mv", "du")),
        Entry("tmp", mode=0o1777),
        Entry("gone", content=b"gone"),
        Entry("opaque"),
        Entry("opaque/below", content=b"below"),
        Entry("linked", mode=0o640, content=b"linked", uid=5, gid=6),
        Entry("again", hardlink="linked"),
        Entry("suid", mode=0o4755, content=program),
    ]
    middle = [
        Entry(".wh.gone", content=b""),
        Entry("opaque"),
        Entry("opaque/.wh..wh..opq", content=b""),
        Entry("opaque/own", content=b"own"),
    ]
    top = [Entry("tmp/top", content=b"top")]
    layers = [make_layer(low), make_layer(middle), make_layer(top)]
    return make_image(layers, ImageConfig(), flavor=OCI)


def _many() -> Image:
    """As `_data`, with a layer that takes some time to be copied."""
    files = [Entry(f"many/{number:04}", mode=0o644, content=b"x") for number in range(MANY_FILES)]
    layers = [base_layer(), make_layer([Entry("many"), *files])]
    return make_image(layers, ImageConfig(), flavor=OCI)


@pytest.fixture(scope="module")
def certs_d(certs_d: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The registry of the kit, and one of this module."""
    work = tmp_path_factory.mktemp("drivers")
    both = work / "certs.d"
    shutil.copytree(certs_d, both)
    with running_registry(work / "storage", work) as port:
        write_hosts(both, port, ["drivers.localhost"])
        pusher = Pusher(port)
        pusher.push(_data(), "data:1")
        pusher.push(_many(), "many:1")
        pusher.close()
        yield both


def settings(driver: str) -> dict[str, str]:
    return {"image.storage_driver": json.dumps(driver), "metrics.layer_age_s": "0"}


def needs(driver: str) -> None:
    if driver == "fuse-overlayfs" and (reason := probes.no_fuse_overlayfs()):
        pytest.skip(reason)


@pytest.fixture(scope="module", params=DRIVERS)
def shared_node(request: pytest.FixtureRequest, certs_d: Path) -> Iterator[Node]:
    needs(request.param)
    options = settings(request.param)
    with Node.running(request.param, certs_d, images=(BUSYBOX, DATA), settings=options) as node:
        yield node


def driver_of(node: Node) -> str:
    answer = node.runtime.Status(api.StatusRequest(verbose=True), timeout=PATIENCE_S)
    return str(json.loads(answer.info["storage"])["driver"])


def recorded(node: Node, container: str) -> str:
    answer = node.runtime.ContainerStatus(
        api.ContainerStatusRequest(container_id=container, verbose=True), timeout=PATIENCE_S
    )
    return str(json.loads(answer.info["info"])["storageDriver"])


def sh(node: Node, container: str, script: str) -> str:
    """Output of a script that must succeed."""
    code, out, err = node.exec(container, "/bin/busybox", "sh", "-c", script)
    assert code == 0, (script, out, err)
    return out


def server_of(target: Path) -> Process | None:
    """What serves the mount at `target`, held."""
    return dict(servers_below(target.parent)).get(target)


def rootfs(node: Node, container: str) -> Path:
    return node.run_root / "containers" / container / "rootfs"


def test_the_node_says_which_driver_it_uses(node: Node) -> None:
    assert driver_of(node) == node.name
    command = [sys.executable, "-m", "cri", "status", "--config", str(node.config)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"storage driver: {node.name}" in shown


def test_a_container_sees_what_its_image_means(node: Node, handler: str) -> None:
    pod = node.run_pod("sees", handler=handler)
    main = node.run(pod, "main", SLEEP, image=DATA)
    assert recorded(node, main) == node.name
    kinds = {mount.target: mount.type for mount in list_mounts()}
    expected = {"overlay": "overlay", "fuse-overlayfs": "fuse.fuse-overlayfs"}
    if node.name in expected:
        assert kinds[rootfs(node, main)] == expected[node.name]
    else:
        assert "overlay" not in kinds[rootfs(node, main)]
    assert sh(node, main, "ls /opaque") == "own\n"
    assert sh(node, main, "ls /tmp") == "top\n"
    assert node.exec(main, "/bin/busybox", "ls", "/gone")[0] != 0
    assert (
        sh(node, main, "stat -c '%a %u %g' /tmp /linked /suid") == "1777 0 0\n640 5 6\n4755 0 0\n"
    )
    assert sh(node, main, "cat /again") == "linked"


def test_what_is_written_stays_in_the_container(node: Node, handler: str) -> None:
    pod = node.run_pod("writes", handler=handler)
    one = node.run(pod, "one", SLEEP, image=DATA)
    two = node.run(pod, "two", SLEEP, image=DATA)
    sh(node, one, "echo new > /new; echo more >> /linked; rm /tmp/top; mv /opaque/own /opaque/o")
    sh(node, one, "ln /new /other; echo x >> /other; chmod 700 /bin; chown 7:8 /suid")
    assert sh(node, one, "cat /new; ls /tmp /opaque; cat /linked") == (
        "new\nx\n/opaque:\no\n\n/tmp:\nlinkedmore\n"
    )
    assert sh(node, two, "ls / /tmp; cat /linked").endswith("top\nlinked")
    assert sh(node, two, "stat -c '%a %u' /bin /suid") == "755 0\n4755 0\n"
    # A user without rights has none.
    own = node.run(pod, "own", SLEEP, image=DATA, user=1000)
    assert node.exec(own, "/bin/busybox", "sh", "-c", "echo > /denied")[0] != 0
    assert sh(node, own, "echo mine > /tmp/mine; stat -c %u /tmp/mine") == "1000\n"
    # busybox gives up set-user-id rights by itself; that the mount lets them be is what counts.
    [root] = sh(node, own, "grep ' / / ' /proc/self/mountinfo || true").splitlines() or [""]
    assert not {"nosuid", "nodev", "noexec"} & set(root.split()[5:6] and root.split()[5].split(","))


def test_a_read_only_root(node: Node, handler: str) -> None:
    pod = node.run_pod("fixed", handler=handler)
    main = node.run(pod, "main", SLEEP, image=DATA, read_only=True)
    code, _, said = node.exec(main, "/bin/busybox", "sh", "-c", "echo x > /new")
    assert code != 0
    assert "Read-only" in said


def test_an_image_as_a_volume(node: Node, handler: str) -> None:
    pod = node.run_pod("volume", handler=handler)
    volume = api.Mount(
        container_path="/data", image=api.ImageSpec(image=DATA), image_sub_path="", readonly=True
    )
    main = node.run(pod, "main", SLEEP, mounts=[volume])
    assert sh(node, main, "ls /data/opaque; cat /data/tmp/top") == "own\ntop"
    code, _, said = node.exec(main, "sh", "-c", "echo x > /data/new")
    assert code != 0
    assert "Read-only" in said
    [line] = sh(node, main, "grep ' /data ' /proc/self/mountinfo").splitlines()
    assert {"ro", "nodev"} <= set(line.split()[5].split(","))


def test_a_user_namespace(node: Node, handler: str) -> None:
    own = namespaces(user=user_namespace(200_000))
    pod = node.run_pod("mapped", handler=handler, spaces=own)
    main = node.run(pod, "main", SLEEP, image=DATA, spaces=own)
    assert sh(node, main, "stat -c '%u %g' /bin /linked") == "0 0\n5 6\n"
    sh(node, main, "echo x > /new; chown 3:4 /new; echo y >> /linked; rm /tmp/top")
    assert sh(node, main, "stat -c '%u %g' /new; cat /linked") == "3 4\nlinkedy\n"
    status = (rootfs(node, main) / "new").stat()
    assert (status.st_uid, status.st_gid) == (200_003, 200_004)
    volume = api.Mount(container_path="/data", image=api.ImageSpec(image=DATA), readonly=True)
    other = node.run(pod, "other", SLEEP, mounts=[volume], spaces=own)
    assert sh(node, other, "stat -c %u /data/linked") == "5\n"


def test_the_daemon_is_killed_and_nothing_happens_to_containers(node: Node, handler: str) -> None:
    pod = node.run_pod("stays", handler=handler)
    main = node.run(pod, "main", SLEEP, image=DATA)
    sh(node, main, "echo before > /before")
    node.restart()
    assert sh(node, main, "cat /before; echo after > /after; cat /after") == "before\nafter\n"
    assert node.status(main).state == api.CONTAINER_RUNNING
    node.stop_container(main)
    node.remove_container(main)
    assert rootfs(node, main) not in {mount.target for mount in list_mounts()}


def test_usage_counts_what_is_on_the_disk(node: Node) -> None:
    pod = node.run_pod("usage")
    main = node.run(pod, "main", SLEEP, image=DATA)

    def used() -> int:
        request = api.ContainerStatsRequest(container_id=main)
        answer = node.runtime.ContainerStats(request, timeout=PATIENCE_S)
        return int(answer.stats.writable_layer.used_bytes.value)

    image_bytes = 2 * Path(shutil.which("busybox") or "busybox").stat().st_size
    if node.name == "native":
        until(lambda: used() >= image_bytes, "the copy of the image is counted")
    before = used()
    assert (before >= image_bytes) == (node.name == "native")
    sh(node, main, "dd if=/dev/zero of=/filled bs=65536 count=32; sync")
    until(lambda: used() >= before + 2 * 1024 * 1024, "what was written is seen")


def test_limits_that_cannot_be_kept_are_refused(node: Node) -> None:
    if node.name == "overlay":
        return  # it can, where the file system does: test_layer_limits
    config = node.config.read_text()
    allowed = "\n[runtimes.crun]\nallowed_annotations = ['podwright.io/*']\n"
    node.stop()
    try:
        node.config.write_text(config.replace("\n[runtimes.crun]\n", allowed))
        node.start_daemon()
        pod = node.run_pod("limited", handler="crun", annotations={ANNOTATION: "2Mi"})
        with pytest.raises(grpc.RpcError, match="cannot be kept"):
            node.create(pod, "main", SLEEP)
        node.stop()
    finally:
        node.config.write_text(config)
        node.start_daemon()


@pytest.mark.parametrize("restarted", [False, True])
def test_a_container_whose_server_died_is_ended_and_can_be_removed(
    node: Node, handler: str, restarted: bool
) -> None:
    if node.name != "fuse-overlayfs":
        return  # no other has a server
    pod = node.run_pod("served", handler=handler)
    main = node.run(pod, "main", SLEEP, image=DATA)
    other = node.run(pod, "other", SLEEP, image=DATA)
    if restarted:
        node.restart()
    server = server_of(rootfs(node, main))
    assert server is not None
    with server:
        score = int(Path(f"/proc/{server.pid}/oom_score_adj").read_text())
        assert score <= int(Path(f"/proc/{node.pid}/oom_score_adj").read_text())
        server.send_signal(signal.SIGKILL)
    status = node.wait_exited(main)
    assert "fuse-overlayfs" in status.message
    assert status.exit_code != 0
    assert sh(node, other, "cat /linked") == "linked"
    node.remove_container(main)
    assert rootfs(node, main) not in {mount.target for mount in list_mounts()}


def test_a_server_that_died_while_no_daemon_ran(node: Node) -> None:
    if node.name != "fuse-overlayfs":
        return
    pod = node.run_pod("served")
    main = node.run(pod, "main", SLEEP, image=DATA)
    server = server_of(rootfs(node, main))
    assert server is not None
    node.kill()
    with server:
        server.send_signal(signal.SIGKILL)
    node.start_daemon()
    assert "fuse-overlayfs" in node.wait_exited(main).message


def test_a_server_that_does_not_answer_holds_up_nothing(node: Node) -> None:
    if node.name != "fuse-overlayfs":
        return
    pod = node.run_pod("stuck")
    main = node.run(pod, "main", SLEEP, image=DATA)
    # Unwritten data: the kernel would have the server write it before the mount goes.
    sh(node, main, "dd if=/dev/zero of=/filled bs=65536 count=32")
    server = server_of(rootfs(node, main))
    assert server is not None
    with server:
        server.send_signal(signal.SIGSTOP)
        node.remove_container(main)
        until(lambda: not server.alive(), "it was ended")


@pytest.mark.parametrize("first", DRIVERS)
def test_a_node_moves_from_one_driver_to_another(certs_d: Path, first: str) -> None:
    needs(first)
    second = DRIVERS[(DRIVERS.index(first) + 1) % len(DRIVERS)]
    needs(second)
    with Node.running("moves", certs_d, images=(BUSYBOX, DATA), settings=settings(first)) as node:
        pod = node.run_pod("moves")
        old = node.run(pod, "old", SLEEP, image=DATA)
        sh(node, old, "echo kept > /kept")
        node.stop()
        text = node.config.read_text()
        node.config.write_text(text.replace(json.dumps(first), json.dumps(second)))
        node.start_daemon()
        assert driver_of(node) == second
        assert sh(node, old, "cat /kept /tmp/top") == "kept\ntop"
        new = node.run(pod, "new", SLEEP, image=DATA)
        assert sh(node, new, "cat /tmp/top") == "top"
        assert (recorded(node, old), recorded(node, new)) == (first, second)
        node.remove_container(old)
        node.remove_everything()
        node.assert_clean()


def test_a_driver_that_cannot_be_had_is_named_at_the_start(certs_d: Path) -> None:
    options = settings("fuse-overlayfs") | {
        "image.fuse_overlayfs_path": '"/nowhere/fuse-overlayfs"'
    }
    node = Node("refuses", certs_d, options)
    try:
        node.start_daemon(wait=False)
        assert node.process is not None
        assert node.process.wait(PATIENCE_S) != 0
        said = node.log_tail()
        assert "image.storage_driver is fuse-overlayfs, which cannot be used" in said
        assert "set it to auto" in said
        command = [sys.executable, "-m", "cri", "check", "--json", "--config", str(node.config)]
        shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        [finding] = [f for f in json.loads(shown) if f["name"] == "storage driver"]
        assert finding["level"] not in ("ok", "warning")
        assert "will not start" in finding["detail"]
        node.forget_process()
    finally:
        node.close()


def test_a_copy_that_is_called_off_leaves_nothing(certs_d: Path) -> None:
    """The daemon dies while an image is copied; the next one finds the rest by its name."""
    with Node.running(
        "copies", certs_d, images=(BUSYBOX, MANY), settings=settings("native")
    ) as node:
        pod = node.run_pod("copies")
        request = node.create_request(pod, "main", SLEEP, image=MANY)
        layers = node.state_root / "containers"
        future = node.runtime.CreateContainer.future(request, timeout=PATIENCE_S)
        until(lambda: list(layers.glob("*/work/copy")), "the copy has begun")
        node.kill()
        assert future.exception() is not None
        node.start_daemon()
        until(lambda: not list(layers.iterdir()), "the rest is gone")
        main = node.run(pod, "main", SLEEP, image=MANY)
        assert sh(node, main, "ls /many | wc -l") == f"{MANY_FILES}\n"
        node.remove_everything()
        node.assert_clean()
