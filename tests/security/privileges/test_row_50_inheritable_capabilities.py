"""A filled inheritable set lets any program with inheritable file capabilities raise its rights.

CVE-2022-24769 and its like in every runtime of the field: the set was filled for every container.
Seen here from outside (/proc/PID/status) and inside, for the pause process, the container and a
command in it, with both runtimes.
"""

from __future__ import annotations

import grpc
import pytest

from sandbox.host.host_facts import CAPABILITIES
from tests.kit.node import Node
from tests.kit.rights import (
    Change,
    capabilities,
    capability_sets,
    create_with,
    of_container,
    of_process,
    run_with,
)

SLEEP = ["sleep", "1000"]
NONE: frozenset[str] = frozenset()


def held(node: Node) -> frozenset[str]:
    """What the daemon itself may do."""
    return capability_sets(of_process(node.pid))["CapEff"]


@pytest.mark.parametrize("user", [0, 1000])
@pytest.mark.parametrize(
    "change",
    [
        capabilities(),
        capabilities(add=["NET_ADMIN"]),
        capabilities(add=["ALL"]),
        capabilities(drop=["ALL"]),
        capabilities(drop=["ALL"], add=["CHOWN"]),
    ],
    ids=["default", "added", "all", "none", "one"],
)
def test_inheritable_and_ambient_are_empty(
    node: Node, handler: str, user: int, change: Change
) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = run_with(node, pod, "main", SLEEP, change, user=user)
    outside = of_container(node, container)
    _, inside, _ = node.exec(container, "cat", "/proc/self/status")
    for status in (outside, inside, of_process(node.pause_program_pid(pod))):
        sets = capability_sets(status)
        assert sets["CapInh"] == sets["CapAmb"] == NONE
    # Who is not root and has nothing ambient has nothing at all after execve(2).
    for status in (outside, inside):
        assert not user or capability_sets(status)["CapEff"] == NONE
    assert capability_sets(outside)["CapBnd"] == capability_sets(inside)["CapBnd"]


def test_privileged_has_what_the_daemon_has_and_nothing_inheritable(
    node: Node, handler: str
) -> None:
    pod = node.run_pod("pod", handler=handler, privileged=True)
    container = node.run(pod, "main", SLEEP, privileged=True)
    for status in (
        of_container(node, container),
        node.exec(container, "cat", "/proc/self/status")[1],
    ):
        sets = capability_sets(status)
        assert sets["CapInh"] == sets["CapAmb"] == NONE
        assert sets["CapEff"] == sets["CapPrm"] == sets["CapBnd"] == held(node)


def test_all_is_what_the_daemon_has(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = run_with(node, pod, "main", SLEEP, capabilities(add=["all"], drop=["sys_time"]))
    sets = capability_sets(of_container(node, container))
    assert sets["CapEff"] == sets["CapBnd"] == held(node) - {"CAP_SYS_TIME"}


@pytest.mark.parametrize("user", [0, 1000])
def test_ambient_only_what_was_asked_for(node: Node, handler: str, user: int) -> None:
    """The field's only way to give a program of an ordinary user a right; exec has it too."""
    pod = node.run_pod("pod", handler=handler)
    asked = {"CAP_NET_BIND_SERVICE", "CAP_SYS_TIME"}
    change = capabilities(drop=["ALL"], add=["CHOWN"], ambient=["NET_BIND_SERVICE", "sys_time"])
    container = run_with(node, pod, "main", SLEEP, change, user=user)
    for status in (
        of_container(node, container),
        node.exec(container, "cat", "/proc/self/status")[1],
    ):
        sets = capability_sets(status)
        assert sets["CapInh"] == sets["CapAmb"] == asked
        assert sets["CapBnd"] == asked | {"CAP_CHOWN"}
        assert sets["CapEff"] == (asked if user else asked | {"CAP_CHOWN"})


def test_ambient_lets_an_ordinary_user_do_it(node: Node, handler: str) -> None:
    """Not only a bit in a file: changing an owner, which needs CAP_CHOWN."""
    pod = node.run_pod("pod", handler=handler)
    script = ["sh", "-c", "touch /tmp/x && chown 4242 /tmp/x && stat -c %u /tmp/x"]
    with_it = run_with(node, pod, "with", SLEEP, capabilities(ambient=["CHOWN"]), user=1000)
    without = run_with(node, pod, "without", SLEEP, user=1000)
    assert node.exec(with_it, *script)[:2] == (0, "4242\n")
    code, _, words = node.exec(without, *script)
    assert code != 0
    assert "not permitted" in words


def test_ambient_all_is_what_the_daemon_has(node: Node, handler: str) -> None:
    pod = node.run_pod("pod", handler=handler)
    container = run_with(node, pod, "main", SLEEP, capabilities(ambient=["ALL"]), user=1000)
    sets = capability_sets(of_container(node, container))
    assert sets["CapAmb"] == sets["CapInh"] == sets["CapEff"] == held(node)


@pytest.mark.parametrize(
    "change",
    [
        capabilities(drop=["CHOWN"], ambient=["CHOWN"]),
        capabilities(drop=["NO_SUCH_THING"]),
        capabilities(add=["CHOWN,SYS_ADMIN"]),
        capabilities(add=[""]),
    ],
    ids=["dropped and ambient", "unknown drop", "two in one", "empty"],
)
def test_what_cannot_be_meant_is_refused(node: Node, change: Change) -> None:
    pod = node.run_pod("pod")
    with pytest.raises(grpc.RpcError) as refused:
        create_with(node, pod, "main", SLEEP, change)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    assert not node.containers()


def test_a_capability_that_the_daemon_lacks_is_refused_by_name(node: Node) -> None:
    lacking = sorted(set(CAPABILITIES) - held(node))
    if not lacking:
        pytest.skip("the daemon holds every capability here")
    pod = node.run_pod("pod")
    for change in (capabilities(add=[lacking[0]]), capabilities(ambient=[lacking[0]])):
        with pytest.raises(grpc.RpcError) as refused:
            create_with(node, pod, "main", SLEEP, change)
        assert lacking[0] in refused.value.details()  # type: ignore[attr-defined]
    assert not node.containers()
