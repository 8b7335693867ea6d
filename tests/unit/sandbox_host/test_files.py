import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from sandbox.host import syscalls as sc
from sandbox.host.errors import (
    Busy,
    Denied,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PodwrightError,
)
from sandbox.host.files import (
    Fd,
    TooLarge,
    flock_exclusive,
    make_private_dir,
    open_beneath,
    read_beneath,
    read_limited,
    remove_temporaries,
    write_atomic,
)
from tests.fakes.syscalls import FakeSyscalls


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def loose_umask():
    old = os.umask(0)
    yield
    os.umask(old)


@pytest.mark.parametrize("durable", [True, False])
def test_writing_replaces_whole_files_with_exactly_the_mode(tmp_path, durable):
    path = tmp_path / "config.json"
    old = os.umask(0o077)
    try:
        write_atomic(path, b"one", mode=0o644, durable=durable)
        assert mode_of(path) == 0o644
    finally:
        os.umask(old)
    write_atomic(path, b"two" * 100_000, durable=durable)
    assert path.read_bytes() == b"two" * 100_000
    assert mode_of(path) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["config.json"]


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path):
    kept = [".0123456789abcdef.tm", ".0123456789ABCDEF.tmp", "0123456789abcdef.tmp", ".x.tmp"]
    for name in (*kept, ".0123456789abcdef.tmp"):
        (tmp_path / name).touch()
    remove_temporaries(tmp_path)
    remove_temporaries(tmp_path / "missing")
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(kept)


