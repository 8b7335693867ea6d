"""SIGKILL of the daemon at the n-th system call of a kind, within a mutating call.

strace kills it on entering that system call, so the walk finds points that nobody thought of, such
as between a mount and its record. With PODWRIGHT_KILL_EVERY=1 it is a walk over every n until the
call gets through untouched; in a usual run n grows threefold. What must hold afterwards is the same
everywhere, see `test_kill_moments`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.kit import judge
from tests.kit.node import Node
from tests.kit.operations import OPERATIONS, SPARE_IMAGE, Bystander, finish
from tests.kit.strace import struck

KINDS = {
    "sync": "fsync,fdatasync,syncfs",
    "mount": "mount,umount2,unshare,setns",
    "name": "mkdir,mkdirat,rmdir,rename,renameat,renameat2,unlink,unlinkat,symlink",
    "process": "vfork,clone,clone3,pidfd_send_signal",
}
EVERY = bool(os.environ.get("PODWRIGHT_KILL_EVERY"))
#: Those with the most steps; each of the others is a part of one of them.
USUAL = ["RunPodSandbox", "CreateContainer", "PullImage", "RemovePodSandbox"]


def numbers(last: int) -> Iterator[int]:
    """Which system calls to be killed at."""
    number = 1
    while number <= last:
        yield number
        number = number + 1 if EVERY else number * 3


@pytest.mark.cell("RP1", "RP4", "RP8", "CC1-CC3", "RM1-RM3")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(OPERATIONS) if EVERY else USUAL)
def test_killed_at_the_nth(node: Node, bystander: Bystander, name: str, kind: str) -> None:
    operation = OPERATIONS[name]
    killed = 0
    for number in numbers(last=400):
        scene = operation.prepare(node, "crun")
        with struck(node.pid, KINDS[kind], number):
            answered = finish(operation.begin(node, scene))
        if answered:
            break
        killed += 1
        node.forget_process()
        node.start_daemon()
        node.assert_true()
        bystander.assert_untouched()
        operation.retry(node, scene)
        node.remove_image(SPARE_IMAGE)
        node.remove_everything()
        node.assert_clean()
    node.remove_image(SPARE_IMAGE)
    judge.notes.walks.append((name, kind, killed))
