"""Every storage driver makes the same root file system of the same layers, and leaves nothing."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from imageservice.forms import DriverName
from imageservice.snapshots.copying import CopyJob, JobLayer, copy_tree
from imageservice.snapshots.drivers import DriverWish, Plan, choose_driver
from imageservice.snapshots.upper import LowerLayer, find_corrections
from sandbox.host import fuse
from sandbox.host.clock import SystemClock
from sandbox.host.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unsupported,
)
from sandbox.host.files import remove_tree
from sandbox.host.libc import LibcSyscalls
from sandbox.host.lsm_files import has_selinux_label
from sandbox.host.mounts import Mount, mount_all, mount_one, unmount_tree
from sandbox.host.processes import HostProcessRunner
from sandbox.image_mounts import mount_image
from tests import probes

pytestmark = pytest.mark.root

SYSCALLS = LibcSyscalls()
OPAQUE = "trusted.overlay.opaque"
ACL = "system.posix_acl_access"
#: user::rw-, user:7:r--, group::r--, mask::r--, other::--- (acl(5), linux/posix_acl_xattr.h).
ACL_TEXT = bytes.fromhex(
    "02000000 0100 0600 ffffffff 0200 0400 07000000"
    "0400 0400 ffffffff 1000 0400 ffffffff 2000 0000 ffffffff"
)


@pytest.fixture(params=["overlay", "fuse-overlayfs", "native"])
def driver(request: pytest.FixtureRequest) -> DriverName:
    if request.param == "fuse-overlayfs" and (reason := probes.no_fuse_overlayfs()):
        pytest.skip(reason)
    if request.param == "overlay" and (reason := probes.no_overlay()):
        pytest.skip(reason)
    return request.param


@asynccontextmanager
async def mounted(
    driver: DriverName,
    base: Path,
    layers: Iterable[LowerLayer],
    *,
    key: str = "c",
    read_only: bool = False,
) -> AsyncIterator[Path]:
    """The root file system that a driver makes of layers, lowest first."""
    lower = tuple(layers)
    target, empty = base / f"{key}-root", base / "empty"
    for directory in (target, empty):
        directory.mkdir(exist_ok=True)
    storage = await choose_driver(DriverWish(driver), base / "probe", syscalls=SYSCALLS)
    parts = await storage.driver.compose(
        Plan(
            lower=lower,
            empty=empty,
            upper_dir=base / key / "upper",
            work_dir=base / key / "work",
            read_only=read_only,
            mapped=None,
            corrections=find_corrections(lower[::-1]) if storage.driver.corrects else (),
        )
    )
    (mount,) = (replace(part, target=target) for part in parts)
    program = None
    if mount.type == fuse.FUSE_OVERLAYFS:
        program = await fuse.serve(
            mount, runner=HostProcessRunner(), syscalls=SYSCALLS, clock=SystemClock()
        )
    else:
        mount_all([mount], syscalls=SYSCALLS)
    try:
        yield target
    finally:
        unmount_tree(target, syscalls=SYSCALLS)
        if program is not None:
            assert await program.wait() == 0


def layer(base: Path, name: str, *implied: str) -> LowerLayer:
    path = base / name
    path.mkdir(mode=0o755)
    return LowerLayer(path, frozenset(os.fsencode(each) for each in implied))


def whiteout(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))


async def test_layers_above_hide_what_is_below(driver: DriverName, tmp_path: Path) -> None:
    low, middle, top = (layer(tmp_path, name) for name in ("low", "middle", "top"))
    for name in ("kept", "gone", "back", "dir/a", "dir/b", "opaque/a", "was-dir/a", "was-file"):
        (low.path / name).parent.mkdir(exist_ok=True)
        (low.path / name).write_text("low")
    for name in ("gone", "back"):
        whiteout(middle.path / name)
    (middle.path / "dir").mkdir()
    whiteout(middle.path / "dir/a")
    (middle.path / "opaque").mkdir()
    os.setxattr(middle.path / "opaque", OPAQUE, b"y")
    (middle.path / "opaque/own").write_text("middle")
    (middle.path / "was-dir").write_text("now a file")
    whiteout(middle.path / "was-file")
    (top.path / "back").write_text("top")
    (top.path / "was-file").mkdir()
    (top.path / "was-file/in").write_text("top")
    (top.path / "opaque").mkdir()
    (top.path / "opaque/more").write_text("top")
    async with mounted(driver, tmp_path, (low, middle, top)) as root:
        found = sorted(str(p.relative_to(root)) for p in root.rglob("*"))
        assert found == [
            "back",
            "dir",
            "dir/b",
            "kept",
            "opaque",
            "opaque/more",
            "opaque/own",
            "was-dir",
            "was-file",
            "was-file/in",
        ]
        assert (root / "back").read_text() == "top"
        assert (root / "was-dir").read_text() == "now a file"


async def test_every_kind_of_file_and_what_belongs_to_it(
    driver: DriverName, tmp_path: Path
) -> None:
    low = layer(tmp_path, "low")
    path = low.path / "file"
    path.write_bytes(b"content")
    os.chown(path, 1000, 4_000_000_000)
    path.chmod(0o4750)
    os.setxattr(path, "user.note", b"n")
    os.setxattr(path, ACL, ACL_TEXT)
    os.link(path, low.path / "second")
    (low.path / "link").symlink_to("nowhere/at/all")
    os.chown(low.path / "link", 5, 6, follow_symlinks=False)
    os.mkfifo(low.path / "fifo", 0o600)
    os.mknod(low.path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with (low.path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 30)
        file.write(b"in the middle")
    (low.path / os.fsdecode(b"\xff\xfe not text\n")).touch()
    (low.path / "dir").mkdir()
    (low.path / "dir").chmod(0o2711)
    for each in (path, low.path / "dir"):
        os.utime(each, ns=(1_000_000_001, 2_000_000_002))
    async with mounted(driver, tmp_path, [low]) as root:
        status = (root / "file").stat()
        assert (status.st_uid, status.st_gid) == (1000, 4_000_000_000)
        assert stat.S_IMODE(status.st_mode) == 0o4640
        assert status.st_mtime_ns == (root / "dir").stat().st_mtime_ns == 2_000_000_002
        assert os.getxattr(root / "file", "user.note") == b"n"
        assert os.getxattr(root / "file", ACL) == ACL_TEXT
        assert status.st_ino == (root / "second").stat().st_ino
        assert os.readlink(root / "link") == "nowhere/at/all"  # noqa: PTH115
        assert (root / "link").lstat().st_uid == 5
        assert stat.S_ISFIFO((root / "fifo").stat().st_mode)
        assert (root / "null").write_bytes(b"works") == 5
        with (root / "sparse").open("rb") as file:
            assert os.pread(file.fileno(), 13, 1 << 30) == b"in the middle"
        assert (root / "sparse").stat().st_size == 1 << 40
        assert (root / "sparse").stat().st_blocks < 100
        assert (root / os.fsdecode(b"\xff\xfe not text\n")).exists()
        assert stat.S_IMODE((root / "dir").stat().st_mode) == 0o2711


async def test_writes_stay_with_the_container(driver: DriverName, tmp_path: Path) -> None:
    low = layer(tmp_path, "low")
    (low.path / "file").write_text("low")
    (low.path / "other").write_text("low")
    (low.path / "dir").mkdir()
    async with mounted(driver, tmp_path, [low]) as root:
        with (root / "file").open("a") as file:
            file.write(" and more")
        (root / "other").unlink()
        (root / "made").mkdir()
        (root / "made").rename(root / "moved")
        (root / "new").write_text("new")
        os.setxattr(root / "new", "user.a", b"b")
    assert (tmp_path / "c/upper/new").read_text() == "new"
    assert (low.path / "file").read_text() == (low.path / "other").read_text() == "low"
    async with mounted(driver, tmp_path, [low]) as root:
        assert sorted(path.name for path in root.iterdir()) == ["dir", "file", "moved", "new"]
        assert (root / "file").read_text() == "low and more"
    async with mounted(driver, tmp_path, [low], key="d") as root:
        assert sorted(path.name for path in root.iterdir()) == ["dir", "file", "other"]


async def test_a_read_only_root(driver: DriverName, tmp_path: Path) -> None:
    low = layer(tmp_path, "low")
    (low.path / "file").write_text("low")
    async with mounted(driver, tmp_path, [low], read_only=True) as root:
        assert (root / "file").read_text() == "low"
        with pytest.raises(OSError, match="Read-only") as caught:
            (root / "new").touch()
        assert caught.value.errno == errno.EROFS


async def test_directories_look_as_they_are_described(driver: DriverName, tmp_path: Path) -> None:
    low = layer(tmp_path, "low")
    top = layer(tmp_path, "top", "", "tmp", "only", "only/deep")
    (low.path / "tmp").mkdir()
    (low.path / "tmp").chmod(0o1777)
    low.path.chmod(0o711)
    os.chown(low.path, 3, 4)
    for name in ("tmp", "only", "only/deep"):
        (top.path / name).mkdir(mode=0o755)
    (top.path / "tmp/x").touch()
    async with mounted(driver, tmp_path, (low, top)) as root:
        status = root.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o711, 3, 4)
        assert stat.S_IMODE((root / "tmp").stat().st_mode) == 0o1777
        assert stat.S_IMODE((root / "only/deep").stat().st_mode) == 0o755


@pytest.mark.parametrize("count", [0, 1, 300])
async def test_any_number_of_layers(driver: DriverName, tmp_path: Path, count: int) -> None:
    layers = [layer(tmp_path, f"l{number}") for number in range(count)]
    for number, each in enumerate(layers):
        (each.path / f"own{number}").touch()
        (each.path / "same").write_text(str(number))
    async with mounted(driver, tmp_path, layers) as root:
        assert len(list(root.iterdir())) == count + bool(count)
        if count:
            assert (root / "same").read_text() == str(count - 1)
        (root / "new").touch()


# The copy against the kernel's overlay.

NAMES = st.sampled_from(["a", "b", "c", "d"])
MOVES = st.tuples(
    st.sampled_from("ffddooswhp"),
    st.lists(NAMES, min_size=1, max_size=3).map("/".join),
    st.integers(0, 5),
)


def build(root: Path, moves: Iterable[tuple[str, str, int]]) -> None:
    """What can be made of the moves; the others are passed over."""
    for kind, name, number in moves:
        path = root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            match kind:
                case "f":
                    path.write_bytes(b"%d" % number * 1000 * number)
                    path.chmod(0o640 + number)
                case "d" | "o":
                    path.mkdir(mode=0o750 + number, exist_ok=True)
                    if kind == "o":
                        os.setxattr(path, OPAQUE, b"y")
                case "s":
                    path.symlink_to("abc"[number % 3])
                case "w":
                    whiteout(path)
                case "h":
                    os.link(root / "abcd"[number % 4], path, follow_symlinks=False)
                case "p":
                    os.mkfifo(path, 0o600 + number)
            if kind in "fd":
                os.setxattr(path, "user.n", b"%d" % number)
                os.utime(path, (number, 100 + number))
        except OSError:
            continue


def described(root: Path) -> dict[str, tuple[object, ...]]:
    """All that a program can tell apart, by path; links by the order of their names."""
    found: dict[str, tuple[object, ...]] = {}
    inodes: dict[int, int] = {}
    for path in (root, *sorted(root.rglob("*"))):
        try:
            status = path.lstat()
        except FileNotFoundError:
            # overlayfs lists a whiteout of a directory that only one layer has; it is not there.
            continue
        is_file = stat.S_ISREG(status.st_mode)
        found[str(path.relative_to(root))] = (
            stat.filemode(status.st_mode),
            (status.st_uid, status.st_gid, status.st_mtime_ns),
            inodes.setdefault(status.st_ino, len(inodes)) if is_file else None,
            path.read_bytes() if is_file else None,
            str(path.readlink()) if path.is_symlink() else None,
            {
                name: os.getxattr(path, name, follow_symlinks=False)
                for name in sorted(os.listxattr(path, follow_symlinks=False))
            },
        )
    return found


@given(st.lists(st.lists(MOVES, max_size=8), min_size=2, max_size=4))
@example([[("f", "a/b/c", 1)], [("w", "a/b", 0)], [("f", "a/b/d", 2)]])
@example([[("f", "a/b", 1)], [("f", "a", 1)], [("f", "a/c", 2)]])
@example([[("f", "a", 1), ("h", "b", 0), ("h", "c/d", 0)], [("w", "a", 0)]])
@settings(
    max_examples=int(os.environ.get("PODWRIGHT_FUZZ_EXAMPLES", "60")),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_a_copy_is_what_overlayfs_shows(
    tmp_path: Path, moves: list[list[tuple[str, str, int]]]
) -> None:
    if reason := probes.no_overlay():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(dir=tmp_path, ignore_cleanup_errors=True) as name:
        base = Path(name)
        layers = [layer(base, f"l{number}").path for number in range(len(moves))]
        for path, each in zip(layers, moves, strict=True):
            build(path, each)
            os.utime(path, (50, 60))
        target, copy = base / "target", base / "copy"
        target.mkdir()
        words = (f"lowerdir={':'.join(str(path) for path in reversed(layers))}", "ro")
        mount_one(Mount("overlay", "overlay", target, words), syscalls=SYSCALLS)
        try:
            copy_tree(
                CopyJob(layers=tuple(JobLayer(path=str(path)) for path in layers), target=str(copy))
            )
            assert described(copy) == described(target)
        finally:
            unmount_tree(target, syscalls=SYSCALLS)
        remove_tree(base)


def test_a_copy_gets_the_label_of_its_container(tmp_path: Path) -> None:
    """A mount of its own would be told the label; a copy's files have it written on them."""
    label = "system_u:object_r:container_file_t:s0:c1,c2"
    source, place = tmp_path / "copy", tmp_path / "root"
    (source / "dir").mkdir(parents=True)
    (source / "dir/file").touch()
    (source / "link").symlink_to("/etc/hostname")
    mount = Mount("bind", str(source), Path(), ("bind", "private"))
    assert mount_image(place, [mount], label=label, syscalls=SYSCALLS) == ()
    try:
        for name in (".", "dir", "dir/file", "link"):
            assert has_selinux_label(place / name, label), name
    finally:
        unmount_tree(place, syscalls=SYSCALLS)


