"""The census that follows every test of the real kernel sees what it is there to see."""

import os
import threading

import pytest

from sandbox.host.cgroupfs import CgroupLayout
from sandbox.host.libc import LibcSyscalls
from sandbox.host.mounts import Mount, mount_one, unmount
from sandbox.host.namespaces import NamespaceWorker
from sandbox.host.processes import HostProcessRunner
from tests import probes
from tests.conftest import census

pytestmark = pytest.mark.root
calls = LibcSyscalls()


@pytest.fixture
def new(tmp_path_factory):
    base = str(tmp_path_factory.getbasetemp())
    before = census(base)
    return lambda kind: census(base)[kind] - before[kind]


async def test_mounts_and_pins(new, tmp_path):
    worker = NamespaceWorker(syscalls=calls)
    await worker.create(tmp_path / "pod", frozenset({"net"}))
    (tmp_path / "m").mkdir()
    mount_one(Mount("tmpfs", "t", tmp_path / "m"), syscalls=calls)
    kinds = {line.split()[1] for line in new("mounts")}
    await worker.unpin(tmp_path / "pod")
    worker.close()
    unmount(tmp_path / "m", syscalls=calls)
    assert kinds == {"nsfs", "tmpfs"}
    assert not new("mounts")


def test_descriptors_and_threads(new):
    fd = os.open("/dev/null", os.O_RDONLY)
    wait = threading.Event()
    thread = threading.Thread(target=wait.wait, name="left over")
    thread.start()
    descriptors, threads = new("descriptors"), new("threads")
    wait.set()
    thread.join()
    os.close(fd)
    assert descriptors == {f"{fd} -> /dev/null"}
    assert threads == {"left over"}


async def test_children(new):
    child = await HostProcessRunner().spawn(["sleep", "1000"])
    children = new("children")
    child.kill_group()
    await child.wait()
    assert children == {str(child.pid)}


def test_cgroups(new, cgroup_path):
    if reason := probes.no_cgroup_write():
        pytest.skip(reason)
    layout = CgroupLayout.detect()
    layout.create(f"{cgroup_path}/inner")
    cgroups = new("cgroups")
    layout.remove(cgroup_path)
    assert cgroups == {str(d) for p in ("", "/inner") for d in layout.dirs(cgroup_path + p)}
