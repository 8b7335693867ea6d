"""The state store: names are unique, what is written is there after a restart, notes survive."""

from __future__ import annotations

import asyncio
import shutil
import threading

import msgspec
import pytest

from sandbox import records, rows
from sandbox.host.database import Database
from sandbox.host.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from sandbox.model import Container, ContainerConfig, PodConfig, PodMetadata, PodSandbox
from sandbox.records import Records
from sandbox.statefile import APPLICATION_ID, backup_of, migrations, open_state
from sandbox.states import ContainerState, PodState
from sandbox.store import StateStore


def pod(pod_id: str, name: str = "n", state: PodState = PodState.READY) -> PodSandbox:
    metadata = PodMetadata(name=name, uid="u", namespace="ns")
    config = PodConfig(metadata=metadata, annotations={"a": "1", "": "ü\n"})
    return PodSandbox(id=pod_id, config=config, state=state, created_at_ns=1)


def container(
    cid: str,
    pod_id: str = "a" * 64,
    name: str = "c",
    state: ContainerState = ContainerState.CREATED,
) -> Container:
    return Container(
        id=cid, pod_id=pod_id, config=ContainerConfig(name=name), state=state, created_at_ns=1
    )


@pytest.fixture
async def store(tmp_path):
    opened = await StateStore.open(tmp_path / "state.db")
    yield opened
    await opened.close()


@pytest.mark.parametrize("value", [pod("a" * 64), container("b" * 64)], ids=["pod", "container"])
async def test_what_was_called_off_while_it_was_written_was_never_there(tmp_path, value):
    """Its name is free at once, and no later daemon finds it."""
    path = tmp_path / "state.db"
    copies = Records(tmp_path)
    copies.open()
    begun, go_on = threading.Event(), threading.Event()

    class Slow(Records):
        def write(self, value, document):
            begun.set()
            go_on.wait()
            copies.write(value, document)

    store = await StateStore.open(path, records=Slow(tmp_path))
    add = store.add_pod if isinstance(value, PodSandbox) else store.add_container
    adding = asyncio.ensure_future(add(value))
    await asyncio.to_thread(begun.wait)
    adding.cancel()
    await asyncio.sleep(0)
    with pytest.raises(AlreadyExists):
        await add(msgspec.structs.replace(value, id="c" * 64))
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await adding
    assert (store.pods, store.containers) == ({}, {})
    assert copies.load(type(value)) == {}
    begun.clear()
    await add(msgspec.structs.replace(value, id="c" * 64))
    await store.close()
    again = await StateStore.open(path, records=copies)
    assert [*again.pods, *again.containers] == ["c" * 64]
    await again.close()


async def test_what_was_written_is_there_after_a_restart(tmp_path):
    path = tmp_path / "state.db"
    first = await StateStore.open(path)
    await first.add_pod(pod("a" * 64))
    await first.add_container(container("b" * 64))
    ready = msgspec.structs.replace(first.pods["a" * 64], ips=("10.0.0.1",))
    await first.save(ready)
    await first.close()
    second = await StateStore.open(path)
    assert second.pods == {"a" * 64: ready}
    assert second.containers_of("a" * 64) == [container("b" * 64)]
    with pytest.raises(AlreadyExists):
        await second.add_pod(pod("c" * 64))
    await second.close()


async def test_a_name_belongs_to_one_object_until_that_is_deleted(store):
    await store.add_pod(pod("a" * 64))
    with pytest.raises(AlreadyExists) as caught:
        await store.add_pod(pod("b" * 64))
    assert caught.value.fields["pod"] == "a" * 64
    await store.delete_pod("a" * 64)
    await store.add_pod(pod("b" * 64))
    assert store.pod_named("ns/n/u/0").id == "b" * 64


async def test_prefixes_find_one_object_or_say_why_not(store):
    await store.add_pod(pod("aa1" + "0" * 61, "one"))
    await store.add_pod(pod("aa2" + "0" * 61, "two"))
    assert store.find_pod("aa1").config.metadata.name == "one"
    with pytest.raises(InvalidArgument, match="fits 2"):
        store.find_pod("aa")
    with pytest.raises(NotFound):
        store.find_pod("bb")
    with pytest.raises(InvalidArgument, match="empty"):
        store.find_pod("")


