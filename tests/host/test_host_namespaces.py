"""Namespaces made, pinned, entered and let go, on the real kernel."""

import asyncio
import errno
import os
import socket
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from sandbox.host import syscalls as sc
from sandbox.host.errors import (
    AlreadyExists,
    Denied,
    InvalidArgument,
    NotFound,
    Unavailable,
    from_os_error,
)
from sandbox.host.libc import LibcSyscalls
from sandbox.host.mounts import Mount, list_mounts, mount_one
from sandbox.host.namespaces import NamespaceWorker, is_pinned
from sandbox.host.pidfd import start_ticks
from sandbox.host.processes import HostProcessRunner
from tests.kit.calls import until

pytestmark = pytest.mark.root
calls = LibcSyscalls()
ALL = frozenset({"net", "ipc", "uts"})


@pytest.fixture
def worker():
    worker = NamespaceWorker(syscalls=calls)
    yield worker
    worker.close()
    worker.close()


@pytest.fixture
async def pod(worker, tmp_path):
    """A directory whose pins go away after the test."""
    yield tmp_path / "pod"
    await worker.unpin(tmp_path / "pod")


async def inside(pins, *argv, check=None):
    """Run a program in the pinned namespaces."""
    runner = HostProcessRunner()
    words = [f"--{kind}={path}" for kind, path in pins.items()]
    done = await runner.run(["nsenter", *words, *argv])
    assert done.exit_status == 0, done.message
    return done.stdout.decode().strip()


def identity(path):
    return Path(path).stat().st_ino


