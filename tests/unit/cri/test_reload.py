"""SIGHUP takes what may change, names what may not, and refuses what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from cri import daemon, settings_images
from cri import settings_table as table
from cri.config import load
from cri.reload import Reloader, reloadable
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


def test_every_setting_that_says_so_is_taken_by_the_daemon():
    """The daemon's table and the settings' own word must not drift apart."""
    source = Path(daemon.__file__).read_text()
    for setting in table.TABLE:
        name = next(
            (n for m in (table, settings_images) for n, v in vars(m).items() if v is setting), ""
        )
        assert setting.reloadable == (bool(name) and f".{name}.key:" in source), setting.key
