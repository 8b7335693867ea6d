"""Directories, mounts and masks that an OCI runtime makes in a root that it cannot trust.

Row 35, CVE-2026-55686: a working directory that is a link was made, and given away, on the host.
Row 38, CVE-2019-19921, CVE-2021-30465, CVE-2023-27561, CVE-2023-28642: a mount's target was
exchanged for a link while the mount was made.
Row 39, CVE-2019-16884, CVE-2025-31133, CVE-2025-52565, CVE-2025-52881: masks, the console or
labels were written through what the image had at /proc or /dev.
Row 40, CVE-2026-41579, CVE-2026-47766: a link at /dev was followed while the root was prepared.
Row 41, CVE-2024-45310: empty files and directories were made on the host.

Tried: with crun and runc, images with such links, and a neighbour who exchanges directories of a
shared volume all the time. The runtimes' holes are theirs to close; what is asked here is that a
node of ours is as it was, which includes refusing what they cannot be given.
"""

from __future__ import annotations

import contextlib
import subprocess
import tarfile

import grpc

from cri.check.holes import holes_of
from protos import api_pb2 as api
from tests.kit.node import PATIENCE_S, Node
from tests.kit.tars import Tar
from tests.security.canary import Canary
from tests.security.conftest import Hostile

SLEEP = ["sleep", "1000"]
UP = "../../../../../../../../../.."
STARTS = 12
#: What a kubelet sends for procMount Default.
MASKED = (
    *("/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys"),
    *("/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug"),
    *("/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"),
)
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def test_working_directories(node: Node, hostile: Hostile, handler: str) -> None:
    canary = Canary.placed(node.work / f"cwd-{handler}")
    root = canary.root
    tar = (
        Tar()
        .symlink("absolute", str(root))
        .symlink("upwards", f"{UP}{root}")
        .symlink("new", f"{root}/new")
        .symlink("fd", "/proc/self/fd/7")
        .symlink("fd8", "/proc/self/fd/8")
        .symlink("cwd", "/proc/self/cwd")
        .symlink("loop", "loop")
        .file("file")
    )
    wanted = [
        *("/absolute", "/upwards", "/new", "/new/below", "/absolute/new", "/upwards/etc"),
        *("/fd", "/fd8", "/cwd", "/loop", "/file", "/missing/below", "relative"),
        *("/proc/self/fd/7", "/proc/self/fd/8/../../..", "/proc/1/root", "/dev/fd/7"),
        *("//proc/self/fd/7", "/./proc/self/fd/7", "/proc/thread-self/fd/7", "/proc//self/fd/7"),
    ]
    pod = node.run_pod(handler=handler)
    for number, path in enumerate(wanted):
        # What the image says and what the request says go two ways.
        own = number % 3 == 0 or not path.startswith("/")
        name = f"cwd-{number if own else 'any'}-{handler}-{node.tag}"
        image = hostile.push(name, tar, working_dir=path if own else "")
        node.pull(image)
        request = node.create_request(pod, f"c{number}", SLEEP, image=image, user=1234)
        request.config.working_dir = "" if own else path
        with contextlib.suppress(grpc.RpcError):
            created = node.runtime.CreateContainer(request, timeout=PATIENCE_S)
            container = node.start(created.container_id)
            # It runs: then inside, where the node's directory is not.
            _, out, _ = node.exec(container, "sh", "-c", f"pwd; ls {root}; ls ../../../../..")
            assert "fd/7" not in path or path == "/fd", path
            assert "deep" not in out, path
        canary.assert_untouched()
    assert node.containers(), "none of them got far enough to try anything"


def test_directories_exchanged_while_others_start(node: Node, handler: str) -> None:
    canary = Canary.placed(node.work / f"race-{handler}")
    shared = node.work / f"shared-{handler}"
    (shared / "real").mkdir(parents=True)
    source = node.work / f"source-{handler}"
    source.mkdir()
    (source / "from-source").write_text("x")
    volume = api.Mount(host_path=str(shared), container_path="/vol")
    pod = node.run_pod(handler=handler)
    script = (
        f"cd /vol; ln -s {canary.root} link; ln -s /proc climbs; "
        "while :; do mv real t; mv link real; mv real link; mv t real; "
        "mv climbs real/x 2>/dev/null; mv real/x climbs 2>/dev/null; done"
    )
    node.run(pod, "swapper", ["sh", "-c", script], mounts=[volume])
    for number in range(STARTS):
        inner = api.Mount(host_path=str(source), container_path="/vol/real/target")
        with contextlib.suppress(grpc.RpcError):
            node.run(pod, f"c{number}", SLEEP, mounts=[volume, inner])
        # `podwright check` tells of a runc that makes the empty directory (CVE-2024-45310).
        canary.assert_untouched(but="target" if handler == "runc" and is_old_runc() else "")