async def test_what_is_being_created_cannot_be_found_by_clients(store):
    await store.add_pod(pod("a" * 64, state=PodState.CREATING))
    await store.add_container(container("b" * 64, state=ContainerState.CREATING))
    with pytest.raises(NotFound):
        store.find_pod("a" * 64)
    with pytest.raises(NotFound):
        store.find_container("b" * 64)


async def test_a_removed_object_is_not_brought_back_by_a_late_note(store):
    await store.add_container(container("b" * 64))
    late = store.containers["b" * 64]
    await store.delete_container("b" * 64)
    await store.note(msgspec.structs.replace(late, state=ContainerState.EXITED))
    await store.save(late)
    assert not store.containers


async def refuse(work, *, cleanup=False, synced=True, then=None):
    raise ResourceExhausted("database is full")


async def test_a_note_is_true_in_memory_even_when_the_disk_refuses_it(store, monkeypatch):
    await store.add_container(container("b" * 64))
    exited = msgspec.structs.replace(store.containers["b" * 64], state=ContainerState.EXITED)
    real_write = store._database.write
    monkeypatch.setattr(store._database, "write", refuse)
    await store.note(exited)
    assert store.containers["b" * 64] is exited
    monkeypatch.setattr(store._database, "write", real_write)
    await store.flush()
    assert (await on_disk(store)).state is ContainerState.EXITED


async def test_a_note_that_need_not_be_synced_does_not_take_another_along(store, monkeypatch):
    for cid in ("b" * 64, "c" * 64):
        await store.add_container(container(cid, name=cid))
    real_write, asked = store._database.write, []

    async def write(work, *, cleanup=False, synced=True, then=None):
        asked.append(synced)
        return await real_write(work, cleanup=cleanup, synced=synced, then=then)

    killed = msgspec.structs.replace(store.containers["c" * 64], kill_sent=True)
    monkeypatch.setattr(store._database, "write", refuse)
    await store.note(
        msgspec.structs.replace(store.containers["b" * 64], state=ContainerState.EXITED)
    )
    monkeypatch.setattr(store._database, "write", write)
    await store.note(killed, synced=False)  # writes the other one, too
    await store.note(killed, synced=False)
    await store.note(killed)
    assert asked == [True, False, True]


async def test_a_note_is_not_written_after_a_newer_value(store, monkeypatch):
    """Although somebody flushes while the newer one is on its way to the disk."""
    await store.add_container(container("b" * 64))
    exited = msgspec.structs.replace(store.containers["b" * 64], state=ContainerState.EXITED)
    real_write = store._database.write
    monkeypatch.setattr(store._database, "write", refuse)
    await store.note(exited)
    removing = msgspec.structs.replace(exited, state=ContainerState.REMOVING)
    with pytest.raises(ResourceExhausted):
        await store.save(removing)
    assert store.containers["b" * 64] is exited  # and still to be written
    monkeypatch.setattr(store._database, "write", real_write)
    await asyncio.gather(store.save(removing), store.flush())
    rows = await store._database.read(
        lambda db: db.execute("SELECT document FROM containers").fetchall()
    )
    assert msgspec.json.decode(rows[0][0], type=Container).state is ContainerState.REMOVING
    assert store.containers["b" * 64] is removing


async def test_a_record_that_cannot_be_read_is_put_aside_and_the_rest_is_kept(tmp_path):
    path = tmp_path / "state.db"
    first = await StateStore.open(path)
    await first.add_pod(pod("a" * 64, "good"))
    await first.add_pod(pod("b" * 64, "bad"))
    await first._database.write(
        lambda db: db.execute("UPDATE pods SET document = ? WHERE id = ?", (b"{", "b" * 64))
    )
    await first.close()
    second = await StateStore.open(path)
    assert list(second.pods) == ["a" * 64]
    await second.add_pod(pod("c" * 64, "bad"))
    rows = await second._database.read(
        lambda db: db.execute("SELECT origin, id FROM quarantine").fetchall()
    )
    assert rows == [("pods", "b" * 64)]
    await second.close()


async def test_a_file_of_a_newer_daemon_is_refused_untouched(tmp_path):
    path = tmp_path / "state.db"
    newer = await Database.open(
        path, migrations=[*migrations(), "CREATE TABLE later (x)"], application_id=APPLICATION_ID
    )
    await newer.close()
    before = path.read_bytes()
    with pytest.raises(FailedPrecondition):
        await StateStore.open(path)
    assert path.read_bytes() == before


