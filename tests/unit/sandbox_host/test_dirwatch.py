import asyncio
import errno

import pytest

from sandbox.host import syscalls as sc
from sandbox.host.errors import InvalidArgument, NotFound
from sandbox.host.files import DirWatch, write_atomic
from tests.fakes.clock import FakeClock
from tests.fakes.syscalls import FakeSyscalls


def exhausted(call, number):
    return FakeSyscalls(fail={call: [number]})


@pytest.fixture(params=["inotify", "no instances", "no watches"])
def watch_of(request):
    opened = []

    def open_watch(path):
        match request.param:
            case "inotify":
                watch = DirWatch.open(path)
            case "no instances":
                calls = exhausted("inotify_init1", errno.EMFILE)
                watch = DirWatch.open(path, clock=FakeClock(), syscalls=calls)
            case _:
                calls = exhausted("inotify_add_watch", errno.ENOSPC)
                watch = DirWatch.open(path, clock=FakeClock(), syscalls=calls)
        assert watch.polling == (request.param != "inotify")
        opened.append(watch)
        return watch

    yield open_watch
    for watch in opened:
        watch.close()


async def seen(watch, name, mask):
    async for found, at in watch:
        if at == name and found & mask:
            return
    raise AssertionError("the watch ended")


async def test_files_come_change_and_go(tmp_path, watch_of):
    watch = watch_of(tmp_path)
    (tmp_path / "plain").write_text("x")
    await seen(watch, "plain", sc.IN_CLOSE_WRITE)
    write_atomic(tmp_path / "replaced", b"x")
    await seen(watch, "replaced", sc.IN_MOVED_TO | sc.IN_CLOSE_WRITE)
    (tmp_path / "plain").write_text("longer")
    await seen(watch, "plain", sc.IN_CLOSE_WRITE)
    (tmp_path / "plain").unlink()
    await seen(watch, "plain", sc.IN_DELETE)


async def test_the_end_of_the_directory_ends_the_iteration(tmp_path, watch_of):
    (tmp_path / "d").mkdir()
    watch = watch_of(tmp_path / "d")
    (tmp_path / "d").rmdir()
    masks = [mask async for mask, _ in watch]
    assert any(mask & sc.IN_DELETE_SELF for mask in masks)
    assert not watch.polling


async def test_closing_ends_the_iteration(tmp_path):
    watch = DirWatch.open(tmp_path)

    async def listen():
        return [event async for event in watch]

    async with asyncio.TaskGroup() as group:
        task = group.create_task(listen())
        await asyncio.sleep(0)
        watch.close()
        watch.close()
    assert task.result() == []


async def test_what_was_there_before_is_no_news(tmp_path):
    (tmp_path / "old").write_text("x")
    watch = DirWatch.open(
        tmp_path, clock=FakeClock(), syscalls=exhausted("inotify_init1", errno.EMFILE)
    )
    (tmp_path / "new").write_text("x")
    assert (await anext(watch))[1] == "new"


async def test_what_cannot_be_watched(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotFound):
        DirWatch.open(tmp_path / "missing")
    with pytest.raises(InvalidArgument):
        DirWatch.open(tmp_path / "file")


async def test_a_flood_says_that_events_were_lost(tmp_path, monkeypatch):
    import os
    import struct

    watch = DirWatch.open(tmp_path)
    event = struct.pack("iIII", -1, sc.IN_Q_OVERFLOW, 0, 0)
    monkeypatch.setattr(os, "read", lambda fd, size: event)
    watch._readable()
    assert await anext(watch) == (sc.IN_Q_OVERFLOW, "")
    monkeypatch.undo()
    watch.close()


async def test_polling_outlives_a_lack_of_descriptors(tmp_path, monkeypatch):
    import os

    watch = DirWatch.open(
        tmp_path, clock=FakeClock(), syscalls=exhausted("inotify_init1", errno.EMFILE)
    )
    (tmp_path / "new").write_text("x")
    real, failures = os.scandir, [OSError(errno.EMFILE, "none left")] * 2

    def scandir(path):
        if failures:
            raise failures.pop()
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert (await anext(watch))[1] == "new"
    assert not failures
    watch.close()
