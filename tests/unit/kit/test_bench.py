"""The table of the measurements: what it compares, and what it must not invent."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from tests.kit.bench import document, last_run, numbers, table
from tests.kit.measure import Target


def target(name: str, **samples: list[float]) -> Target:
    return Target(name=name, socket=Path("/none"), samples=samples, version="1")


def cells(text: str, row: str) -> list[str]:
    [line] = [line for line in text.splitlines() if line.startswith(f"| {row} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_medians_and_how_many_times_the_first_ones_they_are() -> None:
    text = table([target("one", Exec=[1.0, 2.0, 30.0]), target("two", Exec=[5.0])])
    assert cells(text, "Exec") == ["2.0", "5.0", "2.50"]


def test_a_call_that_one_of_them_lacks_is_a_dash_and_no_ratio() -> None:
    text = table([target("one", Events=[2.0]), target("two")])
    assert cells(text, "Events") == ["2.0", "–", "–"]  # noqa: RUF001
    text = table([target("one"), target("two", Events=[2.0])])
    assert cells(text, "Events") == ["–", "2.0", "–"]  # noqa: RUF001


def test_nothing_is_divided_by_a_delay_of_none() -> None:
    text = table([target("one", Events=[0.0]), target("two", Events=[2.0])])
    assert cells(text, "Events") == ["0.00", "2.0", "–"]  # noqa: RUF001


def test_all_samples_are_kept() -> None:
    [kept] = document([target("one", Exec=[1.0, 2.0])])["runtimes"]  # type: ignore[misc]
    assert kept == {"name": "one", "version": "1", "samples": {"Exec": [1.0, 2.0]}}


def test_numbers_of_an_option() -> None:
    assert numbers("100") == [100]
    assert numbers("100,500") == [100, 500]


@pytest.mark.parametrize("text", ["", "0", "10,-1", "ten", "1,,2"])
def test_what_is_no_list_of_numbers_is_refused(text: str) -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--scale", type=numbers)
    with pytest.raises(argparse.ArgumentError):
        parser.parse_args(["--scale", text])


def test_what_an_earlier_run_left_is_compared_with(tmp_path: Path) -> None:
    path = tmp_path / "last.json"
    assert last_run(path) is None
    assert last_run(None) is None
    path.write_text(json.dumps(document([target("one", Pull=[4.0], Gone=[1.0])])))
    last = last_run(path)
    text = table([target("one", Pull=[1.0, 2.0, 3.0], New=[1.0]), target("two", Pull=[8.0])], last)
    assert text.splitlines()[0].endswith("| two / one | one / last run |")
    assert cells(text, "Pull") == ["2.0", "8.0", "4.00", "0.50"]
    assert cells(text, "New")[-1] == "\N{EN DASH}"


@pytest.mark.parametrize("text", ["", "[]", '{"runtimes": [{"name": "x"}]}', '{"runtimes": 1}'])
def test_a_file_of_somebody_else_is_not_overwritten(tmp_path: Path, text: str) -> None:
    path = tmp_path / "notes.json"
    path.write_text(text)
    with pytest.raises(SystemExit, match=str(path)):
        last_run(path)


def test_a_floor_has_a_column_and_the_first_ones_ratio_to_it() -> None:
    floor = target("floor", RunPodSandbox=[20.0])
    text = table([target("one", RunPodSandbox=[30.0], Lists=[1.0]), target("two")], None, floor)
    assert text.splitlines()[0].endswith("| two / one | floor | one / floor |")
    assert cells(text, "RunPodSandbox")[-2:] == ["20.0", "1.50"]
    assert cells(text, "Lists")[-2:] == ["\N{EN DASH}", "\N{EN DASH}"]
    assert "* RunPodSandbox: namespaces" in text


def test_without_samples_of_a_floor_there_is_no_column() -> None:
    assert "floor" not in table([target("one", Lists=[1.0])], None, target("floor"))
