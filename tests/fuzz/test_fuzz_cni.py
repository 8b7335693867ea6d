"""Network configurations, results and error documents of plugins: values or our own errors.

Configurations are dropped into a directory by installers that root runs, results are printed by
programs; neither may do more than fail. What is accepted must be safe to use: a plugin's type is a
file name and nothing else, an address is one that a pod can have, and what is saved is read back.
"""

from __future__ import annotations

import ipaddress
import json
import tempfile
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from cni.config import (
    PLUGINS_LIMIT,
    VERSIONS,
    NetworkConfig,
    execution_config,
    load_directory,
    parse_network,
    parse_single,
)
from cni.document import decode_object, encode
from cni.errors import TEXT_LIMIT_CHARS, ConfigInvalid, PluginFailed, ResultInvalid, presentable
from cni.invoke import Command, PluginCall, explain
from cni.result import ADDRESS_LIMIT, as_version, parse_result, pod_addresses
from sandbox.host.processes import Finished
from tests.kit.fuzzing import assert_tellable, fuzzed

texts = st.text(max_size=12)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | texts
    | st.sampled_from(["\ud800", "\0", "a" * 300])
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def nearly(**expected: st.SearchStrategy[object]) -> st.SearchStrategy[dict[str, object]]:
    """An object with these keys, each left out, as it should be, or of anything."""
    usual = {key: st.one_of(value, value, value, anything) for key, value in expected.items()}
    return st.fixed_dictionaries({}, optional=usual)


types = st.sampled_from(
    [
        "bridge", "portmap", "host-local", "../x", "/bin/sh", "", ".", "..", "a/b", "a\0b",
        "x" * 256, "a\n", "\u0430", "-", "a b", "..\\x", "x" * 10_000,
    ]
)  # fmt: skip
versions = st.sampled_from([*VERSIONS, "0.3", "2.0.0", "", "1.0.0 "])
plugins = nearly(
    type=types,
    capabilities=st.dictionaries(texts, st.booleans(), max_size=2),
    ipam=nearly(type=types),
    runtimeConfig=anything,
    prevResult=anything,
)
good_plugins = st.fixed_dictionaries(
    {"type": st.sampled_from(["bridge", "portmap", "tuning"])}, optional={"x": anything}
)
networks = nearly(
    name=st.sampled_from(["net", "a.b", "../x", "", "a/b", "x" * 300, "n\n"]),
    cniVersion=versions,
    cniVersions=st.lists(versions, max_size=3),
    plugins=st.lists(good_plugins | plugins, max_size=4),
    disableCheck=st.sampled_from([True, "true", "FALSE", "maybe", "\u212a"]),
    disableGC=st.booleans(),
    loadOnlyInlinedPlugins=st.booleans(),
    type=types,
)


@st.composite
def written(draw: st.DrawFn, documents: st.SearchStrategy[object]) -> bytes:
    """The document as JSON, now and then damaged, nested or noise."""
    text = json.dumps(draw(documents), ensure_ascii=draw(st.booleans()))
    data = text.encode("utf-8", "surrogatepass")
    match draw(st.integers(0, 9)):
        case 0 if data:
            at = draw(st.integers(0, len(data) - 1))
            data = data[:at] + draw(st.binary(max_size=4)) + data[at + draw(st.integers(0, 4)) :]
        case 1:
            data = b'{"a":' * draw(st.integers(0, 3000)) + data
        case 2:
            data = draw(st.binary(max_size=200))
        case _:
            pass
    return data


def check_network(network: NetworkConfig) -> None:
    """What is accepted can be used: run, saved, and read again."""
    assert 1 <= len(network.plugins) <= PLUGINS_LIMIT
    assert network.version in VERSIONS
    assert Path(network.name).name == network.name
    for plugin in network.plugins:
        assert Path(plugin.type).name == plugin.type
        assert plugin.type.isascii()
        assert plugin.type.isprintable()
        ipam = plugin.document.get("ipam")
        if isinstance(ipam, dict) and isinstance(ipam.get("type"), str) and ipam["type"]:
            assert Path(str(ipam["type"])).name == ipam["type"]
        sent = decode_object(execution_config(network, plugin))
        assert sent["name"] == network.name
        assert sent["cniVersion"] == network.version
        assert not {"runtimeConfig", "prevResult", "capabilities"} & set(sent)
    again = parse_network(network.to_json())
    assert [p.type for p in again.plugins] == [p.type for p in network.plugins]
    assert (again.name, again.version) == (network.name, network.version)


@fuzzed(500)
@given(written(networks | anything))
@example(b'{"plugins":' * 50_000)
@example(b'{"name":"n","plugins":[' + b'{"type":"bridge"},' * 40 + b'{"type":"bridge"}]}')
def test_any_bytes_are_a_network_that_can_be_used_or_invalid(text: bytes) -> None:
    for parse in (parse_network, parse_single):
        try:
            network = parse(text, source="x")
        except ConfigInvalid as error:
            assert_tellable(error)
            continue
        check_network(network)


