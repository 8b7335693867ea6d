import asyncio
import contextlib
import os
import sqlite3
import stat

import pytest

from sandbox.host.database import (
    Database,
    as_bytes,
    as_int,
    as_text,
    marker_of,
    quarantine,
)
from sandbox.host.errors import (
    AlreadyExists,
    Busy,
    Corrupt,
    FailedPrecondition,
    PodwrightError,
    Unavailable,
)

FIRST = "CREATE TABLE pods (id TEXT PRIMARY KEY, body BLOB NOT NULL) STRICT"
SECOND = "ALTER TABLE pods ADD COLUMN state INTEGER NOT NULL DEFAULT 7; CREATE TABLE extra (n)"
OURS = 0x506F6431


class Stop(Exception):
    pass


@pytest.fixture
async def open_db(tmp_path):
    opened = []

    async def call(*migrations, path=tmp_path / "state.db", application_id=OURS):
        database = await Database.open(
            path, migrations=migrations or (FIRST,), application_id=application_id
        )
        opened.append(database)
        return database

    yield call
    for database in opened:
        await database.close()


def put(key, body=b"x"):
    return lambda c: c.execute("INSERT INTO pods (id, body) VALUES (?, ?)", (key, body)).rowcount


def keys(connection):
    return [as_text(row[0]) for row in connection.execute("SELECT id FROM pods").fetchall()]


async def test_what_was_written_is_there_after_opening_again(open_db):
    database = await open_db()
    assert await database.write(put("a")) == 1
    await database.close()
    await database.close()
    database = await open_db()
    assert await database.read(keys) == ["a"]
    await database.close()
    with pytest.raises(Unavailable):
        await database.read(keys)


async def test_the_settings_that_durability_rests_on(open_db):
    database = await open_db()

    def pragmas(c):
        names = ("journal_mode", "synchronous", "locking_mode", "foreign_keys", "user_version")
        return [c.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

    assert await database.read(pragmas) == ["wal", 2, "exclusive", 1, 1]


@pytest.mark.parametrize("fails", [False, True], ids=["succeeds", "fails"])
async def test_only_a_write_that_says_so_is_not_waited_for_on_disk(open_db, fails):
    database = await open_db()
    level = lambda c: c.execute("PRAGMA synchronous").fetchone()[0]  # noqa: E731
    seen = []

    def work(c):
        seen.append(level(c))
        if fails:
            raise Stop
        put("a")(c)

    with pytest.raises(Stop) if fails else contextlib.nullcontext():
        await database.write(work, synced=False)
    await database.write(lambda c: seen.append(level(c)))
    assert seen == [1, 2]
    assert await database.read(keys) == ([] if fails else ["a"])


async def test_nobody_else_may_read_any_of_its_files(open_db, tmp_path):
    old = os.umask(0)
    try:
        database = await open_db()
        await database.write(put("a"))
        modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir()}
    finally:
        os.umask(old)
    assert set(modes) == {"state.db", "state.db-wal", "state.db.made", "state.db.reserve"}
    assert set(modes.values()) == {0o600}


async def test_an_exception_rolls_everything_back_and_comes_out(open_db):
    database = await open_db()

    def work(c):
        put("a")(c)
        raise Stop

    with pytest.raises(Stop):
        await database.write(work)
    await database.write(put("b"))
    assert await database.read(keys) == ["b"]


async def test_a_taken_key_and_a_wrong_statement(open_db):
    database = await open_db()
    await database.write(put("a"))
    with pytest.raises(AlreadyExists):
        await database.write(put("a"))
    with pytest.raises(PodwrightError, match="no such table"):
        await database.read(lambda c: c.execute("SELECT * FROM nowhere"))
    assert await database.read(keys) == ["a"]


async def test_reading_cannot_write(open_db):
    database = await open_db()
    with pytest.raises(PodwrightError):
        await database.read(put("a"))
    assert await database.read(keys) == []
    await database.write(put("b"))


async def test_writers_from_many_tasks_come_one_after_another(open_db):
    database = await open_db()
    await asyncio.gather(*(database.write(put(f"{n}")) for n in range(50)))
    assert len(await database.read(keys)) == 50


async def test_a_second_process_is_kept_out(open_db, tmp_path):
    await open_db()
    with pytest.raises(Busy):
        await open_db()


async def test_the_schema_is_brought_up_to_date_and_the_old_one_kept(open_db, tmp_path):
    database = await open_db(FIRST)
    await database.write(put("a"))
    await database.close()
    database = await open_db(FIRST, SECOND)
    row = await database.read(lambda c: c.execute("SELECT id, state FROM pods").fetchone())
    assert row == ("a", 7)
    with sqlite3.connect(tmp_path / "state.db.version-1") as copy:
        assert copy.execute("SELECT id FROM pods").fetchall() == [("a",)]
        assert copy.execute("PRAGMA user_version").fetchone() == (1,)
    copy.close()


async def test_a_migration_that_fails_changes_nothing(open_db):
    database = await open_db(FIRST)
    await database.write(put("a"))
    await database.close()
    broken = "CREATE TABLE half (n); SELECT nonsense FROM nowhere"
    with pytest.raises(PodwrightError):
        await open_db(FIRST, broken)
    database = await open_db(FIRST)
    tables = await database.read(
        lambda c: c.execute("SELECT name FROM sqlite_master WHERE type='table'").fetchall()
    )
    assert tables == [("pods",)]


