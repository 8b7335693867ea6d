"""What plugins are told about a pod."""

from __future__ import annotations

import msgspec
import pytest

from cni.attachment import (
    UNLIMITED_BURST_BITS,
    Attachment,
    Bandwidth,
    Dns,
    IpRange,
    PortMapping,
    capability_arguments,
    check_attachment,
    cni_args,
)
from sandbox.host.errors import InvalidArgument


def pod(**changes) -> Attachment:
    fields = {
        "pod_id": "a1",
        "netns_path": "/run/netns/a1",
        "pod_name": "web-0",
        "pod_namespace": "shop",
        "pod_uid": "9d2f",
    }
    return Attachment(**{**fields, **changes})


def ports(*mappings: PortMapping):
    return capability_arguments(pod(port_mappings=mappings)).get("portMappings")


def test_arguments_in_the_order_that_plugins_know():
    assert cni_args(pod()) == (
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;"
        "K8S_POD_INFRA_CONTAINER_ID=a1;K8S_POD_UID=9d2f"
    )


@pytest.mark.parametrize("field", ["pod_name", "pod_namespace", "pod_uid"])
@pytest.mark.parametrize(
    "value", ["a;K8S_POD_NAMESPACE=kube-system", "a=b", "a\nb", "a\0b", "\x7f"]
)
def test_a_value_that_would_pass_for_other_arguments_is_refused(field, value):
    with pytest.raises(InvalidArgument, match="cannot be told"):
        check_attachment(pod(**{field: value}))


@pytest.mark.parametrize("pod_id", ["", "-a", ".a", "a/b", "../a", "a b", "a\n", "a" * 129, "é"])
def test_a_pod_id_that_is_no_plain_word_is_refused(pod_id):
    with pytest.raises(InvalidArgument, match="pod id"):
        check_attachment(pod(pod_id=pod_id))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a:b", "a b", "a" * 16])
def test_an_interface_name_the_kernel_would_refuse_is_refused(name):
    with pytest.raises(InvalidArgument, match="interface"):
        check_attachment(pod(interface=name))


def test_a_pod_without_wishes_has_no_capability_arguments():
    assert capability_arguments(pod()) == {}


def test_host_ports_are_told_with_lower_case_protocols_and_zero_means_none():
    told = ports(
        PortMapping(container_port=80, host_port=8080, protocol="TCP"),
        PortMapping(container_port=53, host_port=53, protocol="udp", host_ip="127.0.0.1"),
        PortMapping(container_port=81, host_port=0),
    )
    assert told == [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"},
    ]
    assert ports(PortMapping(container_port=0, host_port=0)) is None


@pytest.mark.parametrize(
    "mapping",
    [
        PortMapping(container_port=80, host_port=-1),
        PortMapping(container_port=80, host_port=65536),
        PortMapping(container_port=0, host_port=80),
        PortMapping(container_port=65536, host_port=80),
        PortMapping(container_port=80, host_port=80, protocol="icmp"),
        PortMapping(container_port=80, host_port=80, host_ip="localhost"),
    ],
)
def test_a_mapping_that_means_nothing_is_refused(mapping):
    with pytest.raises(InvalidArgument):
        check_attachment(pod(port_mappings=(mapping,)))


def test_the_same_host_port_twice():
    one = PortMapping(container_port=80, host_port=8080)
    assert len(ports(one, one)) == 1
    assert len(ports(one, PortMapping(container_port=80, host_port=8080, protocol="udp"))) == 2
    assert len(ports(one, PortMapping(container_port=80, host_port=8080, host_ip="::1"))) == 2
    with pytest.raises(InvalidArgument, match="twice"):
        ports(one, PortMapping(container_port=81, host_port=8080))


def test_a_rate_without_a_burst_gets_the_largest():
    told = capability_arguments(pod(bandwidth=Bandwidth(egress_bits_per_s=10, egress_burst_bits=0)))
    assert told == {"bandwidth": {"egressRate": 10, "egressBurst": UNLIMITED_BURST_BITS}}
    assert capability_arguments(pod(bandwidth=Bandwidth())) == {}
    with pytest.raises(InvalidArgument, match="negative"):
        check_attachment(pod(bandwidth=Bandwidth(ingress_bits_per_s=-1)))


def test_the_other_capabilities():
    told = capability_arguments(
        pod(
            dns=Dns(servers=("10.0.0.10",), searches=("svc.local",), options=("ndots:5",)),
            ip_ranges=((IpRange(subnet="10.1.0.0/24", range_start="10.1.0.9"),),),
            mac="02:00:5E:00:53:01",
            cgroup_path="/kubepods/pod1",
            aliases=("db",),
            annotations={"a/b": "c"},
        )
    )
    assert told == {
        "dns": {"servers": ["10.0.0.10"], "searches": ["svc.local"], "options": ["ndots:5"]},
        "ipRanges": [[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9"}]],
        "mac": "02:00:5E:00:53:01",
        "cgroupPath": "/kubepods/pod1",
        "aliases": ["db"],
        "io.kubernetes.cri.pod-annotations": {"a/b": "c"},
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"mac": "02:00"},
        {"ip_ranges": ((IpRange(subnet="10.1.0.0/99"),),)},
        {"ip_ranges": ((IpRange(subnet="10.1.0.0/24", gateway="x"),),)},
    ],
)
def test_addresses_that_are_none_are_refused(changes):
    with pytest.raises(InvalidArgument):
        check_attachment(pod(**changes))


def test_an_attachment_survives_being_stored():
    full = pod(
        port_mappings=(PortMapping(container_port=80, host_port=80),),
        bandwidth=Bandwidth(ingress_bits_per_s=1),
        annotations={"a": "b"},
    )
    assert msgspec.json.decode(msgspec.json.encode(full), type=Attachment) == full
