"""Plugins that misbehave in every way a program can, run for real.

The recording program (`tests/fakes/cni_plugin`) stands for the plugin; where the real work matters
it lets the real one do it first. Time limits are short, so that a hanging plugin costs little.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import pytest

from cni import leftovers
from cni.errors import (
    PluginExhausted,
    PluginFailed,
    PluginMissing,
    PluginTimedOut,
    PluginUnavailable,
)
from cni.network import Attachment, PodNetwork
from cni.settings import CniSettings
from sandbox.host.clock import SystemClock
from sandbox.host.errors import NotFound
from sandbox.host.processes import HostProcessRunner
from tests.fakes.cni_plugins import FaultyPlugin
from tests.host.cni_node import Node
from tests.kit.faults import PATIENCE_S

pytestmark = pytest.mark.root

POD = Attachment(
    pod_id="f" * 64,
    netns_path="",
    pod_name="web",
    pod_namespace="default",
    pod_uid="4f0e",
)


class Bench:
    """One network of two recording plugins, `first` and `second`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("net.d", "bin"):
            (root / name).mkdir()
        self.first = FaultyPlugin(root / "bin", "first")
        self.second = FaultyPlugin(root / "bin", "second")
        self.configure()

    def configure(self, *types: str, version: str = "1.1.0") -> None:
        plugins = [{"type": name} for name in types or ("first", "second")]
        text = {"cniVersion": version, "name": "bench", "plugins": plugins}
        (self.root / "net.d" / "10-bench.conflist").write_text(json.dumps(text))

    def network(self, **settings) -> PodNetwork:
        return PodNetwork(
            CniSettings(
                conf_dir=self.root / "net.d",
                bin_dirs=(self.root / "bin",),
                cache_dir=self.root / "cache",
                **settings,
            ),
            HostProcessRunner(),
            SystemClock(),
            is_namespace=os.path.ismount,
        )


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def faulty_bridge(node: Node, rule: dict) -> FaultyPlugin:
    """Have the real bridge plugin do its work under a rule."""
    real = node.bin_dir / "real-bridge"
    (node.bin_dir / "bridge").rename(real)
    return FaultyPlugin(node.bin_dir, "bridge", real=str(real), rules=[rule])


async def until_called(plugin: FaultyPlugin, times: int = 1) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while len(plugin.calls) < times:  # noqa: ASYNC110 - another process cannot set an event
            await asyncio.sleep(0.01)


async def add_fails(network: PodNetwork, kind: type[PluginFailed] = PluginFailed) -> PluginFailed:
    with pytest.raises(kind) as caught:
        await network.add(POD)
    assert not isinstance(caught.value, NotFound)
    return caught.value


async def test_the_protocol_as_a_plugin_sees_it(bench):
    network = bench.network()
    attached = await network.add(POD)
    await network.delete(POD, config_json="", result_json="")

    add, delete = bench.second.calls
    assert add["env"]["CNI_ARGS"] == (
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;"
        f"K8S_POD_INFRA_CONTAINER_ID={'f' * 64};K8S_POD_UID=4f0e"
    )
    assert add["env"]["CNI_IFNAME"] == "eth0"
    assert add["env"]["CNI_PATH"] == str(bench.root / "bin")
    expected = {"PATH", "LANG", "PODWRIGHT_CNI_OWNER", "LC_CTYPE"}
    assert {k for k in add["env"] if not k.startswith("CNI_")} <= expected
    assert add["config"]["prevResult"] == json.loads(attached.result_json)
    assert delete["config"]["prevResult"] == json.loads(attached.result_json)


@pytest.mark.cell("CN1")
async def test_an_error_document_is_told_in_the_plugins_words(bench):
    rule = {"command": "ADD", "do": "error", "code": 7, "msg": "bad bridge", "details": "no vlan"}
    bench.first.control(rules=[rule])

    failure = await add_fails(bench.network())

    assert (failure.plugin, failure.command, failure.code) == ("first", "ADD", 7)
    assert (failure.msg, failure.details) == ("bad bridge", "no vlan")
    assert bench.second.commands == []


async def test_try_again_later_is_unavailable(bench):
    bench.first.control(rules=[{"command": "ADD", "do": "error", "code": 11, "times": 1}])
    network = bench.network()

    await add_fails(network, PluginUnavailable)
    await network.delete(POD, config_json="", result_json="")

    assert (await network.add(POD)).ips == ("10.88.0.5",)


async def test_a_crash_without_a_document_shows_what_it_wrote_and_no_secret(bench):
    stderr = 'panic: cannot use {"apiToken": "hunter2"} at 0x1\n'
    bench.first.control(rules=[{"command": "ADD", "do": "exit", "status": 2, "stderr": stderr}])

    failure = await add_fails(bench.network())

    assert "exit status 2: panic: cannot use" in str(failure)
    assert "hunter2" not in str(failure)


