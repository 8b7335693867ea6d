"""The picture of a measurement: what it must not bend, hide or break."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from tests.kit.chart import Axis, Panel, draw, value_axis

SVG = "{http://www.w3.org/2000/svg}"


def parsed(*panels: Panel) -> ElementTree.Element:
    return ElementTree.fromstring(draw(panels, "pods", "where & when"))


def path_of(root: ElementTree.Element, name: str) -> list[tuple[float, float]]:
    """The points of a series' line, as drawn."""
    for line in root.iter(f"{SVG}path"):
        title = line.find(f"{SVG}title")
        if title is not None and title.text == name:
            numbers = [float(n) for n in re.findall(r"[\d.]+", line.attrib["d"])]
            return list(zip(numbers[::2], numbers[1::2], strict=True))
    raise LookupError(name)


def test_it_is_xml_whatever_the_names_are() -> None:
    root = parsed(Panel("a < b & c", "ms", {"<one>": [(1, 2.0), (2, 3.0)]}))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert "a < b & c" in texts
    assert "<one>" in texts
    assert "where & when" in texts


def test_a_larger_value_is_drawn_higher_and_more_pods_further_right() -> None:
    root = parsed(Panel("p", "ms", {"one": [(10, 1.0), (20, 4.0), (40, 2.0)]}))
    (x1, y1), (x2, y2), (x3, y3) = path_of(root, "one")
    assert x1 < x2 < x3
    assert y2 < y3 < y1
    assert x3 - x2 == pytest.approx(2 * (x2 - x1), abs=0.2)


@pytest.mark.parametrize("values", [[3.0, 7.0], [0.0, 0.2], [52.0, 229.0], [1.0], [999.0, 1001.0]])
def test_an_axis_from_nothing_holds_all_values_and_has_few_round_ticks(values: list[float]) -> None:
    axis = value_axis(values, 200, 30)
    assert not axis.logarithmic
    assert axis.low == 0
    assert axis.high >= max(values)
    assert all(30 <= axis.place(value) <= 200 for value in values)
    ticks = axis.ticks()
    assert ticks[0] == 0
    assert ticks[-1] == pytest.approx(axis.high)
    assert 3 <= len(ticks) <= 7


def test_values_far_apart_have_a_logarithmic_axis_with_whole_decades() -> None:
    axis = value_axis([0.7, 9268.0], 200, 30)
    assert axis.logarithmic
    assert (axis.low, axis.high) == (pytest.approx(0.1), pytest.approx(10_000))
    assert axis.ticks() == pytest.approx([0.1, 1, 10, 100, 1000, 10_000])
    assert axis.place(10) - axis.place(100) == pytest.approx(axis.place(1) - axis.place(10))


def test_ticks_never_lie_beyond_the_axis() -> None:
    assert Axis(0.0, 500.0, 0, 100).ticks() == [0, 200, 400]
    assert value_axis([], 0, 1).ticks()[-1] <= 1.0


def test_a_runtime_has_the_same_colour_in_all_panels() -> None:
    root = parsed(
        Panel("p", "ms", {"one": [(1, 1.0)], "two": [(1, 2.0)]}),
        Panel("q", "ms", {"two": [(1, 1.0), (2, 2.0)]}),
    )
    colours = {
        line.attrib["stroke"]
        for line in root.iter(f"{SVG}path")
        if (title := line.find(f"{SVG}title")) is not None and title.text == "two"
    }
    assert len(colours) == 1


def test_a_series_without_points_is_in_the_legend_and_draws_nothing() -> None:
    root = parsed(Panel("p", "ms", {"one": [(1, 1.0)], "none": []}))
    assert "none" in [text.text for text in root.iter(f"{SVG}text")]
    with pytest.raises(LookupError):
        path_of(root, "none")


def test_dark_pages_have_their_own_ink() -> None:
    assert "prefers-color-scheme: dark" in draw([Panel("p", "ms", {})], "pods")
