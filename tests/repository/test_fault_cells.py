"""The register of the fault matrix and the tests that say which of its cells they hold.

`tests/faults/cells.json` has one entry a cell: `cell`, `section`, `fault`, the `invariants` that it
is judged by, the `drivers` that bring the fault about, `quick` when it belongs to the short choice,
and, where no test holds it, one of `open` (what is still to be written) and `impossible` (why one
machine cannot do it). Which tests hold a cell is said by `@pytest.mark.cell` alone.
"""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tests.kit.cells import REGISTER, register
from tests.kit.judge import INVARIANTS
from tests.kit.matrix import held

#: How many cells each section of the matrix has, and how many stories there are.
SIZES = {
    "3.2": 43,
    "3.3": 14,
    "3.4": 17,
    "3.5": 14,
    "3.6": 15,
    "3.7": 12,
    "3.8": 9,
    "3.9": 12,
    "3.10": 12,
    "3.11": 7,
    "3.12": 7,
    "3.13": 9,
    # The stories.
    "4": 15,
}
ENTRIES = json.loads(REGISTER.read_text())


def test_every_cell_of_the_matrix_is_there_once() -> None:
    assert Counter(entry["section"] for entry in ENTRIES) == SIZES
    assert len({entry["cell"] for entry in ENTRIES}) == len(ENTRIES)


def test_entries_say_what_they_are() -> None:
    for entry in ENTRIES:
        assert entry["fault"], entry
        assert entry["drivers"], entry
        assert set(entry["invariants"]) <= INVARIANTS.keys(), entry


@pytest.mark.slow
def test_the_register_and_the_tests_agree(capsys: pytest.CaptureFixture[str]) -> None:
    tests = held()
    known = register()
    assert not tests.keys() - {cell.name for cell in known}, "a test holds a cell that is none"
    for cell in known:
        said = [word for word in (cell.open, cell.impossible) if word]
        if cell.name in tests:
            assert not said, f"{cell.name} is held by {tests[cell.name]}: the register is old"
        else:
            assert len(said) == 1, f"nothing holds {cell.name}, and it is not said why"
            assert not cell.quick, f"{cell.name} belongs to the short choice and has no test"
    left = [cell.name for cell in known if cell.open]
    with capsys.disabled():
        print(f"\n{len(left)} cells of the fault matrix are open: {' '.join(left)}")
