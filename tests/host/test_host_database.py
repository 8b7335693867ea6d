"""The database when the disk is full, fails, or the process is killed at any write."""

import os
import shutil
import sqlite3
import sys
from contextlib import closing, suppress
from pathlib import Path

import pytest

from sandbox.host.database import Database, as_int
from sandbox.host.errors import Denied, PodwrightError, ResourceExhausted, Unavailable
from sandbox.host.libc import LibcSyscalls
from sandbox.host.mounts import Mount, mount_one, unmount
from sandbox.host.processes import HostProcessRunner
from tests import probes

pytestmark = pytest.mark.root
calls = LibcSyscalls()
SCHEMA = "CREATE TABLE items (n INTEGER PRIMARY KEY, body BLOB)"
OURS = 0x506F6432


@pytest.fixture
def small(tmp_path):
    """A file system of half a megabyte."""
    at = tmp_path / "small"
    at.mkdir()
    mount_one(Mount("tmpfs", "t", at, ("size=512k",)), syscalls=calls)
    yield at
    unmount(at, syscalls=calls)


async def opened(path):
    return await Database.open(path, migrations=[SCHEMA], application_id=OURS, reserve_bytes=0)


def count(c):
    return as_int(c.execute("SELECT count(*) FROM items").fetchone()[0])


def insert(n, size=2000):
    return lambda c: c.execute("INSERT INTO items VALUES (?, ?)", (n, os.urandom(size)))


def fill(path):
    with suppress(OSError), path.open("ab") as file:
        while True:
            file.write(bytes(4096))
            file.flush()


@pytest.mark.cell("DK2")
async def test_a_full_disk_refuses_writes_and_goes_on_answering(small):
    database = await opened(small / "state.db")
    (small / "ballast").write_bytes(bytes(128 * 1024))
    written = 0
    with suppress(ResourceExhausted):
        while True:
            await database.write(insert(written))
            written += 1
    assert written > 10
    fill(small / "rest")
    with pytest.raises(ResourceExhausted):
        await database.write(lambda c: c.execute("DELETE FROM items"))
    assert await database.read(count) == written
    # No error lasts: room came back, and the next write is an ordinary one.
    (small / "ballast").unlink()
    await database.write(lambda c: c.execute("DELETE FROM items WHERE n < 10"))
    assert await database.read(count) == written - 10
    await database.close()


@pytest.mark.cell("DK3")
async def test_the_reserve_lets_a_full_disk_be_cleaned_up(small):
    database = await Database.open(
        small / "state.db", migrations=[SCHEMA], application_id=OURS, reserve_bytes=64 * 1024
    )
    for n in range(5):
        await database.write(insert(n, size=5000))
    fill(small / "rest")
    with suppress(ResourceExhausted):
        for n in range(1000, 1100):
            await database.write(insert(n))
        raise AssertionError("the disk never was full")
    calls_of_work = []

    def remove_two(c):
        calls_of_work.append(1)
        c.execute("DELETE FROM items WHERE n < 2")

    await database.write(remove_two, cleanup=True)
    assert len(calls_of_work) == 2
    assert not (small / "state.db.reserve").exists()
    assert await database.read(lambda c: c.execute("SELECT min(n) FROM items").fetchone()) == (2,)
    (small / "rest").unlink()
    await database.write(insert(2000))
    assert (small / "state.db.reserve").stat().st_size == 64 * 1024
    await database.close()


@pytest.mark.cell("DK3")
async def test_a_full_disk_does_not_forbid_opening(small):
    database = await opened(small / "state.db")
    await database.write(insert(1))
    await database.close()
    fill(small / "rest")
    database = await opened(small / "state.db")
    assert await database.read(count) == 1
    await database.close()


@pytest.mark.cell("DK7")
async def test_a_file_system_gone_read_only(small):
    database = await opened(small / "state.db")
    await database.write(insert(1))
    await database.close()
    mount_one(Mount("bind", str(small), small, ("bind",)), syscalls=calls)
    mount_one(Mount("bind", "", small, ("remount", "ro")), syscalls=calls)
    with pytest.raises((Unavailable, Denied)):
        await opened(small / "state.db")


WRITER = f"""
import asyncio, sys
from pathlib import Path
from sandbox.host.database import Database
async def main():
    path = Path(sys.argv[1])
    database = await Database.open(path, migrations=[{SCHEMA!r}], application_id={OURS})
    for n in range(3):
        await database.write(lambda c: c.execute("INSERT INTO items VALUES (?, x'00')", (n,)))
        print(n, flush=True)
    await database.close()
    print("closed", flush=True)
asyncio.run(main())
"""


async def traced(tmp_path, injection):
    return await run_struck(WRITER, tmp_path / "state.db", injection)


async def run_struck(program, path, injection=""):
    strace = ["strace", "-f", "-o", "/dev/null", "-e", f"inject={injection}"] if injection else []
    return await HostProcessRunner().run(
        [*strace, sys.executable, "-c", program, str(path)],
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )


