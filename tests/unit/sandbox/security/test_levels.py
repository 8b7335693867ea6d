"""SELinux levels of pods: two categories, nobody else's."""

from __future__ import annotations

import itertools

import pytest

from sandbox.host.errors import ResourceExhausted
from sandbox.security.levels import CATEGORIES, Levels, categories


def scripted(*numbers: int) -> Levels:
    """Levels whose chance gives these numbers, then the last for ever."""
    source = itertools.chain(numbers, itertools.repeat(numbers[-1]))
    return Levels(lambda below: next(source) % below)


def hold(levels: Levels, *used: str, wanted: str = "") -> str:
    with levels.hold(used, wanted=wanted, sensitivity="s0") as level:
        return level


def test_two_categories_the_lower_first() -> None:
    assert hold(scripted(900, 5)) == "s0:c5,c900"


def test_one_category_twice_is_no_pair() -> None:
    assert hold(scripted(7, 7, 8, 9)) == "s0:c8,c9"


@pytest.mark.parametrize("used", ["s0:c5,c900", "s0:c900,c5", "s0-s0:c5,c900"])
def test_a_level_in_use_is_not_given_again(used: str) -> None:
    assert hold(scripted(900, 5, 1, 2), used) == "s0:c1,c2"


def test_a_level_is_held_until_its_record_is_written_and_free_afterwards() -> None:
    levels = scripted(1, 2, 1, 2, 3, 4, 1, 2)
    with levels.hold((), wanted="", sensitivity="s0") as first:
        assert first == "s0:c1,c2"
        assert hold(levels) == "s0:c3,c4"
    assert hold(levels) == "s0:c1,c2"


def test_a_level_that_was_asked_for_is_reserved_and_may_be_shared() -> None:
    levels = scripted(1, 2, 3, 4)
    with levels.hold((), wanted="s0:c2,c1", sensitivity="s0") as first:
        assert first == "s0:c2,c1"
        assert hold(levels, wanted="s0:c1,c2") == "s0:c1,c2"
        assert hold(levels) == "s0:c3,c4"


def test_the_last_free_pair_is_found_and_then_there_is_none() -> None:
    pairs = [f"s0:c{a},c{b}" for a, b in itertools.combinations(range(CATEGORIES), 2)]
    assert hold(scripted(0), *pairs[:-1]) == "s0:c1022,c1023"
    with pytest.raises(ResourceExhausted):
        hold(scripted(0), *pairs)


def test_by_chance_levels_are_valid_and_differ() -> None:
    levels, used = Levels(), []
    for _ in range(200):
        used.append(hold(levels, *used))
    assert len({categories(level) for level in used}) == 200
    assert all(len(categories(level)) == 2 for level in used)
    assert all(max(categories(level)) < CATEGORIES for level in used)