async def reopened(path, records_root):
    return await StateStore.open(path, Records(records_root))


def damage(path, how):
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "garbage": b"no database" * 100}[how])
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


@pytest.mark.parametrize("how", ["missing", "empty", "garbage"])
async def test_a_lost_database_is_made_again_from_second_copies(tmp_path, how):
    path, root = tmp_path / "state.db", tmp_path / "run" / "records"
    first = await reopened(path, root)
    await first.add_pod(pod("a" * 64))
    await first.back_up(always=True)
    await first.add_container(container("b" * 64))
    await first.add_pod(pod("d" * 64, name="gone"))
    await first.back_up(always=True)
    await first.delete_pod("d" * 64)
    changed = msgspec.structs.replace(first.pods["a" * 64], ips=("10.0.0.1",))
    await first.note(changed)
    await first.close()
    damage(path, how)
    second = await reopened(path, root)
    assert second.pods == {"a" * 64: changed}
    assert second.containers == {"b" * 64: container("b" * 64)}
    report = second.report()
    assert report["lost"]
    assert report["begunFrom"] == str(backup_of(path, 1))
    await second.close()
    third = await reopened(path, root)
    assert third.pods == {"a" * 64: changed}
    assert not third.report()["lost"]
    await third.close()
    assert list(tmp_path.glob("state.db.corrupt-*")) or how == "missing"


@pytest.mark.parametrize("moment", ["put aside", "begun from the backup"])
async def test_a_start_that_dies_while_it_makes_the_state_again_is_gone_on_with(tmp_path, moment):
    """What it leaves looks like a good database, with the older truth of a backup, or like none."""
    path, root = tmp_path / "state.db", tmp_path / "run" / "records"
    first = await reopened(path, root)
    await first.add_pod(pod("a" * 64))
    await first.add_pod(pod("d" * 64, name="gone"))
    await first.back_up(always=True)
    await first.delete_pod("d" * 64)
    changed = msgspec.structs.replace(first.pods["a" * 64], ips=("10.0.0.1",))
    await first.note(changed)
    await first.close()
    damage(path, "garbage")
    opened = await open_state(path)
    await opened.database.close()
    if moment == "put aside":
        damage(path, "missing")
    second = await reopened(path, root)
    assert second.pods == {"a" * 64: changed}
    assert second.report()["lost"]
    await second.close()
    third = await reopened(path, root)
    assert third.pods == {"a" * 64: changed}
    assert not third.report()["lost"]
    await third.close()


async def test_after_a_boot_the_last_good_backup_counts(tmp_path):
    path, root = tmp_path / "state.db", tmp_path / "run" / "records"
    first = await reopened(path, root)
    await first.add_pod(pod("a" * 64))
    await first.back_up(always=True)
    await first.back_up(always=True)
    await first.close()
    backup_of(path, 1).write_bytes(b"torn" * 1000)
    damage(path, "garbage")
    shutil.rmtree(root)
    second = await reopened(path, root)
    assert list(second.pods) == ["a" * 64]
    assert second.report()["begunFrom"] == str(backup_of(path, 2))
    await second.close()


async def test_an_unreadable_row_is_made_again_from_its_copy(tmp_path):
    path, root = tmp_path / "state.db", tmp_path / "run" / "records"
    first = await reopened(path, root)
    await first.add_pod(pod("a" * 64))
    await first.close()
    database = await Database.open(path, migrations=migrations(), application_id=APPLICATION_ID)
    await database.write(lambda db: db.execute("UPDATE pods SET document = '{'"))
    await database.close()
    second = await reopened(path, root)
    assert second.pods == {"a" * 64: pod("a" * 64)}
    assert second.report()["quarantined"] == 0
    await second.close()


async def test_a_copy_that_cannot_be_read_is_put_aside(tmp_path):
    path, root = tmp_path / "state.db", tmp_path / "run" / "records"
    first = await reopened(path, root)
    await first.add_pod(pod("a" * 64))
    await first.close()
    copy = root / "pods" / f"{'a' * 64}.json"
    copy.write_text("{")
    second = await reopened(path, root)
    assert second.pods == {"a" * 64: pod("a" * 64)}
    assert copy.with_name(f"{copy.name}.unreadable").read_text() == "{"
    assert msgspec.json.decode(copy.read_bytes(), type=PodSandbox) == pod("a" * 64)
    await second.delete_pod("a" * 64)
    assert not copy.exists()
    await second.close()


