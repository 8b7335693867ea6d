"""Documents for property tests: any JSON, and JSON that nearly is what the parsers expect."""

from __future__ import annotations

from hypothesis import strategies as st

texts = st.text(max_size=12)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
json_objects = st.dictionaries(texts, values, max_size=6)


def nearly(**expected: st.SearchStrategy) -> st.SearchStrategy:
    """An object with these keys, each left out, as expected, or of any other value."""
    return st.fixed_dictionaries({}, optional={k: v | values for k, v in expected.items()})