@fuzzed(100)
@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c\n", "é"]), written(networks)), max_size=3))
def test_any_directory_of_files_gives_a_network_or_says_what_is_wrong(
    found: list[tuple[str, bytes]],
) -> None:
    with tempfile.TemporaryDirectory() as name:
        for number, (stem, text) in enumerate(found):
            suffix = (".conf", ".conflist", ".json")[number % 3]
            Path(name, f"{stem}{number}{suffix}").write_bytes(text)
        loaded = load_directory(Path(name))
        assert len(loaded.problems) <= len(found)
        if loaded.config is not None:
            check_network(loaded.config)


cidrs = (
    st.ip_addresses().map(lambda a: f"{a}/{a.max_prefixlen}")
    | st.sampled_from(
        [
            "10.1.2.3/24", "fd00::1/64", "fe80::1%eth0/64", "10.1.2.3", "10.1.2.3/33", "0.0.0.0/0",
            "::/0", "127.0.0.1/8", "224.0.0.1/4", "10.1.2.3/255.255.255.0", "\u0661.1.1.1/8",
            "10.1.2.3/24\n", "::ffff:10.0.0.1/128",
        ]
    )
    | texts
)  # fmt: skip
gateways = st.ip_addresses().map(str) | texts
routes = st.lists(nearly(dst=cidrs, gw=gateways, mtu=st.integers()), max_size=2)
results = nearly(
    cniVersion=versions,
    interfaces=st.lists(nearly(name=st.just("eth0"), sandbox=st.just("/run/netns/x")), max_size=2),
    ips=st.lists(nearly(address=cidrs, gateway=gateways, interface=st.integers(-2, 3)), max_size=3),
    routes=routes,
    dns=nearly(nameservers=st.lists(texts, max_size=2), domain=texts),
    ip4=nearly(ip=cidrs, gateway=gateways, routes=routes),
    ip6=nearly(ip=cidrs),
)


@fuzzed(600)
@given(written(results | anything), st.sampled_from(VERSIONS))
@example(
    b'{"cniVersion":"1.0.0","ips":[' + b'{"address":"10.0.0.1/8"},' * 300 + b'{"address":"::/8"}]}',
    "1.0.0",
)
def test_any_bytes_are_a_result_with_real_addresses_or_invalid(text: bytes, version: str) -> None:
    try:
        result = parse_result(text, version=version)
        found = pod_addresses(result, interface="eth0", preference="ipv6")
    except ResultInvalid as error:
        assert_tellable(error)
        return
    assert 1 <= len(found) <= ADDRESS_LIMIT
    for address in found:
        value = ipaddress.ip_address(address)
        assert not value.is_loopback
        assert not value.is_unspecified
        assert not value.is_multicast
        assert address == str(value)
    for other in VERSIONS:
        # As the next plugin of the chain gets it, and as a later life of the daemon reads it.
        again = parse_result(encode(as_version(result, other)), version=other)
        assert {ip.address for ip in again.ips} <= {ip.address for ip in result.ips}
    same = parse_result(encode(as_version(result, result.version)), version=version)
    assert pod_addresses(same, interface="eth0", preference="ipv6") == found


errors = nearly(cniVersion=versions, code=st.integers(0, 999), msg=texts, details=texts)
CALL = PluginCall(Command.ADD, "bridge", Path("/opt/bridge"), {"CNI_COMMAND": "ADD"}, b"", 1.0)


@fuzzed(300)
@given(
    written(errors | anything),
    st.binary(max_size=300),
    st.binary(max_size=40),
    st.integers(-64, 255).filter(bool),
)
def test_any_failure_of_a_plugin_is_told_in_one_line(
    stdout: bytes, stderr: bytes, before: bytes, status: int
) -> None:
    finished = Finished(
        argv=("/opt/bridge",), exit_status=status, stdout=before + stdout, stderr=stderr, took_ns=1
    )
    error = explain(CALL, finished)
    assert isinstance(error, PluginFailed)
    assert len(error.message) < 2 * TEXT_LIMIT_CHARS + 200
    assert not set(error.message) & {chr(code) for code in (*range(32), 127)}
    error.message.encode()  # what cannot be sent would fail the answer instead


words = st.text(st.characters(exclude_characters="\"'\\", exclude_categories=("Cs",)), max_size=40)


@fuzzed(300)
@given(words, words, st.sampled_from(["token", "password", "apiKey"]), st.integers(20, 6000))
def test_what_is_shown_of_a_plugin_is_bounded_and_has_no_secret(
    before: str, behind: str, word: str, length: int
) -> None:
    secret = ("hunter2" * (length // 7 + 1))[:length]
    shown = presentable(f'{before} {{"{word}": "{secret}"}} {behind}')
    assert len(shown) <= TEXT_LIMIT_CHARS
    assert "hunter2" not in shown
