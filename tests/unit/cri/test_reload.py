"""SIGHUP takes what may change, names what may not, and refuses what is wrong."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cri import settings_table as table
from cri.config import load
from cri.handler_reload import HandlerBook
from cri.reload import Reloader, reloadable
from cri.reloadable import appliers
from cri.runtimes import Made
from sandbox.handlers import Handlers
from sandbox.host.errors import FailedPrecondition, InvalidArgument
from sandbox.leavings import Leavings
from tests.fakes.clock import FakeClock


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('[daemon]\nlog_level = "info"\n')
    return path


def make(file, applied, told):
    def apply(config) -> None:
        applied.append(config.get(table.LOG_LEVEL))

    return Reloader(
        load(file),
        lambda: load(file),
        {table.LOG_LEVEL.key: apply},
        clock=FakeClock(),
        tell=told.append,
    )


async def test_a_setting_that_may_change_is_taken(file):
    applied, told = [], []
    reloader = make(file, applied, told)
    assert reloader.report()["outcome"] == ""
    file.write_text('[daemon]\nlog_level = "debug"\n')
    await reloader.reload()
    assert applied == ["debug"]
    assert reloader.values["daemon.log_level"] == "debug"
    assert reloader.report()["outcome"] == "ok"
    assert reloader.report()["changed"] == ["daemon.log_level"]
    assert told[0].startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert told[1:] == ["READY=1"]
    await reloader.reload()
    assert applied == ["debug"]
    assert reloader.report()["changed"] == []


async def test_what_may_not_change_keeps_its_value_and_is_named(file):
    applied = []
    reloader = make(file, applied, [])
    before = reloader.values["daemon.stop_grace_s"]
    file.write_text('[daemon]\nstop_grace_s = 77\n[runtimes.third]\npath = "/bin/third"\n')
    for _ in range(2):  # it goes on being named until the restart
        await reloader.reload()
        assert reloader.report()["outcome"] == "restart needed"
        assert reloader.report()["needsRestart"] == ["daemon.stop_grace_s", "runtimes.third"]
        assert reloader.values["daemon.stop_grace_s"] == before
    assert not applied


@pytest.mark.parametrize("text", ["[daemon\n", "[daemon]\nlog_level = 5\n", "[nonsense]\na = 1\n"])
async def test_a_mistake_refuses_all_of_it(file, text):
    applied, told = [], []
    reloader = make(file, applied, told)
    file.write_text(text)
    await reloader.reload()
    assert not applied
    assert reloader.values["daemon.log_level"] == "info"
    report = reloader.report()
    assert report["outcome"] == "refused"
    assert report["problems"]
    assert told[-1] == "READY=1"
    file.write_text('[daemon]\nlog_level = "warning"\n')
    await reloader.reload()
    assert applied == ["warning"]
    assert not reloader.report()["problems"]


def test_the_settings_say_of_themselves_what_can_be_reloaded():
    assert table.LOG_LEVEL.key in reloadable()
    assert table.STATE_ROOT.key not in reloadable()


class Anything:
    """Whoever is told a new value; nothing is told here."""

    def __getattr__(self, name: str) -> Anything:
        return Anything()


def test_every_setting_that_says_so_is_taken_by_the_daemon():
    """The daemon's table and the settings' own word must not drift apart."""
    taken = appliers(Anything(), Anything(), Anything(), Handlers("crun"))
    assert taken.keys() == reloadable()


class Maker:
    """Makes handlers that run, but for one named `broken`."""

    async def make(self, handler, stack=None):
        if handler.name == "broken":
            raise FailedPrecondition("directory belongs to another user")
        return Made(handler, object(), None, "", False)


async def book_of(config, *, runtime: str = ""):
    """A book with the handlers of `config`, and one pod that has `runtime`."""
    pods = {"a": SimpleNamespace(runtime=runtime)} if runtime else {}
    handlers = Handlers("crun")
    book = HandlerBook(
        handlers,
        Maker(),
        lambda info: object(),
        store=SimpleNamespace(pods=pods, containers={}),
        leavings=Leavings(),
    )
    for handler in config.handlers:
        book.learn(await Maker().make(handler))
    return handlers, book


def write_handlers(file, **paths):
    file.write_text("".join(f"[runtimes.{n}]\n{text}\n" for n, text in paths.items()))


async def reload_handlers(file, book):
    reloader = Reloader(
        load(file), lambda: load(file), {}, clock=FakeClock(), tell=lambda _: None, handlers=book
    )
    await reloader.reload()
    return reloader.report()


async def test_handlers_come_change_and_go(file):
    write_handlers(file, third='path = "/bin/third"', fourth='path = "/bin/fourth"')
    handlers, book = await book_of(load(file), runtime="third")
    old = handlers.runtimes["fourth"]
    write_handlers(file, fourth='path = "/bin/new"', fifth='path = "/bin/fifth"')
    report = await reload_handlers(file, book)
    assert report["changed"] == ["runtimes.fourth", "runtimes.fifth", "runtimes.third"]
    assert report["outcome"] == "ok"
    assert handlers.wanted("fifth")[0] == "fifth"
    assert handlers.wanted("fourth")[1] is not old
    with pytest.raises(InvalidArgument, match="not configured"):
        handlers.wanted("third")
    assert "third" in handlers.runtimes, "those that are there are removed with it"
    assert (await reload_handlers(file, book))["changed"] == []
    write_handlers(file, third='path = "/bin/third"')
    await reload_handlers(file, book)
    assert handlers.wanted("third")[0] == "third"


@pytest.mark.parametrize(("used", "outcome"), [("third", "restart needed"), ("", "ok")])
async def test_another_root_waits_while_there_are_pods_of_it(file, used, outcome):
    write_handlers(file, third='path = "/bin/third"\nroot = "/run/one"')
    handlers, book = await book_of(load(file), runtime=used)
    before = handlers.runtimes["third"]
    write_handlers(file, third='path = "/bin/third"\nroot = "/run/two"')
    report = await reload_handlers(file, book)
    assert report["outcome"] == outcome
    assert (handlers.runtimes["third"] is before) == bool(used)


async def test_a_handler_that_cannot_be_made_refuses_all_of_it(file):
    handlers, book = await book_of(load(file))
    applied: list[str] = []
    file.write_text('[daemon]\nlog_level = "debug"\n[runtimes.broken]\npath = "/bin/b"\n')
    reloader = Reloader(
        load(),
        lambda: load(file),
        {table.LOG_LEVEL.key: lambda new: applied.append(new.get(table.LOG_LEVEL))},
        clock=FakeClock(),
        tell=lambda _: None,
        handlers=book,
    )
    await reloader.reload()
    assert reloader.report()["outcome"] == "refused"
    assert not applied
    assert "broken" not in handlers.runtimes
