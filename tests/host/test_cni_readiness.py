"""The directory of configurations, followed while it is made, filled, replaced and removed."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cni.network import PodNetwork
from cni.settings import CniSettings
from sandbox.host.clock import SystemClock
from sandbox.host.processes import HostProcessRunner
from tests.fakes.cni_plugins import FaultyPlugin
from tests.kit.faults import PATIENCE_S

pytestmark = pytest.mark.root


class Bench:
    def __init__(self, root: Path) -> None:
        self.conf_dir = root / "etc" / "cni" / "net.d"
        self.bin_dir = root / "bin"
        self.bin_dir.mkdir()
        self.plugin = FaultyPlugin(self.bin_dir, "one")
        self.network = PodNetwork(
            CniSettings(
                conf_dir=self.conf_dir,
                bin_dirs=(self.bin_dir,),
                cache_dir=root / "cache",
                poll_s=0.2,
                poll_unready_s=0.05,
                status_grace_s=0.0,
            ),
            HostProcessRunner(),
            SystemClock(),
            is_namespace=os.path.ismount,
        )

    def write(self, name: str, file: str = "10-net.conflist", kind: str = "one") -> None:
        self.conf_dir.mkdir(parents=True, exist_ok=True)
        text = {"cniVersion": "1.1.0", "name": name, "plugins": [{"type": kind}]}
        (self.conf_dir / file).write_text(json.dumps(text))

    @asynccontextmanager
    async def followed(self):
        async with asyncio.TaskGroup() as group:
            await self.network.start(group)
            try:
                yield
            finally:
                await self.network.close()

    async def until(self, ok: bool, text: str = "", network: str | None = None) -> None:
        """Until readiness is that."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                now, _, message = self.network.ready()
                named = self.network.describe().get("network")
                if now is ok and text in message and network in (None, named):
                    return
                await asyncio.sleep(0.01)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


@pytest.mark.cell("CN11")
async def test_everything_that_can_happen_to_the_directory(bench):
    async with bench.followed():
        await bench.until(False, "no network configuration")

        bench.conf_dir.mkdir(parents=True)
        bench.write("first")
        await bench.until(True, network="first")

        bench.write("before", file="05-before.conflist")
        await bench.until(True, network="before")

        (bench.conf_dir / "05-before.conflist").unlink()
        await bench.until(True, network="first")

        bench.write("second", file=".new")
        (bench.conf_dir / ".new").rename(bench.conf_dir / "10-net.conflist")
        await bench.until(True, network="second")

        (bench.conf_dir / "10-net.conflist").write_text("{")
        await bench.until(False, "10-net.conflist")

        shutil.rmtree(bench.conf_dir)
        await bench.until(False, "no network configuration")

        bench.write("third")
        await bench.until(True, network="third")

        bench.conf_dir.rename(bench.conf_dir.with_name("away"))
        await bench.until(False)
        bench.conf_dir.with_name("away").rename(bench.conf_dir)
        await bench.until(True, network="third")


async def test_a_change_is_seen_without_waiting_for_the_poll(bench):
    bench.network._readiness._settings = CniSettings(
        conf_dir=bench.conf_dir, bin_dirs=(bench.bin_dir,), poll_s=3600, poll_unready_s=3600
    )
    bench.conf_dir.mkdir(parents=True)
    async with bench.followed():
        await bench.until(False, "no network configuration")
        bench.write("net")
        await bench.until(True, network="net")


@pytest.mark.cell("CN15")
async def test_plugins_that_come_later_and_plugins_that_are_unwell(bench):
    away = bench.plugin.path.rename(bench.bin_dir.with_name("one"))
    bench.write("net")
    async with bench.followed():
        await bench.until(False, "no executable file one")
        away.rename(bench.plugin.path)
        await bench.until(True)

        rule = {"command": "STATUS", "do": "error", "code": 50, "msg": "no controller"}
        bench.plugin.control(rules=[rule])
        await bench.until(False, "no controller")
        bench.plugin.control()
        await bench.until(True)


async def test_a_status_that_hangs_does_not_hold_anybody(bench):
    bench.plugin.control(rules=[{"command": "STATUS", "do": "hang"}])
    bench.write("net")
    async with bench.followed():
        while not bench.plugin.calls:  # noqa: ASYNC110 - another process cannot set an event
            await asyncio.sleep(0.01)
        assert not bench.network.ready()[0]
        assert bench.network.current_config_json()
    assert bench.plugin.calls


async def test_many_looks_leave_no_descriptors(bench):
    before = descriptors()
    for number in range(3):
        async with bench.followed():
            bench.write(f"net{number}")
            await bench.until(True, network=f"net{number}")
        shutil.rmtree(bench.conf_dir)
        await bench.network.refresh()
    assert descriptors() <= before