# Failures.


async def test_a_copy_that_does_not_fit_leaves_no_root(tmp_path: Path) -> None:
    low = layer(tmp_path, "low")
    (low.path / "big").write_bytes(os.urandom(1 << 20))
    disk = tmp_path / "disk"
    disk.mkdir()
    mount_one(Mount("tmpfs", "disk", disk, ("size=256k",)), syscalls=SYSCALLS)
    try:
        storage = await choose_driver(DriverWish("native"), tmp_path / "probe", syscalls=SYSCALLS)
        plan = Plan(
            lower=[low],
            empty=tmp_path,
            upper_dir=disk / "c/upper",
            work_dir=disk / "c/work",
            read_only=False,
            mapped=None,
        )
        with pytest.raises(ResourceExhausted):
            await storage.driver.compose(plan)
        assert not plan.upper_dir.exists()
    finally:
        unmount_tree(disk, syscalls=SYSCALLS)


async def test_a_copy_that_is_called_off_has_ended(tmp_path: Path) -> None:
    low = layer(tmp_path, "low")
    os.mkfifo(low.path / "fifo")
    for number in range(10_000):  # enough for it to be seen at work on a busy machine
        (low.path / f"f{number}").touch()
    storage = await choose_driver(DriverWish("native"), tmp_path / "probe", syscalls=SYSCALLS)
    work = tmp_path / "c/work"
    plan = Plan(
        lower=[low],
        empty=tmp_path,
        upper_dir=tmp_path / "c/upper",
        work_dir=work,
        read_only=False,
        mapped=None,
    )
    async with asyncio.TaskGroup() as group:
        task = group.create_task(storage.driver.compose(plan))
        while not (work / "copy").exists():
            assert not task.done()
            await asyncio.sleep(0.001)
        task.cancel()
    assert not plan.upper_dir.exists()
    remove_tree(tmp_path / "c")
    assert not (tmp_path / "c").exists()