def test_what_is_being_written_has_such_a_name(tmp_path, monkeypatch):
    def killed(_self, _target):
        raise SystemExit

    monkeypatch.setattr(Path, "replace", killed)
    monkeypatch.setattr(Path, "unlink", lambda _self: None)
    with pytest.raises(SystemExit):
        write_atomic(tmp_path / "target", b"data")
    monkeypatch.undo()
    assert list(tmp_path.iterdir())
    remove_temporaries(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target/inside").write_text("x")
    with pytest.raises(PodwrightError):
        write_atomic(tmp_path / "target", b"data")
    assert [each.name for each in tmp_path.iterdir()] == ["target"]
    with pytest.raises(NotFound):
        write_atomic(tmp_path / "missing/file", b"data")


def test_writing_replaces_a_planted_symlink_and_not_what_it_points_to(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (tmp_path / "file").symlink_to(victim)
    write_atomic(tmp_path / "file", b"new")
    assert victim.read_text() == "untouched"
    assert not (tmp_path / "file").is_symlink()


def test_reading_is_bounded_and_never_cut(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    assert read_limited(path, 100) == b"x" * 100
    with pytest.raises(TooLarge, match="larger than 99 bytes"):
        read_limited(path, 99)
    assert read_limited(Path("/proc/self/stat"), 4096)
    with pytest.raises(TooLarge):
        read_limited(Path("/proc/self/mountinfo"), 10)
    with pytest.raises(NotFound):
        read_limited(tmp_path / "missing", 10)


def test_reading_a_huge_sparse_file_allocates_nothing(tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(5 * 1024**3)
    with pytest.raises(TooLarge):
        read_limited(path, 1000)


def special(tmp_path, kind):
    path = tmp_path / kind
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
    return path


@pytest.mark.parametrize("kind", ["fifo", "directory", "socket"])
def test_what_is_no_file_is_refused_without_blocking(tmp_path, kind):
    special(tmp_path, kind)
    with pytest.raises(InvalidArgument):
        read_beneath(tmp_path, kind, limit_bytes=10)
    if kind != "socket":
        with pytest.raises(InvalidArgument):
            read_limited(tmp_path / kind, 10)


@pytest.fixture
def rootfs(tmp_path):
    root = tmp_path / "rootfs"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_text("inside")
    (tmp_path / "secret").write_text("outside")
    return root


@pytest.mark.parametrize(
    "path", ["etc/passwd", "/etc/passwd", "/../../etc/passwd", "etc/../etc/passwd"]
)
def test_paths_are_resolved_inside(rootfs, path):
    assert read_beneath(rootfs, path, limit_bytes=100) == b"inside"


def test_links_are_resolved_inside(rootfs):
    (rootfs / "absolute").symlink_to("/etc/passwd")
    (rootfs / "climbing").symlink_to("../../../../etc/passwd")
    (rootfs / "d").symlink_to("/etc")
    for name in ("absolute", "climbing", "d/passwd"):
        assert read_beneath(rootfs, name, limit_bytes=100) == b"inside"
    (rootfs / "escape").symlink_to("../secret")
    with pytest.raises(NotFound):
        read_beneath(rootfs, "escape", limit_bytes=100)


def test_loops_and_magic_links_are_refused(rootfs):
    (rootfs / "loop").symlink_to("loop")
    with pytest.raises(InvalidArgument):
        read_beneath(rootfs, "loop", limit_bytes=100)
    with pytest.raises(InvalidArgument):
        open_beneath(Path("/"), "proc/self/exe", os.O_RDONLY)


def test_a_root_may_be_a_descriptor_that_stays_open(rootfs):
    fd = os.open(rootfs, os.O_PATH | os.O_CLOEXEC)
    try:
        assert read_beneath(fd, "etc/passwd", limit_bytes=100) == b"inside"
        with open_beneath(fd, "etc/new", os.O_WRONLY | os.O_CREAT, 0o640) as new:
            os.write(new.fileno(), b"x")
            assert not os.get_inheritable(new.fileno())
    finally:
        os.close(fd)
    assert (rootfs / "etc/new").read_text() == "x"


def test_uncertain_walks_are_tried_again_but_not_for_ever(rootfs):
    calls = FakeSyscalls(fail={"openat2": [errno.EAGAIN, errno.EAGAIN]})
    open_beneath(rootfs, "etc", os.O_PATH, syscalls=calls).close()
    assert calls.names == ["openat2"] * 3
    assert calls.calls[0].resolve == sc.RESOLVE_IN_ROOT | sc.RESOLVE_NO_MAGICLINKS
    calls = FakeSyscalls(fail={"openat2": [errno.EAGAIN] * 100})
    with pytest.raises(PodwrightError):
        open_beneath(rootfs, "etc", os.O_PATH, syscalls=calls)


def test_private_directories(tmp_path, loose_umask):
    path = tmp_path / "a/b"
    make_private_dir(path)
    assert mode_of(path) == 0o700
    path.chmod(0o777)
    make_private_dir(path)
    assert mode_of(path) == 0o700
    make_private_dir(path, mode=0o711)
    assert mode_of(path) == 0o711


def test_a_private_directory_must_be_one(tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to("elsewhere")
    (tmp_path / "file").write_text("")
    for name in ("link", "file"):
        with pytest.raises(FailedPrecondition):
            make_private_dir(tmp_path / name)
    assert mode_of(tmp_path / "elsewhere") == 0o755


def test_a_private_directory_must_be_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(FailedPrecondition, match="another user"):
        make_private_dir(tmp_path / "x")


def test_a_lock_is_held_by_one_and_names_its_holder(tmp_path):
    path = tmp_path / "lock"
    with flock_exclusive(path) as held:
        assert not os.get_inheritable(held.fileno())
        with pytest.raises(Busy, match=rf"pid={os.getpid()}"):
            flock_exclusive(path)
    flock_exclusive(path).close()
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(Denied):
        flock_exclusive(tmp_path / "link")


def test_an_owner_forgets_before_it_closes():
    fd = Fd(os.open("/dev/null", os.O_RDONLY))
    number = fd.fileno()
    fd.close()
    taken = os.open("/dev/null", os.O_RDONLY)
    assert taken == number
    fd.close()
    os.fstat(taken)
    other = Fd(taken)
    assert other.detach() == taken
    other.close()
    os.close(taken)
    with pytest.raises(ValueError, match="closed"):
        other.fileno()
