"""`PodNetwork` asked: CHECK, GC, STATUS, VERSION, and what is shown."""

from __future__ import annotations

import json

import pytest

from cni.errors import PluginFailed, ResultInvalid
from sandbox.host.errors import FailedPrecondition
from tests.fakes.cni_plugins import error, finished
from tests.unit.cni.bench import Bench, pod


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


async def test_check_asks_in_order_with_the_saved_result(bench):
    attached = await bench.network.add(pod())
    bench.runner.answer("two", error(100, "route is gone"))

    with pytest.raises(PluginFailed, match="two failed CHECK: route is gone"):
        await bench.network.check(pod(), config_json="", result_json="")

    assert bench.runner.seen("CHECK") == [("one", "CHECK"), ("two", "CHECK")]
    assert bench.runner.runs[-1].config["prevResult"] == json.loads(attached.result_json)


@pytest.mark.parametrize("changes", [{"version": "0.3.1"}, {"disableCheck": True}])
async def test_check_where_it_is_unknown_or_unwanted(bench, changes):
    bench.configure("one", **changes)
    await bench.network.add(pod())
    await bench.network.check(pod(), config_json="", result_json="")
    assert bench.runner.seen("CHECK") == []


async def test_check_of_what_is_not_attached(bench):
    with pytest.raises(FailedPrecondition):
        await bench.network.check(pod(), config_json="", result_json="")
    await bench.network.add(pod())
    with pytest.raises(ResultInvalid):
        await bench.network.check(pod(), config_json="", result_json="{")


async def test_gc_detaches_what_no_pod_has_and_then_asks_the_plugins(bench):
    for pod_id in ("a" * 64, "b" * 64):
        await bench.network.add(pod(pod_id))
    bench.runner.runs.clear()
    later = bench.fresh()
    await later.refresh()
    await later.add(pod("c" * 64))

    await later.gc(["b" * 64])

    deleted = {r.env["CNI_CONTAINERID"] for r in bench.runner.runs if r.command == "DEL"}
    assert deleted == {"a" * 64}
    collected = [r for r in bench.runner.runs if r.command == "GC"]
    assert [r.plugin for r in collected] == ["one", "two", "three"]
    # "c" began after the caller made its list, and must not be taken for a leak.
    kept = [{"containerID": i * 64, "ifname": "eth0"} for i in "bc"]
    assert collected[0].config["cni.dev/valid-attachments"] == kept
    assert "CNI_CONTAINERID" not in collected[0].env
    assert collected[0].timeout_s == 10.0


@pytest.mark.parametrize("changes", [{"version": "1.0.0"}, {"disableGC": True}])
async def test_gc_where_it_is_unknown_or_unwanted(bench, changes):
    bench.configure(**changes)
    await bench.network.refresh()
    await bench.network.gc([])
    assert bench.runner.seen("GC") == []


async def test_gc_goes_on_over_failures_and_raises_the_first(bench):
    await bench.network.add(pod())
    later = bench.fresh()
    await later.refresh()
    bench.runner.answer("three", error(100, "stuck"))

    with pytest.raises(PluginFailed, match="three failed DEL: stuck"):
        await later.gc([])
    assert bench.runner.seen("GC") == [("one", "GC"), ("two", "GC"), ("three", "GC")]


async def test_gc_without_a_network_still_detaches(bench):
    await bench.network.add(pod())
    (bench.conf_dir / "10-net.conflist").unlink()
    await bench.fresh().gc([])
    assert len(bench.runner.seen("DEL")) == 3


async def test_status_asks_every_plugin_from_1_1_0(bench):
    assert await bench.network.refresh() == (True, "", "")
    assert [r.plugin for r in bench.runner.runs if r.command == "STATUS"] == ["one", "two", "three"]
    assert bench.network.ready() == (True, "", "")

    bench.configure(version="1.0.0")
    bench.runner.runs.clear()
    await bench.network.refresh()
    assert bench.runner.seen("STATUS") == []


async def test_a_plugin_that_is_not_ready_is_named(bench):
    bench.runner.answer("two", error(50, "controller is starting"))

    ok, reason, message = await bench.network.refresh()

    assert (ok, reason) == (False, "NetworkPluginNotReady")
    assert message == (
        "Network plugin returns error: network plugin two failed STATUS: "
        "controller is starting (code=50)"
    )


async def test_versions_are_asked_once_for_each_program(bench):
    bench.configure("one", version="1.0.0")
    await bench.network.refresh()
    await bench.network.refresh()
    assert bench.runner.seen() == [("one", "VERSION")]

    (bench.bin_dir / "one").write_text("another program")
    bench.runner.answer("one", finished({"supportedVersions": ["0.3.1", "0.4.0"]}))
    ok, _, message = await bench.network.refresh()
    assert not ok
    assert "does not speak version 1.0.0" in message
    assert "0.3.1, 0.4.0" in message


@pytest.mark.parametrize("answer", [error(4, "unknown CNI_COMMAND"), finished(b"garbage")])
async def test_a_plugin_older_than_the_version_command_is_given_a_chance(bench, answer):
    bench.configure("one", version="0.3.1")
    bench.runner.answer("one", answer)
    assert (await bench.network.refresh())[0]


async def test_a_missing_program_makes_the_network_unready_until_it_is_there(bench):
    (bench.bin_dir / "two").rename(bench.root / "two")
    ok, _, message = await bench.network.refresh()
    assert not ok
    assert "no executable file two in" in message

    (bench.root / "two").rename(bench.bin_dir / "two")
    assert (await bench.network.refresh())[0]


async def test_what_is_known_can_be_shown(bench):
    (bench.conf_dir / "05-bad.conf").write_text("{")
    await bench.network.refresh()
    shown = bench.network.describe()
    assert shown["network"] == "net"
    assert shown["plugins"] == ["one", "two", "three"]
    assert shown["problems"][0]["path"].endswith("05-bad.conf")


async def test_what_the_operator_sets_reaches_plugins_and_nothing_of_the_daemons(
    bench, monkeypatch
):
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy")
    network = bench.fresh(environment=(("NODE_NAME", "n1"),))
    await network.add(pod())
    env = bench.runner.runs[0].env
    assert env["NODE_NAME"] == "n1"
    assert "HTTPS_PROXY" not in env
    assert {k for k in env if k.startswith("CNI_")} == {
        "CNI_COMMAND",
        "CNI_CONTAINERID",
        "CNI_NETNS",
        "CNI_IFNAME",
        "CNI_ARGS",
        "CNI_PATH",
    }


UNKNOWN = error(4, "unknown CNI_COMMAND: STATUS")


async def test_a_plugin_of_1_1_0_without_its_commands_has_no_opinion(bench):
    bench.configure("one")
    bench.runner.answer("one", finished({"supportedVersions": ["1.1.0"]}), UNKNOWN)
    assert await bench.network.refresh() == (True, "", "")
    await bench.network.gc([])
    assert bench.runner.seen() == [("one", "VERSION"), ("one", "STATUS"), ("one", "GC")]

    bench.runner.answer("one", error(4, "CNI_PATH is missing"))
    with pytest.raises(PluginFailed, match="CNI_PATH is missing"):
        await bench.network.status()