async def serve(base: Path, *options: str, program: str = "/usr/bin/fuse-overlayfs") -> None:
    target = base / "target"
    target.mkdir(exist_ok=True)
    mount = Mount(fuse.FUSE_OVERLAYFS, program, target, options)
    await fuse.serve(mount, runner=HostProcessRunner(), syscalls=SYSCALLS, clock=SystemClock())


async def test_a_server_that_cannot_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    if reason := probes.no_fuse_overlayfs():
        pytest.skip(reason)
    with pytest.raises(FailedPrecondition, match="nowhere"):
        await serve(tmp_path, f"lowerdir={tmp_path}/nowhere")
    with pytest.raises(NotFound):
        await serve(tmp_path, program="/nowhere/fuse-overlayfs")
    with pytest.raises(InvalidArgument):
        await serve(tmp_path, "lowerdir=/a\\b")
    assert fuse.served_below(tmp_path) == fuse.servers_below(tmp_path) == []


async def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    program = tmp_path / "silent"
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(Exception, match="did not answer"):
        await fuse.serve(
            Mount(fuse.FUSE_OVERLAYFS, str(program), target),
            runner=HostProcessRunner(),
            syscalls=SYSCALLS,
            clock=SystemClock(),
            limit_s=0.1,
        )


async def test_what_is_not_there_is_not_chosen(tmp_path: Path) -> None:
    wish = DriverWish("fuse-overlayfs", Path("/nowhere/fuse-overlayfs"))
    with pytest.raises(Unsupported, match=r"image.storage_driver is fuse-overlayfs"):
        await choose_driver(wish, tmp_path / "probe", syscalls=SYSCALLS)
    assert os.listdir(tmp_path) == []  # noqa: PTH208


