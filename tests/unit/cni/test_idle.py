"""Plugins with nothing to do: who is left out, for whom, and who never is."""

from __future__ import annotations

import json

import pytest

from cni.errors import PluginMissing
from cni.network import Bandwidth, PortMapping
from sandbox.host.errors import NotFound
from tests.fakes.cni_plugins import finished
from tests.unit.cni.bench import RESULT, Bench, pod

ABOUT = b"CNI %s plugin v1.1.1\nCNI protocol versions supported: 0.4.0, 1.0.0\n"
ELF = b"\x7fELF and more"
PORT = (PortMapping(container_port=80, host_port=8080),)


@pytest.fixture
def bench(tmp_path):
    found = Bench(tmp_path)
    for name in ("portmap", "bandwidth"):
        program = found.bin_dir / name
        program.write_bytes(ELF)
        program.chmod(0o755)
        reference(found, name)
    found.runner.answer("one", finished(RESULT))
    return found


def reference(bench, name, about=None):
    """`name` answers as the reference program does, to questions about itself as well."""

    def answer(run):
        if run.command == "":
            return finished(stderr=ABOUT % name.encode() if about is None else about)
        return finished(run.config.get("prevResult", {}))

    bench.runner.answer(name, answer)


def chain(bench, *plugins, version="1.0.0"):
    text = {"cniVersion": version, "name": "net", "plugins": list(plugins)}
    (bench.conf_dir / "10-net.conflist").write_text(json.dumps(text))


PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}
LIMITS = {"type": "bandwidth", "capabilities": {"bandwidth": True}}


async def life(network, attachment):
    """The network probed, then a pod attached and detached; its addresses."""
    await network.refresh()
    attached = await network.add(attachment)
    await network.delete(
        attachment, config_json=attached.config_json, result_json=attached.result_json
    )
    return attached


def ran(bench):
    return [seen for seen in bench.runner.seen() if seen[1] in {"ADD", "DEL"}]


async def test_reference_plugins_are_not_run_for_a_pod_that_wants_nothing_of_them(bench):
    chain(bench, {"type": "one"}, PORTMAP, LIMITS)
    attached = await life(bench.network, pod())
    assert ran(bench) == [("one", "ADD"), ("one", "DEL")]
    assert attached.ips == ("10.88.0.5",)
    assert json.loads(attached.result_json)["ips"] == RESULT["ips"]


async def test_they_are_run_for_a_pod_that_wants_something(bench):
    chain(bench, {"type": "one"}, PORTMAP, LIMITS)
    await life(bench.network, pod(port_mappings=PORT))
    assert ran(bench) == [("one", "ADD"), ("portmap", "ADD"), ("portmap", "DEL"), ("one", "DEL")]
    bench.runner.runs.clear()
    await life(bench.network, pod("b" * 64, bandwidth=Bandwidth(ingress_bits_per_s=1000)))
    assert [name for name, _ in ran(bench)] == ["one", "bandwidth", "bandwidth", "one"]


async def test_a_port_that_the_plugin_is_not_told_of_gives_it_nothing_to_do(bench):
    chain(bench, {"type": "one"}, {"type": "portmap"})
    await life(bench.network, pod(port_mappings=PORT))
    assert [name for name, _ in ran(bench)] == ["one", "one"]


async def test_what_ran_at_add_runs_at_del_though_the_caller_has_forgotten_the_ports(bench):
    chain(bench, {"type": "one"}, PORTMAP)
    await bench.network.refresh()
    attached = await bench.network.add(pod(port_mappings=PORT))
    await bench.network.delete(pod(), config_json=attached.config_json, result_json="")
    assert ran(bench)[-2:] == [("portmap", "DEL"), ("one", "DEL")]


@pytest.mark.parametrize("key", ["ingressRate", "EGRESSRATE", "runtimeconfig"])
async def test_limits_of_the_configuration_are_work_for_every_pod(bench, key):
    chain(bench, {"type": "one"}, {**LIMITS, key: 1000})
    await life(bench.network, pod())
    assert [name for name, _ in ran(bench)] == ["one", "bandwidth", "bandwidth", "one"]


@pytest.mark.parametrize(
    "about",
    [b"", b"portmap of somebody else\n", b"CNI bandwidth plugin v1.1.1\n"],
    ids=["silent", "another", "of another name"],
)
async def test_a_program_that_is_not_the_reference_one_is_always_run(bench, about):
    reference(bench, "portmap", about)
    chain(bench, {"type": "one"}, PORTMAP)
    await life(bench.network, pod())
    assert [name for name, _ in ran(bench)] == ["one", "portmap", "portmap", "one"]


async def test_a_script_around_the_reference_program_is_always_run(bench):
    (bench.bin_dir / "portmap").write_text("#!/bin/sh\nexec /elsewhere/portmap\n")
    chain(bench, {"type": "one"}, PORTMAP)
    await life(bench.network, pod())
    assert [name for name, _ in ran(bench)] == ["one", "portmap", "portmap", "one"]
    assert bench.runner.seen("") == []


async def test_a_program_that_cannot_be_asked_is_always_run(bench):
    def answer(run):
        if run.command == "":
            raise NotFound("gone for a moment")
        return finished(run.config.get("prevResult", {}))

    bench.runner.answer("portmap", answer)
    chain(bench, {"type": "one"}, PORTMAP)
    await life(bench.network, pod())
    assert [name for name, _ in ran(bench)] == ["one", "portmap", "portmap", "one"]


async def test_a_program_that_was_replaced_is_run_until_it_was_asked(bench):
    chain(bench, {"type": "one"}, PORTMAP)
    await bench.network.refresh()
    (bench.bin_dir / "portmap").write_bytes(ELF + ELF)
    await bench.network.add(pod())
    assert ran(bench) == [("one", "ADD"), ("portmap", "ADD")]


async def test_it_is_asked_once_and_other_plugins_never(bench):
    chain(bench, {"type": "one"}, PORTMAP)
    for _ in range(3):
        await bench.network.refresh()
    assert bench.runner.seen("") == [("portmap", "")]


async def test_a_missing_program_is_a_failure_as_ever(bench):
    (bench.bin_dir / "portmap").unlink()
    chain(bench, {"type": "one"}, PORTMAP)
    await bench.network.refresh()
    with pytest.raises(PluginMissing, match="portmap"):
        await bench.network.add(pod())


async def test_the_first_plugin_is_always_run_and_so_are_all_of_an_old_version(bench):
    chain(bench, PORTMAP, {"type": "one"})
    await bench.network.refresh()
    await bench.network.delete(
        pod(), config_json=bench.network.current_config_json(), result_json=""
    )
    assert ran(bench) == [("one", "DEL"), ("portmap", "DEL")]
    bench.runner.runs.clear()
    chain(bench, {"type": "one"}, PORTMAP, version="0.3.1")
    await bench.network.refresh()
    await bench.network.delete(
        pod(), config_json=bench.network.current_config_json(), result_json=""
    )
    assert ran(bench) == [("portmap", "DEL"), ("one", "DEL")]


async def test_it_can_be_switched_off(bench):
    chain(bench, {"type": "one"}, PORTMAP)
    await life(bench.fresh(skip_idle=False), pod())
    assert [name for name, _ in ran(bench)] == ["one", "portmap", "portmap", "one"]
