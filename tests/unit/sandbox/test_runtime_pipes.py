"""What streams may keep, each command by itself and all of them together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sandbox.runtime.pipes import SHARE_BYTES, Budget, Captured, Pool

MIB = 1 << 20


def test_without_a_pool_the_limit_is_all_there_is():
    budget = Budget(10)
    out, err = Captured(budget), Captured(budget)
    assert out.take(b"123456")
    assert err.take(b"abcdef"), "the writer is never held up"
    assert (out.data, err.data, budget.exceeded) == (b"123456", b"abcd", True)


def test_an_empty_pool_leaves_each_its_share():
    pool = Pool(MIB)
    with Budget(16 * MIB, pool) as greedy, Budget(16 * MIB, pool) as modest:
        Captured(greedy).take(bytes(8 * MIB))
        assert greedy.exceeded
        assert pool.left_bytes == 0
        out = Captured(modest)
        out.take(bytes(SHARE_BYTES + 1))
        assert (len(out.data), modest.exceeded) == (SHARE_BYTES, True)
    assert pool.left_bytes == MIB


def test_nothing_follows_a_gap():
    """What came after something was dropped would look like its continuation."""
    pool = Pool(MIB)
    with Budget(16 * MIB, pool) as late:
        out = Captured(late)
        with Budget(16 * MIB, pool) as greedy:
            Captured(greedy).take(bytes(2 * MIB))
            out.take(bytes(2 * SHARE_BYTES))
        assert pool.left_bytes == MIB
        out.take(b"more")
        assert len(out.data) == SHARE_BYTES
        assert late.exceeded


def test_a_limit_below_the_share_holds():
    pool = Pool(MIB)
    with Budget(1024, pool) as budget:
        out = Captured(budget)
        out.take(bytes(5000))
        assert (len(out.data), pool.left_bytes) == (1024, MIB)


@given(
    st.integers(0, 4 * SHARE_BYTES),
    st.integers(0, 4 * SHARE_BYTES),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, SHARE_BYTES)), max_size=60),
)
def test_the_pool_and_each_limit_are_never_passed(limit, whole, chunks):
    pool = Pool(whole)
    budgets = [Budget(limit, pool) for _ in range(4)]
    streams = [Captured(budget) for budget in budgets]
    for which, size in chunks:
        streams[which].take(bytes(size))
        held = [len(stream.data) for stream in streams]
        assert max(held) <= limit
        assert sum(max(0, each - SHARE_BYTES) for each in held) == whole - pool.left_bytes
        assert pool.left_bytes >= 0
    for budget in budgets:
        with budget:
            pass
    assert pool.left_bytes == whole