@pytest.mark.parametrize("has_program", [True, False])
async def test_auto_takes_the_first_that_works(tmp_path: Path, has_program: bool) -> None:
    """On an overlay whose file system takes no further overlay, as in a container on a node."""
    if reason := probes.no_overlay():
        pytest.skip(reason)
    if has_program and (reason := probes.no_fuse_overlayfs()):
        pytest.skip(reason)
    base = tmp_path
    calls = _WithoutOverlay()
    wish = DriverWish("auto") if has_program else DriverWish("auto", Path("/nowhere/fuse"))
    storage = await choose_driver(wish, base / "probe", syscalls=calls)
    assert storage.driver.name == ("fuse-overlayfs" if has_program else "native")
    assert list(storage.reasons) == (["overlay"] if has_program else ["overlay", "fuse-overlayfs"])
    assert "overlayfs cannot be used" in storage.reasons["overlay"]
    assert storage.report()["driver"] == storage.driver.name


class _WithoutOverlay(LibcSyscalls):
    """A kernel without overlayfs: mount(2) of one is ENODEV."""

    def mount(
        self, source: str, target: str | os.PathLike[str], kind: str, flags: int, data: str = ""
    ) -> None:
        super().mount(source, target, "no-overlay" if kind == "overlay" else kind, flags, data)