async def test_backups_are_made_only_when_something_has_changed(tmp_path):
    path = tmp_path / "state.db"
    store = await reopened(path, tmp_path / "records")
    await store.back_up()
    assert not backup_of(path, 1).exists()
    await store.add_pod(pod("a" * 64))
    await store.back_up()
    made = backup_of(path, 1).stat().st_ino
    await store.back_up()
    assert backup_of(path, 1).stat().st_ino == made
    await store.delete_pod("a" * 64)
    await store.back_up()
    assert backup_of(path, 2).stat().st_ino == made
    assert store.report()["backupSecondsAgo"] == 0
    await store.close()


async def test_a_note_that_is_written_late_does_not_bring_the_copy_of_a_removed_object_back(
    tmp_path,
):
    """The flush has begun when the removal is on its way to the disk: rows and copies both go."""
    path, root = tmp_path / "state.db", tmp_path / "run" / "records"
    store = await reopened(path, root)
    await store.add_pod(pod("a" * 64))
    store._unwritten["a" * 64] = pod("a" * 64, state=PodState.NOT_READY)
    await asyncio.gather(store.delete_pod("a" * 64), store.flush())
    await store.close()
    assert not list((root / "pods").iterdir())
    again = await reopened(path, root)
    assert not again.pods
    await again.close()


async def test_a_copy_that_could_not_be_written_does_not_win_and_is_written_later(
    tmp_path, monkeypatch
):
    path, root = tmp_path / "state.db", tmp_path / "run" / "records"
    store = await reopened(path, root)
    await store.add_pod(pod("a" * 64))
    real = records.write_atomic

    def full(*_: object, **__: object) -> None:
        raise ResourceExhausted("no space left")

    monkeypatch.setattr(records, "write_atomic", full)
    changed = msgspec.structs.replace(store.pods["a" * 64], ips=("10.0.0.1",))
    await store.save(changed)
    await store.back_up(always=True)
    await store.close()
    assert [p.name for p in (root / "pods").iterdir()] == ["a" * 64 + ".older"]
    damage(path, "garbage")
    second = await reopened(path, root)
    assert second.pods == {"a" * 64: changed}, "the backup knows more than the copy"
    monkeypatch.setattr(records, "write_atomic", real)
    await second.flush(copies=True)
    assert [p.name for p in (root / "pods").iterdir()] == ["a" * 64 + ".json"]
    await second.delete_pod("a" * 64)
    assert not list((root / "pods").iterdir())
    await second.close()


async def test_what_is_noted_while_an_older_value_is_written_stays(store):
    """A container that ends before the daemon is back from starting it has ended."""
    await store.add_container(container("b" * 64))
    begun = msgspec.structs.replace(store.containers["b" * 64], start_begun_ns=7)
    reached, go_on = threading.Event(), threading.Event()

    def start():
        reached.set()
        go_on.wait()

    saving = asyncio.create_task(store.save(begun, then=start))
    try:
        await asyncio.to_thread(reached.wait)
        assert store.containers["b" * 64] is begun, "what is begun may end now"
        ended = msgspec.structs.replace(begun, state=ContainerState.EXITED)
        noting = asyncio.create_task(store.note(ended))
        await asyncio.sleep(0)
    finally:
        go_on.set()
    await saving
    assert store.containers["b" * 64] is ended
    await noting
    assert store.containers["b" * 64] is ended


async def test_what_was_noted_stays_where_its_removal_begins_meanwhile(store):
    """The removal's record takes the note's place on disk, not the older value's in memory."""
    await store.add_container(container("b" * 64))
    created = store.containers["b" * 64]
    reached, go_on = threading.Event(), threading.Event()

    def start():
        reached.set()
        go_on.wait()

    states = []
    begun = msgspec.structs.replace(created, start_begun_ns=7)
    starting = asyncio.create_task(store.save(begun, then=start))
    starting.add_done_callback(lambda _: states.append(store.containers["b" * 64].state))
    await asyncio.to_thread(reached.wait)
    ended = msgspec.structs.replace(begun, state=ContainerState.EXITED)
    noting = asyncio.create_task(store.note(ended))
    await asyncio.sleep(0)
    removing = asyncio.create_task(
        store.save(msgspec.structs.replace(ended, state=ContainerState.REMOVING))
    )
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(starting, noting, removing)
    assert states == [ContainerState.EXITED]
    assert store.containers["b" * 64].state is ContainerState.REMOVING