@pytest.mark.cell("CN2")
@pytest.mark.parametrize(
    ("stdout", "why"),
    [
        ("", "not JSON"),
        ("hello", "not JSON"),
        ('{"cniVersion": "1.1.0", "ips": [{"addr', "not JSON"),
        ("[]", "not a JSON object"),
        ('{"cniVersion": "7.0.0"}', "unknown CNI version"),
        ('{"cniVersion": "1.1.0"}', "no address"),
        ('{"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.900/24"}]}', "CIDR"),
        (
            '{"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.9/24", "interface": 3}]}',
            "not listed",
        ),
    ],
)
async def test_an_answer_that_is_no_result(bench, stdout, why):
    bench.second.control(rules=[{"command": "ADD", "do": "print", "stdout": stdout}])
    network = bench.network()

    failure = await add_fails(network)
    assert why in str(failure)
    assert failure.plugin == "second"

    await network.delete(POD, config_json="", result_json="")
    assert bench.first.commands == ["ADD", "DEL"]


@pytest.mark.cell("CN3")
async def test_a_hanging_plugin_is_killed_and_del_reaches_every_plugin(bench):
    bench.second.control(rules=[{"command": "ADD", "do": "hang"}])
    network = bench.network(add_timeout_s=6.0)

    failure = await add_fails(network, PluginTimedOut)
    assert "second" in str(failure)
    assert not alive(bench.second.calls[-1]["pid"])

    await network.delete(POD, config_json="", result_json="")
    assert bench.first.commands == bench.second.commands == ["ADD", "DEL"]


@pytest.mark.cell("CN4")
async def test_a_cancelled_add_leaves_no_plugin_running(bench):
    bench.first.control(rules=[{"command": "ADD", "do": "hang"}])
    network = bench.network()
    async with asyncio.TaskGroup() as group:
        adding = group.create_task(network.add(POD))
        await until_called(bench.first)
        adding.cancel()

    assert not alive(bench.first.calls[0]["pid"])


@pytest.mark.cell("CN4")
async def test_a_cancelled_add_may_finish_what_it_has_begun(tmp_path, monkeypatch):
    """Killed while it reserves an address, host-local leaves a file that names no pod."""
    monkeypatch.setattr("cni.invoke.ADD_FINISH_S", PATIENCE_S)
    node = Node(tmp_path)
    try:
        slow = faulty_bridge(node, {"command": "ADD", "do": "slow", "seconds": 0.3})
        node.configure()
        network = node.network()
        pod = node.pod()
        adding = asyncio.create_task(network.add(pod))
        await until_called(slow)
        adding.cancel()
        await asyncio.wait({adding})

        assert adding.cancelled()
        assert len(node.leased()) == 2
        await network.delete(pod, config_json="", result_json="")
        assert node.leased() == set()
    finally:
        node.close()


@pytest.mark.cell("CN7")
async def test_a_del_that_hangs_does_not_keep_the_others_from_theirs(bench):
    bench.second.control(rules=[{"command": "DEL", "do": "hang", "times": 1}])
    network = bench.network(delete_timeout_s=6.0)
    await network.add(POD)

    with pytest.raises(PluginTimedOut):
        await network.delete(POD, config_json="", result_json="")
    assert bench.first.commands == ["ADD", "DEL"]

    await network.delete(POD, config_json="", result_json="")
    assert bench.first.commands == ["ADD", "DEL", "DEL"]


@pytest.mark.cell("CN2")
async def test_fifty_mebibytes_of_output_are_not_read(bench):
    rule = {"command": "ADD", "do": "flood", "size_bytes": 50 * 1024 * 1024}
    bench.first.control(rules=[rule])

    failure = await add_fails(bench.network(), PluginExhausted)

    assert len(str(failure)) < 4096


@pytest.mark.cell("CN12")
async def test_a_grandchild_that_keeps_the_output_open_does_not_hold_us(bench):
    bench.second.control(rules=[{"command": "ADD", "do": "grandchild", "seconds": 60}])

    attached = await bench.network().add(POD)

    assert attached.ips == ("10.88.0.5",)
    await until_called(bench.second, 2)
    left = bench.second.calls[1]
    assert left["command"] == "GRANDCHILD"
    assert alive(left["pid"])
    os.kill(left["pid"], signal.SIGKILL)


@pytest.mark.cell("HD8")
async def test_a_plugin_killed_after_its_work_is_undone(tmp_path):
    node = Node(tmp_path)
    try:
        faulty_bridge(node, {"command": "ADD", "do": "kill", "after_work": True, "times": 1})
        node.configure()
        network = node.network()
        pod = node.pod()

        with pytest.raises(PluginFailed, match="SIGKILL"):
            await network.add(pod)
        assert len(node.leased()) == 2

        await network.delete(pod, config_json="", result_json="")
        assert node.leased() == set()
        assert len((await network.add(pod)).ips) == 2
    finally:
        node.close()


