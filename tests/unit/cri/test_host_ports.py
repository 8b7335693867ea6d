"""Whose host port is whose."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cri.host_ports import HostPorts
from sandbox.host.errors import FailedPrecondition
from sandbox.model import (
    NamespaceMode,
    NamespaceOptions,
    PodConfig,
    PodMetadata,
    PodSandbox,
    PodSecurity,
    PortMapping,
    Protocol,
)
from sandbox.states import PodState

WEB = PortMapping(container_port=80, host_port=8080)


def config(name: str, *ports: PortMapping, on_host: bool = False) -> PodConfig:
    mode = NamespaceMode.NODE if on_host else NamespaceMode.POD
    return PodConfig(
        metadata=PodMetadata(name=name, uid="u", namespace="shop"),
        port_mappings=ports,
        security=PodSecurity(namespaces=NamespaceOptions(network=mode)),
    )


def ports_beside(*pods: PodSandbox) -> HostPorts:
    return HostPorts(SimpleNamespace(pods={p.id: p for p in pods}))


def pod(asked: PodConfig, state: PodState = PodState.READY) -> PodSandbox:
    return PodSandbox(id="a" * 64, config=asked, state=state, created_at_ns=1)


def test_the_refusal_names_the_port_and_the_pod():
    ports = ports_beside(pod(config("first", WEB)))
    words = r"8080/tcp is taken by pod shop/first.*" + "a" * 64
    with pytest.raises(FailedPrecondition, match=words), ports.claimed(config("second", WEB)):
        pass


@pytest.mark.parametrize("state", [s for s in PodState if s is not PodState.READY])
def test_a_pod_that_is_not_ready_holds_none(state):
    ports = ports_beside(pod(config("first", WEB), state))
    with ports.claimed(config("second", WEB)):
        pass


def test_two_at_once_are_one_and_a_failed_one_frees_it():
    ports = ports_beside()
    second = ports.claimed(config("second", WEB))
    first, refused = ports.claimed(config("first", WEB)), pytest.raises(FailedPrecondition)
    with first, refused, second:
        pass
    with ports.claimed(config("second", WEB)):
        pass


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        ("", "", True),
        ("", "10.0.0.1", True),
        ("10.0.0.1", "", True),
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("0.0.0.0", "10.0.0.2", True),
        ("::", "fd00::1", True),
        ("::", "10.0.0.1", False),
        ("fd00::1", "fd00:0::1", True),
        ("nonsense", "10.0.0.1", False),
    ],
)
def test_addresses(one, other, clash):
    taken = PortMapping(container_port=80, host_port=8080, host_ip=one)
    wanted = PortMapping(container_port=81, host_port=8080, host_ip=other)
    ports = ports_beside(pod(config("first", taken)))
    if clash:
        with pytest.raises(FailedPrecondition):
            ports.claimed(config("second", wanted)).__enter__()
    else:
        with ports.claimed(config("second", wanted)):
            pass


def test_other_protocols_no_host_port_and_the_nodes_own_network_do_not_clash():
    udp = PortMapping(protocol=Protocol.UDP, container_port=80, host_port=8080)
    none = PortMapping(container_port=80)
    ports = ports_beside(pod(config("first", WEB, none)))
    for asked in (config("udp", udp), config("none", none), config("host", WEB, on_host=True)):
        with ports.claimed(asked):
            pass
    on_host = ports_beside(pod(config("host", WEB, on_host=True)))
    with on_host.claimed(config("second", WEB)):
        pass