async def test_a_pod_that_ends_while_its_limits_are_written_has_ended(store):
    await store.add_pod(pod("a" * 64))
    resized = msgspec.structs.replace(store.pods["a" * 64], network_attached=True)
    saving = asyncio.create_task(store.save(resized))
    await asyncio.sleep(0)
    stopped = msgspec.structs.replace(store.pods["a" * 64], state=PodState.NOT_READY)
    await asyncio.gather(store.note(stopped), saving)
    assert store.pods["a" * 64] is stopped


async def test_what_was_to_be_begun_and_could_not_be_recorded_is_as_it_was(store, monkeypatch):
    await store.add_container(container("b" * 64))
    created = store.containers["b" * 64]

    async def refuse(*_args, **_options):
        raise ResourceExhausted("database is full")

    monkeypatch.setattr(store._database, "write", refuse)
    with pytest.raises(ResourceExhausted):
        await store.save(msgspec.structs.replace(created, start_begun_ns=7), then=print)
    monkeypatch.undo()
    assert store.containers["b" * 64] is created


async def on_disk(store) -> Container:
    rows = await store._database.read(
        lambda db: db.execute("SELECT document FROM containers").fetchall()
    )
    return msgspec.json.decode(rows[0][0], type=Container)


async def test_what_was_begun_is_recorded_before_the_way_back(store):
    await store.add_container(container("b" * 64))
    begun = msgspec.structs.replace(store.containers["b" * 64], start_begun_ns=7)
    running = msgspec.structs.replace(begun, state=ContainerState.RUNNING, started_at_ns=8)
    await store.save(begun, synced=False, then=lambda: running)
    assert store.containers["b" * 64] is running
    assert await on_disk(store) == running


async def test_what_ended_while_its_beginning_was_recorded_has_ended(store):
    await store.add_container(container("b" * 64))
    begun = msgspec.structs.replace(store.containers["b" * 64], start_begun_ns=7)
    reached, go_on = threading.Event(), threading.Event()

    def start():
        reached.set()
        go_on.wait()
        return msgspec.structs.replace(begun, state=ContainerState.RUNNING)

    saving = asyncio.create_task(store.save(begun, then=start))
    await asyncio.to_thread(reached.wait)
    ended = msgspec.structs.replace(begun, state=ContainerState.EXITED)
    noting = asyncio.create_task(store.note(ended))
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(saving, noting)
    assert store.containers["b" * 64] is ended
    assert await on_disk(store) == ended


async def test_what_was_begun_is_true_even_where_the_disk_refuses_it(store, monkeypatch):
    """The record of the intent fitted, the next does not; a later flush writes it."""
    await store.add_container(container("b" * 64))
    begun = msgspec.structs.replace(store.containers["b" * 64], start_begun_ns=7)
    running = msgspec.structs.replace(begun, state=ContainerState.RUNNING)
    real_update = rows.update

    def update(db, value, document):
        if value is running:
            raise ResourceExhausted("database is full")
        real_update(db, value, document)

    monkeypatch.setattr(rows, "update", update)
    await store.save(begun, then=lambda: running)
    assert store.containers["b" * 64] is running
    assert await on_disk(store) == begun
    monkeypatch.undo()
    await store.flush()
    assert await on_disk(store) == running


async def test_a_value_from_before_a_start_does_not_take_it_back(store):
    await store.add_container(container("b" * 64))
    begun = msgspec.structs.replace(store.containers["b" * 64], start_begun_ns=7)
    running = msgspec.structs.replace(begun, state=ContainerState.RUNNING)
    reached, go_on = threading.Event(), threading.Event()

    def start():
        reached.set()
        go_on.wait()
        return running

    saving = asyncio.create_task(store.save(begun, then=start))
    await asyncio.to_thread(reached.wait)
    older = asyncio.create_task(store.save(msgspec.structs.replace(begun, kill_sent=True)))
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(saving, older)
    assert store.containers["b" * 64] is running