async def test_a_plugin_that_went_is_an_error_at_del_until_it_is_back(bench):
    network = bench.network()
    await network.add(POD)
    away = bench.second.path.rename(bench.root / "second")

    with pytest.raises(PluginMissing):
        await network.delete(POD, config_json="", result_json="")
    assert bench.first.commands == ["ADD", "DEL"]

    away.rename(bench.second.path)
    await network.delete(POD, config_json="", result_json="")
    assert bench.second.commands == ["ADD", "DEL"]


async def test_a_plugin_being_installed_is_waited_for(bench):
    network = bench.network()
    async with asyncio.TaskGroup() as group:
        with bench.first.path.open("r+b"):
            adding = group.create_task(network.add(POD))
            await asyncio.sleep(0.3)
            assert bench.first.calls == []
    assert adding.result().ips == ("10.88.0.5",)


async def test_a_plugin_that_is_no_program(bench):
    bench.first.path.write_bytes(b"\x7fELF but not really")
    failure = await add_fails(bench.network())
    assert "exec format" in str(failure).lower()


async def test_status_and_gc_reach_the_plugins(bench):
    network = bench.network()
    assert await network.refresh() == (True, "", "")
    await network.gc({"a" * 64})

    statuses = [c for c in bench.first.calls if c["command"] == "STATUS"]
    collected = [c for c in bench.second.calls if c["command"] == "GC"]
    assert len(statuses) == 1
    expected = [{"containerID": "a" * 64, "ifname": "eth0"}]
    assert collected[0]["config"]["cni.dev/valid-attachments"] == expected


@pytest.mark.cell("RP5")
async def test_a_plugin_left_by_a_dead_daemon_may_finish(bench, monkeypatch):
    monkeypatch.setattr("cni.leftovers.FINISH_S", PATIENCE_S)
    bench.first.control(rules=[{"command": "ADD", "do": "slow", "seconds": 0.3}])
    environment = {"CNI_COMMAND": "ADD", "PODWRIGHT_CNI_OWNER": str(bench.root / "cache")}
    (bench.root / "document").write_text('{"cniVersion": "1.0.0"}')
    with (bench.root / "document").open() as document:
        left = await HostProcessRunner().spawn(
            [str(bench.first.path)], env=environment, stdin_fd=document.fileno()
        )
    await until_called(bench.first)

    async with asyncio.TaskGroup() as group:
        network = bench.network()
        await network.start(group)
        await network.close()

    assert await left.wait() == 0


@pytest.mark.cell("RP5")
async def test_a_plugin_left_by_a_dead_daemon_is_ended_at_start(bench):
    """A daemon killed in the middle of ADD leaves the plugin running in its own session."""
    bench.first.control(rules=[{"command": "ADD", "do": "hang"}])
    environment = {"CNI_COMMAND": "ADD", "PODWRIGHT_CNI_OWNER": str(bench.root / "cache")}
    stdin = os.open(os.devnull, os.O_RDONLY)
    try:
        left = await HostProcessRunner().spawn(
            [str(bench.first.path)], env=environment, stdin_fd=stdin
        )
        other = await HostProcessRunner().spawn(
            [str(bench.first.path)],
            env={**environment, "PODWRIGHT_CNI_OWNER": "/elsewhere"},
            stdin_fd=stdin,
        )
    finally:
        os.close(stdin)
    await until_called(bench.first, 2)
    network = bench.network()

    async with asyncio.TaskGroup() as group:
        await network.start(group)
        await network.close()

    assert await left.wait() == -signal.SIGKILL
    assert alive(other.pid)
    other.kill_group(signal.SIGKILL)
    await other.wait()


@pytest.mark.cell("RP5")
async def test_what_a_left_plugin_starts_after_it_was_found_is_ended_with_it(bench, monkeypatch):
    """One look at /proc takes milliseconds, and the plugin goes on meanwhile."""
    began, go, child = (bench.root / name for name in ("began", "go", "child"))
    plugin = bench.root / "bin" / "forks"
    plugin.write_text(
        f"#!/bin/sh\n: > {began}\nwhile [ ! -e {go} ]; do sleep 0.02; done\n"
        f"sleep 1000 &\necho $! > {child}.new\nmv {child}.new {child}\nwait\n"
    )
    plugin.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "PODWRIGHT_CNI_OWNER": str(bench.root / "cache")}
    stdin = os.open(os.devnull, os.O_RDONLY)
    try:
        left = await HostProcessRunner().spawn([str(plugin)], env=environment, stdin_fd=stdin)
    finally:
        os.close(stdin)
    while not began.exists():  # noqa: ASYNC110 - another process cannot set an event
        await asyncio.sleep(0.01)
    find = leftovers._find

    def found_and_then_forks(*arguments):
        found = find(*arguments)
        go.touch()
        while not child.exists():
            time.sleep(0.01)
        return found

    monkeypatch.setattr(leftovers, "_find", found_and_then_forks)
    async with asyncio.TaskGroup() as group:
        network = bench.network()
        await network.start(group)
        await network.close()

    assert await left.wait() == -signal.SIGKILL
    assert not alive(int(child.read_text()))
