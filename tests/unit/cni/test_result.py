"""Results of every version: read, refused, converted."""

from __future__ import annotations

import contextlib
import ipaddress
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.config import VERSIONS
from cni.document import encode
from cni.errors import ResultInvalid
from cni.result import ADDRESS_LIMIT, as_version, parse_result, pod_addresses
from tests.unit.cni.strategies import nearly, texts, values

SANDBOX = "/run/netns/pod"

DUAL = {
    "cniVersion": "1.1.0",
    "interfaces": [
        {"name": "cni0", "mac": "aa:bb:cc:dd:ee:ff"},
        {"name": "veth1", "mtu": 1500},
        {"name": "eth0", "sandbox": SANDBOX, "mtu": 1500},
    ],
    "ips": [
        {"address": "fd00::5/64", "gateway": "fd00::1", "interface": 2},
        {"address": "10.1.0.5/24", "gateway": "10.1.0.1", "interface": 2},
    ],
    "routes": [{"dst": "0.0.0.0/0", "mtu": 1400}, {"dst": "::/0", "gw": "fd00::1"}],
    "dns": {"nameservers": ["10.1.0.1"], "search": ["local"]},
}


def read(document, version="1.1.0"):
    return parse_result(json.dumps(document), version=version)


def addresses(document, preference="cni"):
    return pod_addresses(read(document), interface="eth0", preference=preference)


def with_ips(*texts, **keys):
    return {"cniVersion": "1.0.0", "ips": [{"address": text} for text in texts], **keys}


def test_addresses_of_both_families_with_the_preferred_one_first():
    assert addresses(DUAL) == ("fd00::5", "10.1.0.5")
    assert addresses(DUAL, "ipv4") == ("10.1.0.5", "fd00::5")
    assert addresses(DUAL, "ipv6") == ("fd00::5", "10.1.0.5")
    assert addresses(with_ips("fd00::7/64"), "ipv4") == ("fd00::7",)


def test_repeated_addresses_count_once():
    assert addresses(with_ips("10.0.0.5/24", "10.0.0.6/24", "10.0.0.5/16")) == (
        "10.0.0.5",
        "10.0.0.6",
    )


def test_only_addresses_of_the_pods_interface_count():
    document = {
        "interfaces": [
            {"name": "eth0"},
            {"name": "eth0", "sandbox": SANDBOX},
            {"name": "net1", "sandbox": SANDBOX},
        ],
        "ips": [
            {"address": "10.0.0.1/24", "interface": 0},
            {"address": "10.0.0.5/24", "interface": 1},
            {"address": "10.0.1.5/24", "interface": 2},
        ],
    }
    assert addresses(document) == ("10.0.0.5",)


def test_an_interface_of_another_name_in_the_sandbox_will_do():
    document = {
        "interfaces": [{"name": "veth0"}, {"name": "enp1", "sandbox": "vm-1"}],
        "ips": [
            {"address": "10.0.0.1/24", "interface": 0},
            {"address": "10.0.0.5/24", "interface": 1},
        ],
    }
    assert addresses(document) == ("10.0.0.5",)


def test_interfaces_without_sandboxes_are_believed_by_name():
    document = {
        "interfaces": [{"name": "veth0"}, {"name": "eth0"}],
        "ips": [{"address": "10.0.0.5/24", "interface": 1}],
    }
    assert addresses(document) == ("10.0.0.5",)


@pytest.mark.parametrize(
    "document",
    [
        {},
        with_ips(),
        {"ips": None},
        {"interfaces": [{"name": "br0"}], "ips": [{"address": "10.0.0.1/24", "interface": 0}]},
    ],
)
def test_a_pod_without_an_address_is_of_no_use(document):
    with pytest.raises(ResultInvalid, match="no address for interface eth0"):
        addresses(document)


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (with_ips("10.0.0.5"), "CIDR"),
        (with_ips("10.0.0.5/33"), "CIDR"),
        (with_ips("fe80::1%eth0/64"), "CIDR"),
        (with_ips("host/24"), "CIDR"),
        (with_ips(""), "CIDR"),
        (with_ips("0.0.0.0/0"), "no pod can have"),
        (with_ips("224.0.0.1/8"), "no pod can have"),
        (with_ips("127.0.0.1/8"), "no pod can have"),
        (with_ips("::/0"), "no pod can have"),
        ({"ips": [{"address": "10.0.0.5/24", "gateway": "x"}]}, "gateway"),
        ({"ips": [{"address": "10.0.0.5/24", "interface": 0}]}, "not listed"),
        ({"interfaces": [{}], "ips": [{"address": "10.0.0.5/24", "interface": -1}]}, "not listed"),
        ({"ips": [{"address": "10.0.0.5/24", "interface": "0"}]}, "interface"),
        ({"ips": [{}]}, "address"),
        ({"ips": {}}, "ips"),
        ({"routes": [{"dst": "default"}]}, "a route that is not in CIDR form"),
        ({"cniVersion": "9.0.0"}, "unknown CNI version '9.0.0'"),
        ({"cniVersion": 1}, "cniVersion"),
        (with_ips(*[f"10.0.{n // 250}.{n % 250 + 1}/8" for n in range(ADDRESS_LIMIT + 1)]), "more"),
    ],
)
def test_what_cannot_be_used_is_named(document, why):
    with pytest.raises(ResultInvalid, match=why):
        read(document)


