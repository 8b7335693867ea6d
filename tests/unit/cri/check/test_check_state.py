"""What `podwright check` says of the stored state."""

from __future__ import annotations

import sqlite3

from cri.check.finding import Level
from cri.check.state import state
from sandbox.paths import Paths
from sandbox.store import StateStore


async def test_without_a_state_there_is_nothing_to_say(tmp_path):
    found = state(Paths(run_root=tmp_path / "run", state_root=tmp_path / "state"))
    assert [finding.level for finding in found] == [Level.OK, Level.OK]


async def test_quarantined_records_are_named_while_the_daemon_holds_the_database(tmp_path):
    paths = Paths(run_root=tmp_path, state_root=tmp_path)
    store = await StateStore.open(paths.state_file)
    assert [finding.level for finding in state(paths)] == [Level.OK, Level.OK]
    await store.close()
    database = sqlite3.connect(paths.state_file)
    database.execute("INSERT INTO pods VALUES (?, 'name', ?)", ("ab" * 32, b"no JSON"))
    database.commit()
    database.close()
    store = await StateStore.open(paths.state_file)
    records, _ = state(paths)
    assert records.level is Level.WARNING
    assert "1 could not be read" in records.detail
    assert "pod abababababab" in records.detail
    assert str(paths.state_file) in records.remedy
    await store.close()


async def test_what_was_put_aside_is_named(tmp_path):
    paths = Paths(run_root=tmp_path, state_root=tmp_path)
    (paths.records / "pods").mkdir(parents=True)
    (paths.records / "pods" / "x.json.unreadable").touch()
    for name in ("state.db.corrupt-1", "state.db.corrupt-1-wal"):
        (tmp_path / name).touch()
    _, aside = state(paths)
    assert aside.level is Level.WARNING
    assert "state.db.corrupt-1," in aside.detail
    assert "corrupt-1-wal" not in aside.detail
    assert "x.json.unreadable" in aside.detail


async def test_a_state_that_is_no_database_is_a_warning(tmp_path):
    paths = Paths(run_root=tmp_path, state_root=tmp_path)
    paths.state_file.write_text("this is no database" * 100)
    records, _ = state(paths)
    assert records.level is Level.WARNING
    assert "cannot be looked at" in records.detail
