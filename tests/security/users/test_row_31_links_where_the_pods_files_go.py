"""Places of a root file system where a pod's own files and mounts go, as links out of it.

Row 31, CVE-2024-5154: the daemon wrote /etc/mtab through a link of the image onto the host.

Tried: /etc, each file in it, /run, /dev and /dev/shm as links to a directory of the host, upwards,
in a loop, and as plain files. A container may be refused or run; the host is as it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import grpc

from tests.kit.node import Node
from tests.kit.tars import Tar
from tests.security.canary import Canary
from tests.security.conftest import Hostile

UP = "../../../../../../../../../.."
FILES = ("etc/mtab", "etc/hosts", "etc/hostname", "etc/resolv.conf")
DIRECTORIES = ("etc", "run", "dev", "dev/shm", "proc", "sys")


def shapes(root: str) -> dict[str, Callable[[Tar], Tar]]:
    """By name: what an image has in all those places."""

    def over(names: tuple[str, ...], fill: Callable[[Tar, str], Tar]) -> Callable[[Tar], Tar]:
        def filled(tar: Tar) -> Tar:
            for name in names:
                fill(tar, name)
            return tar

        return filled

    return {
        "files-absolute": over(FILES, lambda tar, name: tar.symlink(name, f"{root}/{name}")),
        "files-upwards": over(FILES, lambda tar, name: tar.symlink(name, f"{UP}{root}/{name}")),
        "files-new": over(FILES, lambda tar, name: tar.symlink(name, f"{root}/etc/new")),
        "files-passwd": over(FILES, lambda tar, name: tar.symlink(name, "/etc/passwd")),
        "files-loop": over(FILES, lambda tar, name: tar.symlink(name, f"/{name}")),
        "files-directories": over(FILES, lambda tar, name: tar.directory(name)),
        "files-proc": over(FILES, lambda tar, name: tar.symlink(name, "/proc/self/root/etc/x")),
        "files-cwd": over(FILES, lambda tar, name: tar.symlink(name, f"/proc/1/cwd{UP}{root}/x")),
        **{
            f"{name.replace('/', '-')}-{kind}": over((name,), fill)
            for name in DIRECTORIES
            for kind, fill in {
                "absolute": lambda tar, name: tar.symlink(name, f"{root}/{name}"),
                "upwards": lambda tar, name: tar.symlink(name, f"{UP}{root}/deep/er"),
                "file": lambda tar, name: tar.file(name, b"a file"),
            }.items()
        },
        "etc-loop": over(("etc",), lambda tar, name: tar.symlink(name, "etc")),
    }  # fmt: skip


def test_the_host_is_as_it_was(node: Node, hostile: Hostile, handler: str) -> None:
    canary = Canary.placed(node.work / f"canary-{handler}")
    pod = node.run_pod(handler=handler)
    ran = []
    for name, fill in shapes(str(canary.root)).items():
        image = hostile.push(f"{name}-{handler}-{node.tag}", fill(Tar()))
        node.pull(image)
        with contextlib.suppress(grpc.RpcError):
            container = node.run(pod, name, ["sleep", "1000"], image=image)
            ran.append(name)
        canary.assert_untouched()
        assert node.pod_status(pod).state == 0, name
    for container in node.containers():
        node.remove_container(container.id)
    canary.assert_untouched()
    assert ran, "none of them got far enough to try anything"