def is_old_runc() -> bool:
    """Whether runc here is known to follow an exchanged directory to make a target in it."""
    said = subprocess.run(["runc", "--version"], check=True, capture_output=True, text=True).stdout
    return any("CVE-2024-45310" in hole.advisories for hole in holes_of("runc", said.split()[2]))


def test_masks_are_there_whatever_the_image_has_in_their_place(
    node: Node, hostile: Hostile, handler: str
) -> None:
    canary = Canary.placed(node.work / f"masks-{handler}")
    root = canary.root
    tar = (
        Tar()
        .symlink("dev/null", f"{root}/dev/null")
        .symlink("dev/console", f"{root}/file")
        .symlink("dev/pts", f"{root}/dev/pts")
        .symlink("dev/ptmx", f"{root}/file")
        .symlink("dev/shm", f"{root}/dev/shm")
        .file("dev/zero", b"not zero")
        .add("dev/full", kind=tarfile.CHRTYPE, device=(1, 11), mode=0o666)
        .file("proc/kcore", b"not masked")
        .symlink("proc/keys", f"{root}/file")
        .symlink("proc/sys", f"{root}/sys")
        .symlink("proc/sysrq-trigger", f"{root}/file")
        .symlink("sys/firmware", f"{root}/sys")
    )
    image = hostile.push(f"masks-{handler}-{node.tag}", tar)
    node.pull(image)
    pod = node.run_pod(handler=handler)
    for number, tty in enumerate((False, True)):
        request = node.create_request(pod, f"c{number}", SLEEP, image=image, tty=tty)
        request.config.linux.security_context.masked_paths.extend(MASKED)
        request.config.linux.security_context.readonly_paths.extend(READ_ONLY)
        created = node.runtime.CreateContainer(request, timeout=PATIENCE_S)
        container = node.start(created.container_id)
        checks = {
            # Masked: nothing to be read.
            "head -c 1 /proc/kcore | wc -c": "0",
            "cat /proc/keys | wc -c": "0",
            "cat /proc/timer_list | wc -c": "0",
            "ls /sys/firmware | wc -l": "0",
            # Read-only: nothing to be written.
            "echo x > /proc/sysrq-trigger || echo no": "no",
            "echo x > /proc/sys/kernel/core_pattern || echo no": "no",
            "echo x > /proc/sys/kernel/hostname || echo no": "no",
            "echo 1 > /proc/irq/default_smp_affinity || echo no": "no",
            "mkdir /sys/fs/x || echo no": "no",
            # And /dev is the container's.
            "head -c 3 /dev/zero | wc -c": "3",
            "[ -c /dev/null ] && [ ! -L /dev/null ] && echo yes": "yes",
            "[ -c /dev/full ] && ls -l /dev/full | grep -c '1, *7'": "1",
        }
        for script, answer in checks.items():
            _, out, error = node.exec(container, "sh", "-c", script)
            assert out.strip() == answer, (script, error)
        canary.assert_untouched()


def test_exchanges_of_dev_and_proc_by_volumes(node: Node, handler: str) -> None:
    """What is mounted over /proc or below /dev comes from the pod; the host does not follow it."""
    canary = Canary.placed(node.work / f"over-{handler}")
    links = node.work / f"links-{handler}"
    links.mkdir()
    for name in ("null", "pts", "shm", "ptmx", "console", "kcore", "sysrq-trigger", "self"):
        (links / name).symlink_to(canary.root / "file")
    pod = node.run_pod(handler=handler)
    for number, path in enumerate(("/dev", "/proc", "/sys", "/dev/pts", "/proc/sys", "/etc")):
        mount = api.Mount(host_path=str(links), container_path=path)
        with contextlib.suppress(grpc.RpcError):
            node.run(pod, f"c{number}", SLEEP, mounts=[mount])
        canary.assert_untouched()
