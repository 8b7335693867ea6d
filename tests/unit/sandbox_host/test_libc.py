"""What needs no privilege; the rest is in tests/host."""

import os
import socket

import pytest

from sandbox.host import syscalls as sc
from sandbox.host.errors import AlreadyExists, Denied, InvalidArgument, NotFound, Unsupported
from sandbox.host.libc import LibcSyscalls
from tests.fakes.syscalls import METHODS, FakeSyscalls

calls = LibcSyscalls()


def test_the_real_one_and_the_fake_have_every_method_with_the_same_parameters():
    import inspect

    for name, signature in METHODS.items():
        real = inspect.signature(getattr(LibcSyscalls, name))
        assert list(real.parameters) == list(signature.parameters), name
        assert hasattr(FakeSyscalls, name)


def test_sizes_agree_with_statvfs(tmp_path):
    mine, theirs = calls.statfs(tmp_path), os.statvfs(tmp_path)
    assert mine.total_bytes == theirs.f_blocks * theirs.f_frsize
    assert mine.inodes == theirs.f_files
    fd = os.open(tmp_path, os.O_PATH)
    assert calls.fstatfs(fd).type == mine.type
    os.close(fd)
    assert calls.statfs("/proc/self/ns/net").type == sc.NSFS_MAGIC


def test_opened_descriptors_are_not_inherited(tmp_path):
    fd = calls.openat2(sc.AT_FDCWD, tmp_path, os.O_RDONLY)
    assert not os.get_inheritable(fd)
    os.close(fd)


@pytest.mark.parametrize(
    "call",
    [
        lambda: calls.mount("a\0b", "/", "tmpfs"),
        lambda: calls.umount2("/a\0b"),
        lambda: calls.openat2(sc.AT_FDCWD, "/etc/passwd\0x", os.O_RDONLY),
        lambda: calls.set_link_up(""),
        lambda: calls.set_link_up("x" * 16),
    ],
)
def test_text_that_the_kernel_would_cut_is_refused(call):
    with pytest.raises(InvalidArgument):
        call()


def test_errors_name_the_path():
    with pytest.raises(NotFound, match="/no/such/place"):
        calls.statfs("/no/such/place")
    with pytest.raises(Unsupported, match="cannot set link none0 up"):
        calls.set_link_up("none0")


def test_renaming_without_replacing(tmp_path):
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    with pytest.raises(AlreadyExists):
        calls.renameat2(
            sc.AT_FDCWD, tmp_path / "a", sc.AT_FDCWD, tmp_path / "b", sc.RENAME_NOREPLACE
        )
    calls.renameat2(sc.AT_FDCWD, tmp_path / "a", sc.AT_FDCWD, tmp_path / "b", sc.RENAME_EXCHANGE)
    assert (tmp_path / "a").read_text() == "b"


def test_attributes_of_a_link_are_its_own(tmp_path):
    (tmp_path / "link").symlink_to("/nowhere")
    # user.* is not allowed on links, so the refusal shows that the link itself was meant.
    with pytest.raises((Denied, InvalidArgument)):
        calls.lsetxattr(tmp_path / "link", "user.test", b"x")


def test_syncing(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    calls.syncfs(fd)
    os.close(fd)
    with pytest.raises(Exception, match="bad file descriptor"):
        calls.syncfs(fd)


def test_signals_by_pidfd():
    fd = calls.pidfd_open(os.getpid())
    calls.pidfd_send_signal(fd, 0)
    os.close(fd)
    with pytest.raises(NotFound):
        calls.pidfd_open(2**22 - 1)


def test_the_interface_request_has_the_kernels_size():
    from sandbox.host import libc

    assert libc._IFREQ.size == 40
    assert libc._STATFS.size == 120
    assert socket.if_nameindex()
