"""User namespaces made and pinned, layers and sources with mapped owners, on the real kernel."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from imageservice.catalog import APPLICATION_ID, MIGRATIONS
from imageservice.snapshots.overlay import OverlaySnapshotter
from imageservice.snapshots.probe import probe_mapping
from imageservice.snapshots.root import layers_in_use
from imageservice.snapshots.snapshotter import LayerFacts, MappedRoot
from sandbox.host.database import Database
from sandbox.host.errors import AlreadyExists, InvalidArgument, Unsupported
from sandbox.host.idmap import IdMap, IdRange
from sandbox.host.libc import LibcSyscalls
from sandbox.host.mounts import Mount, list_mounts, mount_all, mount_one, unmount_tree
from sandbox.host.namespaces import NamespaceWorker, is_pinned
from sandbox.host.processes import HostProcessRunner
from sandbox.host.usernamespaces import UserNamespaces
from tests.kit.calls import until

pytestmark = pytest.mark.root
calls = LibcSyscalls()
ALL = frozenset({"net", "ipc", "uts"})
USERS, GROUPS = IdRange(0, 200_000, 65_536), IdRange(0, 400_000, 65_536)


@pytest.fixture
async def worker(tmp_path):
    worker = NamespaceWorker(syscalls=calls)
    yield worker
    await worker.unpin(tmp_path / "pod")
    worker.close()


@pytest.fixture
def maker(worker):
    return UserNamespaces(runner=HostProcessRunner(), worker=worker)


async def inside(pins, *argv):
    words = [f"--{kind}={path}" for kind, path in pins.items()]
    done = await HostProcessRunner().run(["nsenter", *words, *argv])
    assert done.exit_status == 0, done.message
    return done.stdout.decode().strip()


def helpers():
    """Those that work in this test; another node on the machine may have its own at work."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            # What was left would be given to process 1 only when this process has ended.
            if b"userns_init.py" in line and parent == os.getpid():
                found.append(entry.name)
    return found


async def test_everything_belongs_to_the_user_namespace(maker, tmp_path):
    pins = await maker.create(
        tmp_path / "pod",
        ALL,
        uids=USERS,
        gids=GROUPS,
        hostname="inner",
        sysctls={
            "net.ipv4.ping_group_range": "0 65535",
            "kernel.shm_rmid_forced": "1",
            "kernel.domainname": "example",
        },
    )
    assert {kind: path.name for kind, path in pins.items()} == {k: k for k in ("user", *ALL)}
    assert all(is_pinned(path, syscalls=calls) for path in pins.values())
    assert (await inside(pins, "cat", "/proc/self/uid_map")).split() == ["0", "200000", "65536"]
    assert (await inside(pins, "cat", "/proc/self/gid_map")).split() == ["0", "400000", "65536"]
    assert await inside(pins, "hostname") == "inner"
    for key, value in {
        "net/ipv4/ping_group_range": "0\t65535",
        "kernel/shm_rmid_forced": "1",
        "kernel/domainname": "example",
    }.items():
        assert await inside(pins, "cat", f"/proc/sys/{key}") == value
    assert "LOOPBACK,UP" in await inside(pins, "ip", "link", "show", "lo")
    # Root inside may do what only the owner of a namespace may.
    await inside(pins, "ip", "addr", "add", "127.0.0.9/8", "dev", "lo")
    await inside(pins, "hostname", "other")


async def test_only_what_is_asked_for_is_made(maker, tmp_path):
    pins = await maker.create(tmp_path / "pod", frozenset(), uids=USERS, gids=GROUPS)
    assert list(pins) == ["user"]
    assert sorted(path.name for path in (tmp_path / "pod").iterdir()) == ["user"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sysctls": {"net.ipv4.ping_group_range": "0 70000"}}, "ping_group_range"),
        ({"sysctls": {"net.ipv4.no_such": "1"}}, "no_such"),
        ({"sysctls": {"kernel.pid_max": "1"}}, "not namespaced"),
        ({"hostname": "a/b"}, "host name"),
    ],
)
async def test_what_cannot_be_set_leaves_nothing(maker, tmp_path, options, words):
    with pytest.raises(InvalidArgument, match=words):
        await maker.create(tmp_path / "pod", ALL, uids=USERS, gids=GROUPS, **options)
    assert not list((tmp_path / "pod").glob("*"))
    assert not [m for m in list_mounts() if tmp_path in m.target.parents]