async def test_a_newer_schema_is_refused_untouched(open_db, tmp_path):
    await (await open_db(FIRST, SECOND)).close()
    before = (tmp_path / "state.db").read_bytes()
    with pytest.raises(FailedPrecondition, match="version 2, this program knows up to 1"):
        await open_db(FIRST)
    assert (tmp_path / "state.db").read_bytes() == before


async def test_somebody_elses_database_is_refused_untouched(open_db, tmp_path):
    with sqlite3.connect(tmp_path / "state.db") as other:
        other.execute("PRAGMA application_id=77")
        other.execute("CREATE TABLE t (n)")
    other.close()
    before = (tmp_path / "state.db").read_bytes()
    with pytest.raises(FailedPrecondition, match="another program"):
        await open_db()
    assert (tmp_path / "state.db").read_bytes() == before


@pytest.fixture
async def written(open_db, tmp_path):
    database = await open_db()

    def fill(c):
        c.executemany(
            "INSERT INTO pods (id, body) VALUES (?, ?)",
            [(f"{n:05}", bytes(500)) for n in range(500)],
        )

    await database.write(fill)
    await database.close()
    return tmp_path / "state.db"


def truncate(path):
    os.truncate(path, 0)


def remove(path):
    path.unlink()


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def short(path):
    os.truncate(path, 50)


def garbage(path):
    path.write_bytes(b"not a database at all" * 500)


def header(path):
    with path.open("r+b") as file:
        file.write(b"\xff" * 16)


def middle_page(path):
    with path.open("r+b") as file:
        file.seek(4096 * 20)
        file.write(b"\xa5" * 4096 * 3)


def schema_page(path):
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xa5" * 2000)


def no_owner(path):
    with path.open("r+b") as file:
        file.seek(68)
        file.write(bytes(4))


@pytest.mark.parametrize(
    "damage",
    [truncate, remove, cut, short, garbage, header, middle_page, schema_page, no_owner],
    ids=lambda f: f.__name__,
)
async def test_damage_is_corrupt_and_can_be_put_aside(written, open_db, damage):
    damage(written)
    damaged = written.read_bytes() if written.exists() else None
    with pytest.raises(Corrupt):
        await open_db()
    aside = quarantine(written, "20260101")
    assert aside.exists() == (damaged is not None)
    assert not written.exists()
    assert not marker_of(written).exists()
    database = await open_db()
    assert await database.read(keys) == []


async def test_a_log_without_its_database_is_corrupt(open_db, tmp_path):
    (tmp_path / "state.db-wal").write_bytes(b"x" * 5000)
    with pytest.raises(Corrupt):
        await open_db()


async def test_an_empty_file_that_never_was_a_database_becomes_one(open_db, tmp_path):
    (tmp_path / "state.db").write_bytes(b"")
    database = await open_db()
    await database.write(put("a"))
    assert marker_of(tmp_path / "state.db").exists()


async def test_a_log_left_by_a_crash_is_replayed(written, open_db, tmp_path):
    database = await open_db()
    await database.write(put("late"))
    # A copy of the files as they are now is what a power failure would have left.
    for name in ("state.db", "state.db-wal", "state.db.made"):
        (tmp_path / f"crashed-{name}").write_bytes((tmp_path / name).read_bytes())
    database = await open_db(path=tmp_path / "crashed-state.db")
    assert "late" in await database.read(keys)


async def test_a_database_without_its_log_is_what_was_checkpointed(written, open_db, tmp_path):
    written.with_name("state.db-wal").unlink(missing_ok=True)
    database = await open_db()
    assert len(await database.read(keys)) == 500


async def test_a_copy_is_whole_and_private(written, open_db, tmp_path):
    database = await open_db()
    target = tmp_path / "backup.db"
    target.write_text("older copy")
    await database.copy_to(target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    with sqlite3.connect(target) as copy:
        assert copy.execute("SELECT count(*) FROM pods").fetchone() == (500,)
    copy.close()
    with pytest.raises(PodwrightError):
        await database.copy_to(tmp_path / "missing/backup.db")
    assert {each.name for each in tmp_path.iterdir()} >= {"state.db", "backup.db"}
    assert not list(tmp_path.glob("*.partial"))


async def test_a_cancelled_caller_does_not_stop_a_transaction(open_db):
    database = await open_db()
    entered, loop = asyncio.Event(), asyncio.get_running_loop()

    def work(c):
        loop.call_soon_threadsafe(entered.set)
        put("a")(c)

    task = asyncio.ensure_future(database.write(work))
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await database.read(keys) == ["a"]


def test_columns_are_checked():
    assert (as_text("a"), as_int(1), as_bytes(b"b")) == ("a", 1, b"b")
    for check, wrong in ((as_text, None), (as_int, "1"), (as_bytes, "b")):
        with pytest.raises(Corrupt):
            check(wrong)


@pytest.mark.parametrize("synced", [False, True])
async def test_what_waits_for_the_record_comes_after_the_commit(open_db, tmp_path, synced):
    database = await open_db()
    seen = []

    def then(write):
        # Another connection could not read it: this one is exclusive. The log has it by now.
        seen.append(b"after all" in (tmp_path / "state.db-wal").read_bytes())

        write(put("and more"))
        seen.append(b"and more" in (tmp_path / "state.db-wal").read_bytes())

    await database.write(put("after all"), synced=synced, then=then)
    assert seen == [True, True]


async def test_what_waits_for_the_record_is_not_done_without_it(open_db):
    database = await open_db()
    await database.write(put("a"))
    seen = []
    with pytest.raises(AlreadyExists):
        await database.write(put("a"), then=lambda _: seen.append(True))
    assert seen == []
