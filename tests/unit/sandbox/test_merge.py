"""Rows against second copies, pair by pair."""

from __future__ import annotations

import msgspec
import pytest

from sandbox.merge import merged
from sandbox.model import PodConfig, PodMetadata, PodSandbox
from sandbox.states import PodState


def pod(pod_id: str, state: PodState = PodState.READY, name: str = "", **more) -> PodSandbox:
    metadata = PodMetadata(name=name or pod_id, uid="u", namespace="ns")
    return PodSandbox(
        id=pod_id, config=PodConfig(metadata=metadata), state=state, created_at_ns=1, **more
    )


def of(*pods: PodSandbox):
    return {p.id: p for p in pods}, {}


READY, MAKING, STOPPED = pod("a"), pod("a", PodState.CREATING), pod("a", PodState.NOT_READY)


@pytest.mark.parametrize(
    ("row", "copy", "rebuilt", "true"),
    [
        (READY, READY, False, READY),
        (READY, STOPPED, False, READY),
        (MAKING, READY, False, READY),
        (READY, MAKING, False, READY),
        (None, READY, False, READY),
        (READY, None, False, READY),
        (READY, STOPPED, True, STOPPED),
        (STOPPED, READY, True, STOPPED),
        (READY, MAKING, True, READY),
        (READY, None, True, None),
        (None, READY, True, READY),
    ],
)
def test_pairs(row, copy, rebuilt, true):
    rows = of(row) if row else of()
    copies = of(copy) if copy else of()
    result = merged(rows, copies, rebuilt=rebuilt, restarted=False)
    assert result.pods == (of(true)[0] if true else {})
    assert result.write == ([true] if true is not None and true is not row else [])
    assert result.copy == ([true] if true is not None and copy != true else [])
    gone = row is not None and true is not row
    assert (row is not None and row.id in result.erase) == gone


@pytest.mark.parametrize(
    ("row", "copy", "true"),
    [(READY, None, READY), (None, None, STOPPED), (None, READY, READY), (READY, READY, READY)],
)
def test_a_copy_that_was_set_back_counts_only_where_nothing_else_is(row, copy, true):
    result = merged(
        of(row) if row else of(),
        of(copy) if copy else of(),
        rebuilt=True,
        restarted=False,
        set_back=of(STOPPED),
    )
    assert result.pods == {"a": true}
    assert result.copy == ([] if copy == true else [true])
    assert result.write == ([] if row == true else [true])


def test_after_a_boot_the_backup_is_all_there_is():
    result = merged(of(READY), of(), rebuilt=True, restarted=True)
    assert result.pods == {"a": READY}
    assert not result.write
    assert not result.adopted


def test_a_name_is_held_by_the_one_that_has_a_copy():
    old = pod("old", name="web")
    new = msgspec.structs.replace(pod("new", name="web"), created_at_ns=0)
    result = merged(of(old), of(new), rebuilt=False, restarted=False)
    assert list(result.pods) == ["new"]
    assert "old" in result.erase
    assert result.adopted == {"adopted": 1, "dropped": 1}