async def test_a_pin_that_is_taken_is_not_covered(maker, worker, tmp_path):
    await maker.create(tmp_path / "pod", frozenset(), uids=USERS, gids=GROUPS)
    with pytest.raises(AlreadyExists):
        await maker.create(tmp_path / "pod", frozenset(), uids=USERS, gids=GROUPS)


async def test_a_caller_that_goes_away_leaves_no_helper(maker, tmp_path):
    for pause_s in (0.0, 0.002, 0.005, 0.02):
        making = asyncio.ensure_future(maker.create(tmp_path / "pod", ALL, uids=USERS, gids=GROUPS))
        await asyncio.sleep(pause_s)
        making.cancel()
        await asyncio.wait([making])
        await maker._worker.unpin(tmp_path / "pod")
    await asyncio.to_thread(until, lambda: not helpers(), "no helper is left")


async def test_a_layer_shows_the_pods_owners_and_is_not_touched(maker, tmp_path):
    pins = await maker.create(tmp_path / "pod", frozenset(), uids=USERS, gids=GROUPS)
    ids = IdMap(USERS, GROUPS, pins["user"])
    database = await Database.open(
        tmp_path / "catalog.db", migrations=MIGRATIONS, application_id=APPLICATION_ID
    )
    snapshots = OverlaySnapshotter(tmp_path / "images", database, syscalls=calls)
    await snapshots.open()
    chain = []
    for number in range(2):
        staging = await snapshots.stage(f"sha256:{number:064x}")
        file = staging.path / f"file{number}"
        file.write_text("x")
        os.chown(file, 33, 44)
        file.chmod(0o4755)
        staging.path.chmod(0o750)
        await snapshots.commit(staging, LayerFacts(1, 1))
        chain.append(staging.diff_id)
    parts = await snapshots.prepare(
        "c",
        tuple(chain),
        upper_dir=tmp_path / "c/upper",
        work_dir=tmp_path / "c/work",
        mapped=MappedRoot(ids, tmp_path / "c/lower"),
    )
    target = tmp_path / "target"
    target.mkdir()
    mount_all([*parts[:-1], replace(parts[-1], target=target)], syscalls=calls)
    try:
        unmount_tree(tmp_path / "c/lower", syscalls=calls)
        seen = (target / "file0").stat()
        assert (seen.st_uid, seen.st_gid, seen.st_mode & 0o7777) == (200_033, 400_044, 0o4755)
        root = (tmp_path / "c/upper").stat()
        assert (root.st_uid, root.st_gid, root.st_mode & 0o777) == (200_000, 400_000, 0o750)
        (target / "file0").write_text("changed")  # copied up
        copied = (tmp_path / "c/upper/file0").stat()
        assert (copied.st_uid, copied.st_gid) == (200_033, 400_044)
        own = {(p.stat().st_uid, p.stat().st_gid) for p in snapshots.layers_dir.glob("*/file*")}
        assert own == {(33, 44)}
        # A lost catalog must not take layers from under a container.
        assert {p.name for p in snapshots.layers_dir.iterdir()} - {"empty"} <= layers_in_use(
            tmp_path / "images"
        )
    finally:
        unmount_tree(target, syscalls=calls)
        await snapshots.close()
        await database.close()


async def test_the_probe_says_yes_here_and_leaves_nothing(maker, tmp_path):
    pins = await maker.create(tmp_path / "pod", frozenset(), uids=USERS, gids=GROUPS)
    assert probe_mapping(tmp_path / "probe", pins["user"], calls) == ""
    # A daemon that was killed in the middle of it has left a mount.
    (tmp_path / "probe/lower").mkdir(parents=True)
    mount_one(Mount("tmpfs", "none", tmp_path / "probe/lower"), syscalls=calls)
    assert probe_mapping(tmp_path / "probe", pins["user"], calls) == ""
    assert "cannot open user namespace" in probe_mapping(tmp_path / "probe", tmp_path / "x", calls)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pod"]


async def test_a_file_system_that_cannot_be_mapped_is_said(maker, tmp_path):
    pins = await maker.create(tmp_path / "pod", frozenset(), uids=USERS, gids=GROUPS)
    target = tmp_path / "target"
    target.mkdir()
    word = IdMap(USERS, GROUPS, pins["user"]).word
    with pytest.raises(Unsupported, match="its file system cannot map owners"):
        mount_one(Mount("bind", "/proc/self", target, ("rbind", word)), syscalls=calls)
    assert not [m for m in list_mounts() if m.target == target]
