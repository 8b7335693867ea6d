"""The algebra of capabilities."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.host.errors import InvalidArgument, Unsupported
from sandbox.host.host_facts import CAPABILITIES, capability_names
from sandbox.model import Capabilities
from sandbox.security.capabilities import (
    DEFAULT_CAPABILITIES,
    container_capabilities,
    normalise,
)

HELD = frozenset(CAPABILITIES) - {"CAP_SYS_RESOURCE"}


def result(**fields: tuple[str, ...]) -> set[str]:
    sets = container_capabilities(Capabilities(**fields), held=HELD, privileged=False)
    assert sets.bounding == sets.effective == sets.permitted
    assert sets.inheritable == sets.ambient
    return set(sets.bounding)


def test_numbers_are_the_kernels() -> None:
    assert capability_names(1) == {"CAP_CHOWN"}
    assert capability_names(1 << 21) == {"CAP_SYS_ADMIN"}
    assert capability_names(1 << 40) == {"CAP_CHECKPOINT_RESTORE"}
    assert capability_names(0x1FFFEFFFFFF) == HELD
    assert capability_names(1 << 63) == frozenset()


def test_defaults_are_fourteen_and_only_what_the_daemon_holds() -> None:
    assert len(DEFAULT_CAPABILITIES) == 14
    assert result() == DEFAULT_CAPABILITIES
    sets = container_capabilities(Capabilities(), held=frozenset({"CAP_KILL"}), privileged=False)
    assert sets.bounding == ("CAP_KILL",)


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        (("ALL",), (), HELD),
        (("all",), ("net_raw",), HELD - {"CAP_NET_RAW"}),
        ((), ("ALL",), set()),
        (("CAP_NET_ADMIN",), ("ALL",), {"CAP_NET_ADMIN"}),
        (("net_admin",), ("cap_net_admin",), DEFAULT_CAPABILITIES),
        (("SYS_TIME",), ("KILL",), (DEFAULT_CAPABILITIES | {"CAP_SYS_TIME"}) - {"CAP_KILL"}),
        (("ALL",), ("ALL",), set()),
    ],
)
def test_algebra(add: tuple[str, ...], drop: tuple[str, ...], expected: set[str]) -> None:
    assert result(add=add, drop=drop) == set(expected)


def test_privileged_is_what_the_daemon_holds_and_no_more() -> None:
    sets = container_capabilities(Capabilities(drop=("ALL",)), held=HELD, privileged=True)
    assert set(sets.bounding) == HELD
    assert sets.inheritable == sets.ambient == ()


def test_named_capability_that_the_daemon_lacks_is_an_error() -> None:
    for fields in ({"add": ("SYS_RESOURCE",)}, {"add_ambient": ("SYS_RESOURCE",)}):
        with pytest.raises(Unsupported, match="CAP_SYS_RESOURCE"):
            result(**fields)
    assert result(drop=("SYS_RESOURCE",)) == DEFAULT_CAPABILITIES


@pytest.mark.parametrize(
    "name", ["", "CAP_", "NET_RAWW", "cap_\u017fetuid", "CAP_CAP_KILL", "A" * 10_000]
)
def test_unknown_names_are_errors_also_in_drop(name: str) -> None:
    for fields in ({"add": (name,)}, {"drop": (name,)}, {"add_ambient": (name,)}):
        with pytest.raises(InvalidArgument):
            result(**fields)


def test_ambient() -> None:
    sets = container_capabilities(
        Capabilities(add_ambient=("NET_ADMIN",)), held=HELD, privileged=False
    )
    assert sets.ambient == sets.inheritable == ("CAP_NET_ADMIN",)
    assert "CAP_NET_ADMIN" in sets.bounding
    with pytest.raises(InvalidArgument, match="both dropped"):
        result(add_ambient=("NET_ADMIN",), drop=("NET_ADMIN",))


names = st.sampled_from(["ALL", "all", *CAPABILITIES, *(n[4:].lower() for n in CAPABILITIES)])


@given(st.lists(names), st.lists(names), st.sets(st.sampled_from(CAPABILITIES)))
def test_never_more_than_held_and_dropped_names_are_gone(
    add: list[str], drop: list[str], held: set[str]
) -> None:
    request = Capabilities(add=tuple(add), drop=tuple(drop))
    try:
        sets = container_capabilities(request, held=frozenset(held), privileged=False)
    except Unsupported:
        return
    assert set(sets.bounding) <= held
    assert not set(sets.bounding) & {normalise(name) for name in drop}
    assert sets.inheritable == ()
