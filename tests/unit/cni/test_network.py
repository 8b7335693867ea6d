"""`PodNetwork`: which plugins run with what, in which order, and what is kept."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest

from cni.cache import AttachmentCache
from cni.errors import (
    ConfigInvalid,
    NetworkNotReady,
    PluginFailed,
    PluginMissing,
    PluginTimedOut,
)
from cni.network import PortMapping
from sandbox.host.errors import FailedPrecondition, InvalidArgument
from tests.fakes.cni_plugins import error, finished
from tests.unit.cni.bench import NETNS, RESULT, Bench, pod


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


async def test_add_hands_each_result_to_the_next_and_returns_the_last(bench):
    two = {**RESULT, "ips": [{"address": "10.88.0.6/24"}]}
    three = {**RESULT, "ips": [{"address": "fd00::7/64"}, {"address": "10.88.0.7/24"}], "x": 1}
    bench.runner.answer("one", finished(RESULT))
    bench.runner.answer("two", finished(two))
    bench.runner.answer("three", finished(three))

    attached = await bench.network.add(pod())

    assert bench.runner.seen() == [("one", "ADD"), ("two", "ADD"), ("three", "ADD")]
    assert [r.config.get("prevResult") for r in bench.runner.runs] == [None, RESULT, two]
    assert attached.ips == ("10.88.0.7", "fd00::7")
    assert json.loads(attached.result_json) == three
    assert bench.saved()[0]["result"] == attached.result_json
    assert bench.saved()[0]["config"] == attached.config_json


async def test_a_result_of_another_version_is_converted_for_the_next(bench):
    bench.configure("one", "two", version="0.4.0")
    bench.runner.answer("one", finished(RESULT))

    await bench.network.add(pod())

    assert bench.runner.runs[1].config["prevResult"] == {
        "cniVersion": "0.4.0",
        "ips": [{"version": "4", "address": "10.88.0.5/24"}],
        "dns": {},
    }


async def test_the_configuration_is_saved_before_the_first_plugin_runs(bench):
    seen = []

    def look(run):
        seen.extend(bench.saved())
        return finished(RESULT)

    bench.runner.answer("one", look)
    await bench.network.add(pod())

    assert json.loads(seen[0]["config"])["name"] == "net"
    assert "result" not in seen[0]


async def test_the_callers_configuration_wins_over_a_newer_file(bench):
    await bench.network.refresh()
    stored = bench.network.current_config_json()
    bench.configure("three")
    await bench.network.refresh()
    bench.runner.runs.clear()

    attached = await bench.network.add(pod(), config_json=stored)

    assert attached.config_json == stored
    assert len(bench.runner.seen("ADD")) == 3


@pytest.mark.parametrize("saved", [1, 2], ids=["before the plugins", "with the result"])
async def test_no_record_is_written_after_the_pod_was_detached(bench, monkeypatch, saved):
    """An attachment that is called off while its record is written is undone after that."""
    begun, may_go_on = threading.Event(), threading.Event()
    save, calls = AttachmentCache.save, []

    def slow(cache, record):
        calls.append(record)
        if len(calls) == saved:
            begun.set()
            may_go_on.wait()
        save(cache, record)

    monkeypatch.setattr(AttachmentCache, "save", slow)
    adding = asyncio.ensure_future(bench.network.add(pod()))
    await asyncio.to_thread(begun.wait)
    for _ in range(2):
        adding.cancel()
        for _ in range(20):
            await asyncio.sleep(0)
    assert not adding.done()
    may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await adding
    await bench.network.delete(pod(), config_json=calls[0].config, result_json="")
    assert bench.saved() == []


async def test_a_file_written_a_moment_ago_counts(bench):
    assert (await bench.network.add(pod())).ips == ("10.88.0.5",)


async def test_without_a_network_nothing_is_run(bench):
    (bench.conf_dir / "10-net.conflist").unlink()
    with pytest.raises(NetworkNotReady, match="no network configuration"):
        await bench.network.add(pod())
    with pytest.raises(NetworkNotReady):
        bench.network.current_config_json()
    with pytest.raises(NetworkNotReady):
        await bench.network.status()
    assert bench.runner.runs == []
    assert bench.saved() == []


async def test_add_stops_at_the_first_failure(bench):
    bench.runner.answer("two", error(100, "no"))

    with pytest.raises(PluginFailed, match="two failed ADD: no"):
        await bench.network.add(pod())

    assert bench.runner.seen() == [("one", "ADD"), ("two", "ADD")]
    assert len(bench.saved()) == 1


async def test_the_whole_chain_shares_one_time_limit(bench):
    def take_time(run):
        bench.clock.advance(60)
        return bench.runner.default(run)

    for name in ("one", "two"):
        bench.runner.answer(name, take_time)

    with pytest.raises(PluginTimedOut, match="three"):
        await bench.network.add(pod())

    assert [r.timeout_s for r in bench.runner.runs] == [110.0, 50.0]


async def test_a_second_add_needs_a_delete_in_between(bench):
    await bench.network.add(pod())
    with pytest.raises(FailedPrecondition, match="attached already"):
        await bench.network.add(pod())
    await bench.network.delete(pod(), config_json="", result_json="")
    await bench.network.add(pod())


async def test_a_failed_add_may_be_repeated(bench):
    bench.runner.answer("one", error(11), finished(RESULT))
    with pytest.raises(PluginFailed):
        await bench.network.add(pod())
    await bench.network.add(pod())


async def test_delete_goes_backwards_with_the_result_and_the_arguments_of_add(bench):
    told = pod(port_mappings=(PortMapping(container_port=80, host_port=8080),))
    bench.configure("one", "two")
    path = bench.conf_dir / "10-net.conflist"
    text = path.read_text().replace(
        '{"type": "two"}', '{"type": "two", "capabilities": {"portMappings": true}}'
    )
    path.write_text(text)
    attached = await bench.network.add(told)
    bench.runner.runs.clear()

    # The caller may have lost what it told at ADD; the specification wants the same again.
    await bench.fresh().delete(
        pod(), config_json=attached.config_json, result_json=attached.result_json
    )

    assert bench.runner.seen() == [("two", "DEL"), ("one", "DEL")]
    two, one = bench.runner.runs
    assert two.config["runtimeConfig"]["portMappings"][0]["hostPort"] == 8080
    assert "runtimeConfig" not in one.config
    for run in (two, one):
        assert run.config["prevResult"] == json.loads(attached.result_json)
        assert run.env["CNI_NETNS"] == NETNS
        assert run.timeout_s == 60.0
    assert bench.saved() == []


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1"])
async def test_before_0_4_0_delete_has_no_result(bench, version):
    bench.configure("one", version=version)
    await bench.network.add(pod())
    await bench.network.delete(pod(), config_json="", result_json="")
    assert "prevResult" not in bench.runner.runs[-1].config


async def test_delete_goes_on_over_failures_and_raises_the_first(bench):
    attached = await bench.network.add(pod())
    bench.runner.answer("three", error(100, "third"))
    bench.runner.answer("one", error(100, "first"))

    with pytest.raises(PluginFailed, match="third"):
        await bench.network.delete(
            pod(), config_json=attached.config_json, result_json=attached.result_json
        )

    assert bench.runner.seen("DEL") == [("three", "DEL"), ("two", "DEL"), ("one", "DEL")]
    assert len(bench.saved()) == 1

    bench.runner.answer("three", finished())
    bench.runner.answer("one", finished())
    await bench.network.delete(pod(), config_json="", result_json="")
    assert bench.saved() == []


async def test_delete_of_what_the_plugin_does_not_know_is_success(bench):
    await bench.network.add(pod())
    bench.runner.answer("two", error(3, "unknown container"))
    await bench.network.delete(pod(), config_json="", result_json="")
    assert bench.saved() == []


async def test_delete_with_a_missing_program_runs_the_others_and_is_kept(bench):
    await bench.network.add(pod())
    (bench.bin_dir / "two").unlink()

    with pytest.raises(PluginMissing, match="two"):
        await bench.network.delete(pod(), config_json="", result_json="")

    assert bench.runner.seen("DEL") == [("three", "DEL"), ("one", "DEL")]
    assert len(bench.saved()) == 1


async def test_delete_without_the_namespace_tells_an_empty_path(bench):
    await bench.network.add(pod())
    bench.namespaces.clear()
    await bench.network.delete(pod(), config_json="", result_json="")
    assert {r.env["CNI_NETNS"] for r in bench.runner.runs if r.command == "DEL"} == {""}


async def test_what_must_come_first_is_done_before_a_plugin_runs(bench):
    await bench.network.add(pod())
    done = asyncio.get_running_loop().create_future()
    deleting = asyncio.ensure_future(
        bench.network.delete(pod(), config_json="", result_json="", first=lambda: done)
    )
    await asyncio.wait({deleting}, timeout=0.05)
    assert bench.runner.seen("DEL") == []
    done.set_result(None)
    await deleting
    assert len(bench.runner.seen("DEL")) == 3


async def test_no_plugin_runs_when_what_must_come_first_fails(bench):
    await bench.network.add(pod())
    failed = asyncio.get_running_loop().create_future()
    failed.set_exception(FailedPrecondition("not written"))
    with pytest.raises(FailedPrecondition, match="not written"):
        await bench.network.delete(pod(), config_json="", result_json="", first=lambda: failed)
    assert bench.runner.seen("DEL") == []
    assert len(bench.saved()) == 1


async def test_what_the_caller_will_forget_is_kept_until_then_and_detached_again(bench):
    await bench.network.add(pod())
    for _ in range(2):
        await bench.network.delete(pod(), config_json="", result_json="", forget=False)
        assert len(bench.saved()) == 1
    assert len(bench.runner.seen("DEL")) == 6

    await bench.network.forget(pod())
    assert bench.saved() == []
    await bench.network.forget(pod())
    await bench.network.delete(pod(), config_json="", result_json="")
    assert len(bench.runner.seen("DEL")) == 6


async def test_what_nobody_forgets_is_found_by_collection(bench):
    await bench.network.add(pod())
    await bench.network.delete(pod(), config_json="", result_json="", forget=False)
    await bench.network.gc([])
    assert bench.saved() == []
    assert len(bench.runner.seen("DEL")) == 6


async def test_delete_of_what_was_never_attached_runs_nothing(bench):
    await bench.network.delete(pod(), config_json="", result_json="")
    assert bench.runner.runs == []


async def test_delete_after_a_lost_cache_uses_what_the_caller_kept(bench):
    attached = await bench.network.add(pod())
    for path in (bench.root / "cache" / "results").iterdir():
        path.unlink()
    (bench.conf_dir / "10-net.conflist").unlink()

    await bench.fresh().delete(
        pod(), config_json=attached.config_json, result_json=attached.result_json
    )
    assert len(bench.runner.seen("DEL")) == 3


async def test_delete_with_a_damaged_result_leaves_it_out(bench):
    attached = await bench.network.add(pod())
    await bench.network.delete(pod(), config_json=attached.config_json, result_json="{")
    assert all("prevResult" not in r.config for r in bench.runner.runs if r.command == "DEL")


async def test_delete_with_a_damaged_configuration_says_so(bench):
    with pytest.raises(ConfigInvalid):
        await bench.network.delete(pod(), config_json="{", result_json="")


@pytest.mark.parametrize("changes", [{"pod_name": "a;b"}, {"pod_id": "../x"}, {"mac": "z"}])
async def test_what_add_refuses_delete_lets_go(bench, changes):
    """A pod whose ADD was refused must not be impossible to remove."""
    bad = pod(**changes)
    await bench.network.refresh()
    config = bench.network.current_config_json()
    bench.runner.runs.clear()
    with pytest.raises(InvalidArgument):
        await bench.network.add(bad, config_json=config)
    await bench.network.delete(bad, config_json=config, result_json="")
    assert bench.runner.runs == []


async def test_operations_on_one_pod_wait_for_each_other(bench):
    entered, leave = asyncio.Event(), asyncio.Event()

    async def hold(run):
        entered.set()
        await leave.wait()
        return bench.runner.default(run)

    bench.runner.answer("one", hold)
    async with asyncio.TaskGroup() as group:
        group.create_task(bench.network.add(pod()))
        await entered.wait()
        deleting = group.create_task(bench.network.delete(pod(), config_json="", result_json=""))
        bench.runner.answer("one")
        await bench.network.add(pod("b" * 64))
        assert not deleting.done()
        leave.set()
    commands = [r.command for r in bench.runner.runs if r.env["CNI_CONTAINERID"] == "a" * 64]
    assert commands == ["ADD"] * 3 + ["DEL"] * 3
