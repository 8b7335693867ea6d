"""Configurations: what is accepted, what is refused and named, which file is in force."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.config import (
    CONFIG_LIMIT_BYTES,
    VERSIONS,
    NetworkConfig,
    execution_config,
    load_directory,
    load_file,
    parse_network,
    parse_single,
)
from cni.document import encode
from cni.errors import ConfigInvalid
from tests.unit.cni.strategies import nearly, texts, values


def listed(*plugins, **keys) -> str:
    document = {"cniVersion": "1.0.0", "name": "net", "plugins": list(plugins), **keys}
    return json.dumps(document)


BRIDGE = {"type": "bridge", "bridge": "cni0", "ipam": {"type": "host-local"}}
PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True, "mac": False}}


def write(path, *plugins, **keys):
    path.write_text(listed(*(plugins or (BRIDGE,)), **keys))
    return path


def test_a_list_of_plugins():
    network = parse_network(listed(BRIDGE, PORTMAP, disableCheck=True), source="/etc/x.conflist")

    assert (network.name, network.version) == ("net", "1.0.0")
    assert [p.type for p in network.plugins] == ["bridge", "portmap"]
    assert network.plugins[1].capabilities == {"portMappings"}
    assert network.disable_check
    assert not network.disable_gc
    assert network.source == "/etc/x.conflist"


def test_a_saved_network_is_the_same_network():
    network = parse_network(listed(BRIDGE, PORTMAP, disableGC="true", disableCheck="False"))
    assert network.disable_gc
    assert parse_network(network.to_json()) == network


def test_one_plugin_becomes_a_list_of_one():
    network = parse_single('{"cniVersion": "0.3.1", "name": "n", "type": "ptp", "mtu": 1400}')

    assert [p.type for p in network.plugins] == ["ptp"]
    assert network.plugins[0].document["mtu"] == 1400
    assert parse_network(network.to_json()) == network


@pytest.mark.parametrize("version", VERSIONS)
def test_every_released_version_is_spoken(version):
    assert parse_network(listed(BRIDGE, cniVersion=version)).version == version


@pytest.mark.parametrize(
    ("keys", "chosen"),
    [
        ({"cniVersion": None}, "0.1.0"),
        ({"cniVersion": ""}, "0.1.0"),
        ({"cniVersion": "0.4.0", "cniVersions": ["1.0.0", "1.1.0", "2.0.0"]}, "1.1.0"),
        ({"cniVersion": None, "cniVersions": ["0.3.1"]}, "0.3.1"),
        ({"cniVersion": "9.9.9", "cniVersions": ["0.3.1"]}, "0.3.1"),
    ],
)
def test_the_latest_version_that_is_offered_and_known_is_chosen(keys, chosen):
    assert parse_network(listed(BRIDGE, **keys)).version == chosen


@pytest.mark.parametrize(
    "name", ["../x", "/x", "..", ".", "a/b", "a\\b", "a b", "a\0b", "", "x" * 10_000, "é", "a\n"]
)
def test_a_type_that_is_no_plain_file_name_is_refused(name):
    """CVE-2021-20206: a type with "../" in it ran any program of the host."""
    with pytest.raises(ConfigInvalid, match="type"):
        parse_network(listed({"type": name}))
    if name:
        with pytest.raises(ConfigInvalid, match="address manager"):
            parse_network(listed({"type": "bridge", "ipam": {"type": name}}))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nonsense", "not JSON"),
        ("[]", "not a JSON object"),
        (listed(), "no plugins"),
        (listed(plugins=None), "no plugins"),
        (listed(plugins={}), "plugins is not a list"),
        (listed("bridge"), "plugin 0 is not an object"),
        (listed({}), "no type"),
        (listed({"type": 5}), r"expected `str`, got `int` - at `\$.type`"),
        (listed({"type": "a", "capabilities": {"x": "yes"}}), "capabilities"),
        (listed({"type": "a", "ipam": "host-local"}), "ipam"),
        (listed(BRIDGE, name=""), "no name"),
        (listed(BRIDGE, name="../x"), "network name"),
        (listed(BRIDGE, cniVersion="1.0"), "CNI version '1.0' is not one of"),
        (listed(BRIDGE, cniVersion="2.0.0"), "is not one of"),
        (listed(BRIDGE, cniVersion=1), "cniVersion"),
        (listed(BRIDGE, disableCheck="maybe"), "disableCheck"),
        (listed(*[BRIDGE] * 33), "more than 32 plugins"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(text, why):
    with pytest.raises(ConfigInvalid, match=why) as caught:
        parse_network(text, source="/etc/cni/net.d/10-x.conflist")
    assert "10-x.conflist" in str(caught.value)


def test_a_list_in_a_file_for_one_plugin_says_how_to_name_it():
    with pytest.raises(ConfigInvalid, match="conflist"):
        parse_single(listed(BRIDGE))


def test_a_plugin_gets_its_keys_and_the_networks_name_and_version():
    network = parse_network(listed({**BRIDGE, "name": "mine", "cniVersion": "0.2.0"}))
    told = json.loads(execution_config(network, network.plugins[0]))
    assert told == {**BRIDGE, "name": "net", "cniVersion": "1.0.0"}


def test_capability_arguments_reach_only_those_who_declared_them():
    network = parse_network(listed(BRIDGE, PORTMAP))
    arguments = {"portMappings": [1], "mac": "x", "dns": {}}
    bridge, portmap = (
        json.loads(execution_config(network, p, capability_arguments=arguments))
        for p in network.plugins
    )
    assert "runtimeConfig" not in bridge
    assert portmap["runtimeConfig"] == {"portMappings": [1]}
    assert "capabilities" not in portmap


def test_a_file_cannot_forge_what_only_a_runtime_may_say():
    forged = {"type": "a", "prevResult": {}, "runtimeConfig": {}, "cni.dev/valid-attachments": []}
    network = parse_network(listed(forged))
    assert json.loads(execution_config(network, network.plugins[0])) == {
        "type": "a",
        "name": "net",
        "cniVersion": "1.0.0",
    }


def test_the_first_valid_file_in_lexical_order_is_in_force(tmp_path):
    write(tmp_path / "20-second.conflist", name="second")
    (tmp_path / "10-bad.conflist").write_text("{")
    (tmp_path / "05-list.conf").write_text(listed(BRIDGE))
    (tmp_path / "00-ignored.txt").write_text("x")
    (tmp_path / "01-directory.conf").mkdir()
    write(tmp_path / "30-third.conflist", name="third")

    loaded = load_directory(tmp_path)

    assert loaded.config is not None
    assert loaded.config.name == "second"
    passed_over = [Path(p.path).name for p in loaded.problems]
    assert passed_over == ["05-list.conf", "10-bad.conflist"]


def test_a_network_may_be_chosen_by_name(tmp_path):
    write(tmp_path / "10-a.conflist", name="a")
    write(tmp_path / "20-b.conflist", name="b")

    assert load_directory(tmp_path, name="b").config.name == "b"
    assert load_directory(tmp_path, name="c").config is None


@pytest.mark.parametrize("suffix", ["conf", "json"])
def test_files_for_one_plugin(tmp_path, suffix):
    (tmp_path / f"10-x.{suffix}").write_text('{"name": "n", "type": "ptp"}')
    assert load_directory(tmp_path).config.plugins[0].type == "ptp"


def test_no_directory_is_no_network_and_no_problem(tmp_path):
    loaded = load_directory(tmp_path / "absent")
    assert (loaded.config, loaded.problems) == (None, ())


def test_a_file_in_place_of_the_directory_is_a_problem(tmp_path):
    path = tmp_path / "net.d"
    path.touch()
    assert load_directory(path).problems[0].path == str(path)


def test_a_fifo_a_dangling_link_and_an_endless_file_do_not_hold_us(tmp_path):
    os.mkfifo(tmp_path / "10-fifo.conf")
    (tmp_path / "20-link.conf").symlink_to("nowhere")
    (tmp_path / "30-zero.conf").symlink_to("/dev/zero")
    (tmp_path / "40-large.conf").write_bytes(b" " * (CONFIG_LIMIT_BYTES + 1))
    real = write(tmp_path / "real")
    (tmp_path / "50-link.conflist").symlink_to(real)

    loaded = load_directory(tmp_path)

    assert [Path(p.path).name[:2] for p in loaded.problems] == ["10", "20", "30", "40"]
    assert loaded.config.name == "net"


def test_plugins_may_be_dropped_in_beside_the_list(tmp_path):
    path = write(tmp_path / "10-net.conflist")
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "20-b.conf").write_text('{"type": "b"}')
    (tmp_path / "net" / "10-a.conf").write_text('{"type": "a"}')
    (tmp_path / "net" / "readme").write_text("x")
    assert [p.type for p in load_file(path).plugins] == ["bridge", "a", "b"]

    write(path, loadOnlyInlinedPlugins=True)
    assert [p.type for p in load_file(path).plugins] == ["bridge"]

    write(path)
    (tmp_path / "net" / "10-a.conf").write_text('{"type": "../a"}')
    with pytest.raises(ConfigInvalid, match=r"10-a\.conf"):
        load_file(path)


plugin_documents = nearly(
    type=st.sampled_from(["bridge", "../x", ""]) | texts,
    capabilities=st.dictionaries(texts, st.booleans(), max_size=2),
    ipam=nearly(type=texts),
    prevResult=values,
)
network_documents = nearly(
    cniVersion=st.sampled_from(VERSIONS),
    cniVersions=st.lists(st.sampled_from(VERSIONS), max_size=2),
    name=st.just("net") | texts,
    disableCheck=st.booleans() | st.sampled_from(["true", "x"]),
    loadOnlyInlinedPlugins=st.booleans(),
    plugins=st.lists(plugin_documents, max_size=3),
)


@given(network_documents)
def test_any_document_is_a_network_or_invalid(document):
    for parse in (parse_network, parse_single):
        try:
            network = parse(encode(document))
        except ConfigInvalid:
            continue
        assert isinstance(network, NetworkConfig)
        assert all("/" not in p.type for p in network.plugins)
        assert parse_network(network.to_json()).plugins == network.plugins
        for plugin in network.plugins:
            assert json.loads(execution_config(network, plugin))["type"] == plugin.type


@given(st.binary(max_size=100) | st.text(max_size=100))
def test_any_text_is_a_network_or_invalid(text):
    for parse in (parse_network, parse_single):
        with contextlib.suppress(ConfigInvalid):
            parse(text)