def test_a_result_without_a_version_is_of_the_networks():
    document = {"ips": [{"version": "4", "address": "10.0.0.5/24"}]}
    result = read(document, "0.3.1")
    assert result.version == "0.3.1"
    assert as_version(result, "0.3.1") == {**document, "cniVersion": "0.3.1"}


def test_a_result_of_the_right_version_keeps_keys_that_nobody_knows():
    document = {**DUAL, "vendor.example/x": {"y": 1}}
    assert as_version(read(document), "1.1.0") == document


def test_the_first_versions():
    document = {
        "ip4": {"ip": "10.0.0.5/24", "gateway": "10.0.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
        "ip6": {"ip": "fd00::5/64"},
    }
    result = read(document, "0.2.0")
    assert pod_addresses(result, interface="eth0", preference="ipv4") == ("10.0.0.5", "fd00::5")
    assert as_version(result, "0.4.0") == {
        "cniVersion": "0.4.0",
        "ips": [
            {"version": "4", "address": "10.0.0.5/24", "gateway": "10.0.0.1"},
            {"version": "6", "address": "fd00::5/64"},
        ],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dns": {},
    }


def test_from_the_latest_to_each_of_the_others():
    result = read(DUAL)

    older = as_version(result, "1.0.0")
    assert "mtu" not in older["interfaces"][2]
    assert older["routes"] == [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "fd00::1"}]
    assert "version" not in older["ips"][0]

    assert [ip["version"] for ip in as_version(result, "0.3.1")["ips"]] == ["6", "4"]

    oldest = as_version(result, "0.2.0")
    assert oldest == {
        "cniVersion": "0.2.0",
        "ip4": {
            "ip": "10.1.0.5/24",
            "gateway": "10.1.0.1",
            "routes": [{"dst": "0.0.0.0/0"}],
        },
        "ip6": {
            "ip": "fd00::5/64",
            "gateway": "fd00::1",
            "routes": [{"dst": "::/0", "gw": "fd00::1"}],
        },
        "dns": {"nameservers": ["10.1.0.1"], "search": ["local"]},
    }


@pytest.mark.parametrize("version", [v for v in VERSIONS if v >= "0.3.0"])
def test_there_and_back_again_keeps_the_addresses(version):
    there = as_version(read(DUAL), version)
    back = parse_result(encode(there), version=version)
    assert pod_addresses(back, interface="eth0", preference="cni") == addresses(DUAL)


cidrs = st.ip_addresses().map(lambda a: f"{a}/{a.max_prefixlen}") | texts
routes = st.lists(nearly(dst=cidrs, gw=st.ip_addresses().map(str), mtu=st.integers()), max_size=2)
result_documents = nearly(
    cniVersion=st.sampled_from(VERSIONS),
    interfaces=st.lists(nearly(name=st.just("eth0"), sandbox=st.just(SANDBOX)), max_size=2),
    ips=st.lists(nearly(address=cidrs, interface=st.integers(-1, 3)), max_size=3),
    routes=routes,
    dns=nearly(nameservers=st.lists(texts, max_size=2), domain=texts),
    ip4=nearly(ip=cidrs, gateway=texts, routes=routes),
    ip6=nearly(ip=cidrs),
)


@given(result_documents | st.dictionaries(texts, values, max_size=4), st.sampled_from(VERSIONS))
def test_any_document_is_a_result_or_invalid(document, version):
    try:
        result = parse_result(encode(document), version=version)
        found = pod_addresses(result, interface="eth0", preference="ipv4")
    except ResultInvalid:
        return
    assert found
    for address in found:
        ipaddress.ip_address(address)
    for other in VERSIONS:
        again = parse_result(encode(as_version(result, other)), version=other)
        assert len(again.ips) <= len(result.ips)


@given(st.binary(max_size=100))
def test_any_text_is_a_result_or_invalid(text):
    with contextlib.suppress(ResultInvalid):
        parse_result(text, version="1.0.0")