def own(kind):
    """Where the threads of this process are."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        # One that was joined may have some steps left in the kernel, and end meanwhile.
        with suppress(FileNotFoundError, ProcessLookupError):
            found.add(identity(task / "ns" / kind))
    return found


def mounts_below(path):
    return [mount for mount in list_mounts() if path in mount.target.parents]


async def test_namespaces_are_new_and_pinned_and_everybody_is_home_again(worker, pod):
    before = {kind: own(kind) for kind in ALL}
    pins = await worker.create(pod, ALL, hostname="web-0")
    assert pins == {kind: pod / kind for kind in ALL}
    for kind, path in pins.items():
        assert worker.is_pinned(path)
        assert identity(path) not in before[kind]
        assert own(kind) == before[kind], "a thread stayed in the pod"
    assert await inside({"uts": pins["uts"]}, "hostname") == "web-0"
    assert socket.gethostname() != "web-0"


async def test_loopback_is_up_or_not_as_asked(worker, pod):
    pins = await worker.create(pod / "up", frozenset({"net"}))
    assert "LOOPBACK,UP" in await inside(pins, "ip", "link", "show", "lo")
    await worker.unpin(pod / "up")
    pins = await worker.create(pod, frozenset({"net"}), loopback_up=False)
    assert "UP" not in (await inside(pins, "ip", "link", "show", "lo")).split("state")[0]


SYSCTLS = {
    "net.ipv4.ip_unprivileged_port_start": ("80", "80"),
    "net.ipv4.ping_group_range": ("0 2147483647", "0\t2147483647"),
    "net/ipv4/conf/lo/forwarding": ("1", "1"),
    "kernel.shm_rmid_forced": ("1", "1"),
    "kernel.msgmax": ("4321", "4321"),
    "kernel.sem": ("250 32000 32 99", "250\t32000\t32\t99"),
    "fs.mqueue.msg_max": ("13", "13"),
    "kernel.domainname": ("pods.example", "pods.example"),
}


def host_sysctls():
    names = [key if "/" in key else key.replace(".", "/") for key in SYSCTLS]
    names.append("kernel/core_pattern")
    return {name: Path("/proc/sys", name).read_text() for name in names}


async def test_sysctls_are_the_pods_and_not_the_hosts(worker, pod):
    before = host_sysctls()
    pins = await worker.create(pod, ALL, sysctls={k: v for k, (v, _) in SYSCTLS.items()})
    assert host_sysctls() == before
    for key, (_, shown) in SYSCTLS.items():
        path = key if "/" in key else key.replace(".", "/")
        # The mqueue and IPC files of /proc/sys follow the reader, so the reader goes in.
        assert await inside(pins, "cat", f"/proc/sys/{path}") == shown, key


@pytest.mark.parametrize(
    "sysctls",
    [
        {"net.ipv4.nosuchthing": "1"},
        {"net.ipv4.ip_unprivileged_port_start": "not a number"},
        {"net.ipv4.ip_unprivileged_port_start": "1+kernel.core_pattern=|/bin/x"},
        {"net.core.rmem_max": "1048576", "net.ipv4.nosuchthing": "1"},
        {"kernel.sem": "1 2 3 4", "fs.mqueue.nosuchthing": "1"},
        {"kernel.core_pattern": "|/bin/x"},
    ],
)
async def test_a_sysctl_that_is_refused_leaves_nothing(worker, pod, sysctls):
    before = host_sysctls()
    with pytest.raises(InvalidArgument, match=r"sysctl (net|kernel|fs)\."):
        await worker.create(pod, ALL, sysctls=sysctls)
    assert mounts_below(pod) == []
    assert not list(pod.glob("*"))
    assert host_sysctls() == before
    await worker.create(pod, ALL)


async def test_one_kind_alone_and_twice(worker, pod):
    await worker.create(pod, frozenset({"ipc"}))
    assert sorted(each.name for each in pod.iterdir()) == ["ipc"]
    with pytest.raises(AlreadyExists):
        await worker.create(pod, ALL)
    assert worker.is_pinned(pod / "ipc"), "the first one's pin was taken away"
    assert not worker.is_pinned(pod / "net")


async def test_plain_files_left_by_a_crash_are_reused(worker, pod):
    pod.mkdir()
    (pod / "net").write_text("")
    assert not worker.is_pinned(pod / "net")
    await worker.create(pod, ALL)
    assert worker.is_pinned(pod / "net")


async def test_a_planted_link_is_not_followed(worker, pod, tmp_path):
    (tmp_path / "victim").write_text("untouched")
    pod.mkdir()
    (pod / "net").symlink_to(tmp_path / "victim")
    with pytest.raises(InvalidArgument):
        await worker.create(pod, ALL)
    assert (tmp_path / "victim").read_text() == "untouched"
    assert not is_pinned(tmp_path / "victim", syscalls=calls)
    assert not is_pinned(pod / "net", syscalls=calls)


async def test_unpinning_is_idempotent_and_takes_only_pins(worker, pod):
    await worker.unpin(pod)
    await worker.create(pod, ALL)
    (pod / "net2").write_text("not ours")
    await worker.unpin(pod)
    assert [each.name for each in pod.iterdir()] == ["net2"]
    (pod / "net2").unlink()
    await worker.unpin(pod)
    assert not pod.exists()


async def test_what_is_kept_stays_pinned_until_it_is_not(worker, pod):
    await worker.create(pod, ALL)
    await worker.unpin(pod, keep={"net", "user"})
    assert [each.name for each in pod.iterdir()] == ["net"]
    assert is_pinned(pod / "net", syscalls=calls)
    await worker.unpin(pod, keep={"net", "user"})
    assert is_pinned(pod / "net", syscalls=calls)
    await worker.unpin(pod)
    assert not pod.exists()


async def test_unpinning_after_the_mount_was_taken_or_covered(worker, pod):
    await worker.create(pod, ALL)
    calls.umount2(pod / "net", sc.MNT_DETACH)
    mount_one(Mount("bind", "/proc/self/ns/uts", pod / "uts"), syscalls=calls)
    await worker.unpin(pod)
    assert not pod.exists()


async def test_a_namespace_dies_with_its_pin(worker, pod):
    pins = await worker.create(pod, frozenset({"net"}))
    inode = identity(pins["net"])
    listening = await worker.run_in_network(pins["net"], listen)
    listening.close()
    await worker.unpin(pod)
    # Nothing refers to it any more: the number may be given to the next one.
    assert inode not in own("net")


def listen():
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen()
    return server


async def test_calls_inside_a_network_come_back_with_sockets_of_it(worker, pod):
    pins = await worker.create(pod, frozenset({"net"}))
    server = await worker.run_in_network(pins["net"], listen)
    port = server.getsockname()[1]

    def connect():
        with socket.create_connection(("127.0.0.1", port)):
            return Path("/proc/thread-self/net/dev").read_text().count("lo:")

    try:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()
        assert await worker.run_in_network(pins["net"], connect) == 1
    finally:
        server.close()


async def test_an_exception_inside_a_network_comes_out_and_the_thread_comes_home(worker, pod):
    pins = await worker.create(pod, frozenset({"net"}))

    def fail():
        raise LookupError("inside")

    with pytest.raises(LookupError, match="inside"):
        await worker.run_in_network(pins["net"], fail)
    assert identity(pins["net"]) not in own("net")


@pytest.mark.parametrize("what", ["missing", "file", "fifo", "link"])
async def test_entering_what_is_no_pin(worker, pod, tmp_path, what):
    path = tmp_path / what
    pins = await worker.create(pod, frozenset({"net"}))
    match what:
        case "file":
            path.write_text("")
        case "fifo":
            os.mkfifo(path)
        case "link":
            path.symlink_to(pins["net"])
    with pytest.raises((NotFound, InvalidArgument)):
        await worker.run_in_network(path, lambda: None)


async def test_pinning_a_namespace_of_a_process(worker, pod):
    child = await HostProcessRunner().spawn(["unshare", "--pid", "--fork", "sleep", "1000"])
    try:
        target = await grandchild(child.pid)
        inode = identity(f"/proc/{target}/ns/pid")
        await worker.pin_process(target, "pid", pod / "pid", start_ticks=start_ticks(target))
        assert worker.is_pinned(pod / "pid")
        with pytest.raises(AlreadyExists):
            await worker.pin_process(target, "pid", pod / "pid")
        with pytest.raises(NotFound, match="another"):
            await worker.pin_process(target, "pid", pod / "pid2", start_ticks=1)
        with pytest.raises(InvalidArgument):
            await worker.pin_process(target, "../exe", pod / "exe")
    finally:
        child.kill_group()
        await child.wait()
    assert identity(pod / "pid") == inode
    with pytest.raises(NotFound):
        await worker.pin_process(2**22 - 1, "pid", pod / "pid3")


def children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


async def grandchild(pid):
    while True:
        if found := children(pid):
            return int(found[0])
        await asyncio.sleep(0.001)


class LostOnce(LibcSyscalls):
    """The first way home fails."""

    def __init__(self) -> None:
        self.lost = 0

    def setns(self, fd, kind):
        if not self.lost:
            self.lost += 1
            error = OSError(errno.EPERM, "told to fail")
            raise from_os_error(error, "cannot enter namespace") from error
        super().setns(fd, kind)


async def test_a_thread_that_cannot_come_home_is_replaced(tmp_path):
    lost = LostOnce()
    worker = NamespaceWorker(syscalls=lost)
    home = identity("/proc/self/ns/net")
    try:
        first = asyncio.ensure_future(worker.create(tmp_path / "a", ALL))
        rest = [asyncio.ensure_future(worker.create(tmp_path / f"b{n}", ALL)) for n in range(3)]
        await asyncio.gather(first, *rest)
        assert lost.lost == 1
        inodes = {identity(tmp_path / name / "net") for name in ("a", "b0", "b1", "b2")}
        assert len(inodes) == 4
        # Whoever could not come home has ended by now, or is about to.
        await asyncio.to_thread(until, lambda: own("net") == {home}, "nobody stands in a pod")
    finally:
        for name in ("a", "b0", "b1", "b2"):
            await worker.unpin(tmp_path / name)
        worker.close()


class NoNetwork(LibcSyscalls):
    def set_link_up(self, name):
        error = OSError(errno.EPERM, "told to fail")
        raise from_os_error(error, "cannot set link up") from error


async def test_a_step_that_fails_undoes_the_others(tmp_path):
    worker = NamespaceWorker(syscalls=NoNetwork())
    home = {kind: own(kind) for kind in ALL}
    with pytest.raises(Denied):
        await worker.create(tmp_path / "pod", ALL)
    worker.close()
    assert mounts_below(tmp_path) == []
    assert {kind: own(kind) for kind in ALL} == home


async def test_a_cancelled_create_can_be_cleaned_up_at_once(worker, pod):
    task = asyncio.ensure_future(worker.create(pod, ALL))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await worker.unpin(pod)
    assert mounts_below(pod) == []
    assert not pod.exists()


async def test_many_at_once(worker, tmp_path):
    names = [tmp_path / f"p{n}" for n in range(20)]
    await asyncio.gather(*(worker.create(name, ALL, hostname=name.name) for name in names))
    assert len({identity(name / "net") for name in names}) == 20
    await asyncio.gather(*(worker.unpin(name) for name in names))
    assert not any(name.exists() for name in names)


async def test_a_closed_worker_says_so_and_leaves_no_thread(tmp_path):
    before = threading.active_count()
    worker = NamespaceWorker(syscalls=calls)
    await worker.unpin(tmp_path / "x")
    worker.close()
    assert threading.active_count() == before
    with pytest.raises(Unavailable):
        await worker.unpin(tmp_path / "x")


@pytest.mark.parametrize("name", ["x" * 65, "a b", "a\nb", "a/b", "ä" * 40])
async def test_host_names_that_cannot_be(worker, pod, name):
    with pytest.raises(InvalidArgument):
        await worker.create(pod, ALL, hostname=name)
    assert not pod.exists()


async def test_a_host_name_needs_a_namespace(worker, pod):
    before = socket.gethostname()
    with pytest.raises(InvalidArgument):
        await worker.create(pod, frozenset({"net"}), hostname="stray")
    assert socket.gethostname() == before