@pytest.mark.slow
@pytest.mark.parametrize("call", ["fsync,fdatasync", "pwrite64"])
async def test_killed_at_every_write_it_comes_back_with_what_was_told(tmp_path, call):
    if reason := probes.no_program("strace"):
        pytest.skip(reason)
    for when in range(1, 60):
        place = tmp_path / f"{call[:5]}-{when}"
        place.mkdir()
        done = await traced(place, f"{call}:signal=SIGKILL:when={when}")
        told = [int(line) for line in done.stdout.split() if line.isdigit()]
        database = await opened(place / "state.db")
        kept = await database.read(count)
        # What was reported as written is there; one more may be, whose report was cut off.
        assert len(told) <= kept <= len(told) + 1, f"kill at {call} number {when}"
        await database.write(insert(100))
        await database.close()
        if b"closed" in done.stdout:
            assert when > 3
            return
    raise AssertionError("never got through")


@pytest.mark.cell("DK8")
@pytest.mark.slow
async def test_a_failing_sync_fails_one_write(tmp_path):
    if reason := probes.no_program("strace"):
        pytest.skip(reason)
    outcomes = set()
    for when in range(1, 14):
        place = tmp_path / f"{when}"
        place.mkdir()
        done = await traced(place, f"fsync,fdatasync:error=EIO:when={when}")
        outcomes.add(done.exit_status == 0)
        assert b"PodwrightError" not in done.stderr
        if done.exit_status != 0:
            assert b"sandbox.host.errors." in done.stderr, done.stderr[-2000:]
        with suppress(PodwrightError):
            database = await opened(place / "state.db")
            kept = await database.read(count)
            told = [line for line in done.stdout.split() if line.isdigit()]
            assert kept >= len(told)
            await database.close()
    assert outcomes == {True, False}


MIGRATION = """
CREATE TABLE more (name TEXT NOT NULL UNIQUE);
INSERT INTO more SELECT 'item ' || n FROM items;
ALTER TABLE items ADD COLUMN note TEXT NOT NULL DEFAULT 'none'
"""
MIGRATOR = f"""
import asyncio, sys
from pathlib import Path
from sandbox.host.database import Database
async def main():
    path = Path(sys.argv[1])
    steps = [{SCHEMA!r}, {MIGRATION!r}]
    database = await Database.open(path, migrations=steps, application_id={OURS})
    await database.close()
    print("closed", flush=True)
asyncio.run(main())
"""


def look_at(path: Path) -> tuple[int, bool, int]:
    """(number of the schema, whether it is the second one, items) of a copy, log included."""
    place = path.parent / "look"
    place.mkdir(exist_ok=True)
    for suffix in ("", "-wal"):
        with suppress(FileNotFoundError):
            shutil.copyfile(f"{path}{suffix}", place / f"copy.db{suffix}")
    with closing(sqlite3.connect(place / "copy.db")) as database:
        [(version,)] = database.execute("PRAGMA user_version").fetchall()
        tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master")}
        columns = {row[1] for row in database.execute("PRAGMA table_info(items)")}
        [(items,)] = database.execute("SELECT count(*) FROM items").fetchall()
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        if "more" in tables:
            assert database.execute("SELECT count(*) FROM more").fetchall() == [(items,)]
    shutil.rmtree(place)
    assert ("more" in tables) == ("note" in columns), "a migration is there by half"
    return version, "more" in tables, items


@pytest.mark.cell("DB1")
@pytest.mark.slow
@pytest.mark.parametrize("call", ["fsync,fdatasync", "pwrite64", "renameat2,rename,unlink"])
async def test_killed_at_every_write_of_a_migration(tmp_path, call):
    """Old or new, never mixed; and once it is new, a whole copy of the old is beside it."""
    if reason := probes.no_program("strace"):
        pytest.skip(reason)
    old = tmp_path / "old" / "state.db"
    old.parent.mkdir()
    database = await opened(old)
    for number in range(50):
        await database.write(insert(number))
    await database.close()
    seen = set()
    for when in range(1, 200):
        place = tmp_path / f"{call[:5]}-{when}"
        shutil.copytree(old.parent, place)
        path = place / "state.db"
        done = await run_struck(MIGRATOR, path, f"{call}:signal=SIGKILL:when={when}")
        version, new, items = look_at(path)
        assert (version, items) == (2 if new else 1, 50), f"kill at {call} number {when}"
        seen.add(version)
        if new:
            assert look_at(place / "state.db.version-1")[:2] == (1, False)
        else:
            database = await opened(path)  # the release of before
            assert await database.read(count) == 50
            await database.close()
        assert (await run_struck(MIGRATOR, path)).exit_status == 0
        assert look_at(path)[:2] == (2, True)
        assert look_at(place / "state.db.version-1")[:2] == (1, False)
        shutil.rmtree(place)
        if b"closed" in done.stdout:
            assert when > 1
            assert 1 in seen or call.startswith("rename")
            return
    raise AssertionError("never got through")


def test_the_library_is_one_that_was_tried():
    assert sqlite3.sqlite_version_info >= (3, 34)
