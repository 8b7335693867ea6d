"""The table of known holes of this field, and that each is tried here or said why it cannot be.

`rows.json` has one entry a row, in the order of the list it was made from:

- `row`, `ids`, `hole`: its number, its public identifiers (none where it is a design rule) and the
  cause in one line.
- `folder`: the part of `tests/security` that its tests are in.
- exactly one of
  `tests`: `path/of/file.py::test_function`, some of which are older than the table and stand where
  the code they test has its other tests;
  `cannot_apply`: one line on why there is nothing here that could have the hole;
  `planned`: where its test is going to be; a failure, since PLANNED_ALLOWED is false.

A file of tests is `FOLDER/test_row_NN_what_is_tried.py`, or `test_rows_NN_NN_...` with the number
of each row that it is for when one cause has several.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
ROWS = json.loads((HERE / "rows.json").read_text())
FATES = ("tests", "cannot_apply", "planned")
FOLDERS = {
    "layers": range(1, 15),
    "registry": range(15, 22),
    "users": range(22, 32),
    "paths_and_mounts": range(32, 45),
    "privileges": range(45, 57),
    "streaming": range(57, 66),
    "host_exposure": range(66, 74),
    "network": range(74, 79),
    "checkpoints": range(79, 84),
}
#: Whether a row may have its test still to be written. Every row has one: a new row comes with its
#: own, or makes this true for the time until then.
PLANNED_ALLOWED = False


@functools.cache
def functions_of(path: Path) -> frozenset[str]:
    """Names of the test functions of a file, as pytest would collect them."""
    tree = ast.parse(path.read_text())
    return frozenset(
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    )


def numbers_in(path: Path) -> list[int]:
    """Row numbers that the name of a file of tests begins with."""
    match = re.match(r"test_rows?((?:_\d\d)+)_", path.name)
    return [int(number) for number in match.group(1).split("_")[1:]] if match else []


def files_of_tests() -> list[Path]:
    return sorted(path for path in HERE.glob("*/test_*.py"))


def test_no_row_is_missing_or_there_twice():
    assert [row["row"] for row in ROWS] == list(range(1, 84))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row["row"]))
def test_row_is_tried_or_cannot_apply(row: dict[str, object]):
    assert row["row"] in FOLDERS[str(row["folder"])]
    assert row["hole"]
    [fate] = [each for each in FATES if each in row]
    assert row[fate], f"{fate} is empty"
    if fate == "planned":
        assert PLANNED_ALLOWED, f"nothing tries row {row['row']} yet: {row['planned']}"
    elif fate == "cannot_apply":
        assert "\n" not in str(row[fate])
    else:
        assert isinstance(row["tests"], list)
        for name in row["tests"]:
            path, _, function = name.partition("::")
            assert (TOP / path).is_file(), f"{name}: no such file"
            assert function in functions_of(TOP / path), f"{name}: no such test"


@pytest.mark.parametrize("path", files_of_tests(), ids=lambda path: path.name)
def test_file_says_what_it_is_for(path: Path):
    """Its name has the row, the row names it, and its docstring says what is tried."""
    numbers = numbers_in(path)
    assert numbers, "the name must begin with test_row_NN_ or test_rows_NN_NN_"
    assert ast.get_docstring(ast.parse(path.read_text())), "a docstring says ids, cause and trial"
    for number in numbers:
        row = ROWS[number - 1]
        assert path.parent.name == row["folder"]
        named = [name.partition("::")[0] for name in row.get("tests", ())]
        assert str(path.relative_to(TOP)) in named, f"row {number} does not name it"


def test_identifiers_are_identifiers():
    pattern = re.compile(r"CVE-\d{4}-\d{4,7}|GHSA(-[0-9a-z]{4}){3}")
    assert [each for row in ROWS for each in row["ids"] if not pattern.fullmatch(each)] == []
