"""Plain SVG of lines over a number: a few panels, a legend, readable on light and dark pages.

    Path("scale.svg").write_text(draw([Panel("start", "ms", {"podwright": [(10, 52.0)]})], "pods"))

An axis of values is logarithmic where the largest is far above the smallest: otherwise the lower
lines would lie on the axis. Colours are chosen by the series' place, so the same runtime has the
same in all panels; a reader who cannot tell them has the shape of the marks and the line.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

Points = Sequence[tuple[float, float]]

#: Width and height of a panel with its labels, and how many stand beside each other.
_PANEL_WIDTH: Final = 440
_PANEL_HEIGHT: Final = 270
_COLUMNS: Final = 2
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 34, 40
_HEAD: Final = 40
_FOOT: Final = 30
#: Above this ratio of largest to smallest an axis is logarithmic.
_LOGARITHMIC: Final = 25.0
_STEPS: Final = (1.0, 2.0, 2.5, 5.0, 10.0)

#: Middle tones, which stand out from white and from near black.
COLOURS: Final = ("#2f81f7", "#d9730d", "#2da44e", "#a371f7", "#cf222e")
_DASHES: Final = ("", "7 4", "2 3", "9 3 2 3", "4 4")

_STYLE: Final = """\
text { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #24292f }
.title { font-size: 14px; font-weight: 600 }
.small { font-size: 11px; fill: #57606a }
.grid { stroke: #d0d7de; stroke-width: 1 }
.line { fill: none; stroke-width: 2; stroke-linejoin: round }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .small { fill: #9198a1 }
  .grid { stroke: #3d444d }
}"""


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture: what is told, in which unit, and the points of each series in order of x."""

    title: str
    unit: str
    series: Mapping[str, Points]


@dataclass(frozen=True, slots=True)
class Axis:
    """From values to pixels.

    Attributes:
        low, high: ends in values; low is above 0 where it is logarithmic.
        first, last: the same ends in pixels.
    """

    low: float
    high: float
    first: float
    last: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Where a value lies; what is outside lies on the edge."""
        bounded = min(max(value, self.low), self.high)
        if self.logarithmic:
            part = math.log(bounded / self.low) / math.log(self.high / self.low)
        else:
            part = (bounded - self.low) / (self.high - self.low)
        return self.first + part * (self.last - self.first)

    def ticks(self) -> list[float]:
        """Round values for lines of the grid."""
        if self.logarithmic:
            decades = range(round(math.log10(self.low)), round(math.log10(self.high)) + 1)
            return [10.0**decade for decade in decades]
        step = _round_step((self.high - self.low) / 4)
        return [n * step for n in range(int(self.high / step + 1e-9) + 1)]


def value_axis(values: Sequence[float], first: float, last: float) -> Axis:
    """An axis that holds all values and begins at 0, or is logarithmic with whole decades."""
    above = [value for value in values if value > 0]
    if not above:
        return Axis(0.0, 1.0, first, last)
    if max(above) / min(above) > _LOGARITHMIC:
        low = 10.0 ** math.floor(math.log10(min(above)))
        high = 10.0 ** math.ceil(math.log10(max(above)))
        return Axis(low, high, first, last, logarithmic=True)
    step = _round_step(max(above) / 4)
    return Axis(0.0, step * math.ceil(max(above) / step - 1e-9), first, last)


def _round_step(rough: float) -> float:
    """The least of 1, 2, 2.5, 5 times a power of ten that is not below `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in _STEPS if step * power >= rough * (1 - 1e-9))


def draw(panels: Sequence[Panel], across: str, caption: str = "") -> str:
    """The whole document.

    Args:
        panels: in reading order.
        across: what all of them are drawn over.
        caption: a line below, such as where the numbers come from.
    """
    names = list(dict.fromkeys(name for panel in panels for name in panel.series))
    rows = math.ceil(len(panels) / _COLUMNS)
    width = _PANEL_WIDTH * min(_COLUMNS, len(panels))
    height = _HEAD + rows * _PANEL_HEIGHT + _FOOT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">',
        f"<title>{escape(', '.join(p.title for p in panels))} over {escape(across)}</title>",
        f"<style>{_STYLE}</style>",
        *_legend(names),
    ]
    for number, panel in enumerate(panels):
        x = number % _COLUMNS * _PANEL_WIDTH
        y = _HEAD + number // _COLUMNS * _PANEL_HEIGHT
        parts += [f'<g transform="translate({x} {y})">', *_panel(panel, names, across), "</g>"]
    parts.append(f'<text class="small" x="{_LEFT}" y="{height - 10}">{escape(caption)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _legend(names: Sequence[str]) -> Iterator[str]:
    x = float(_LEFT)
    for number, name in enumerate(names):
        yield (
            f'<path class="line" d="M{x:g} 22h28" stroke="{_colour(number)}"{_dash(number)}/>'
            f"{_mark(number, x + 14, 22)}"
            f'<text x="{x + 36:g}" y="26">{escape(name)}</text>'
        )
        x += 60 + 6.5 * len(name)


def _panel(panel: Panel, names: Sequence[str], across: str) -> Iterator[str]:
    right, bottom = _PANEL_WIDTH - _RIGHT, _PANEL_HEIGHT - _BOTTOM
    points = [point for line in panel.series.values() for point in line]
    ys = value_axis([y for _, y in points], bottom, _TOP)
    xs = Axis(0.0, max((x for x, _ in points), default=1.0) or 1.0, _LEFT, right)
    scale = ", logarithmic" if ys.logarithmic else ""
    yield f'<text class="title" x="{_LEFT}" y="18">{escape(panel.title)}</text>'
    unit = escape(panel.unit) + scale
    yield f'<text class="small" x="{right}" y="18" text-anchor="end">{unit}</text>'
    for value in ys.ticks():
        y = ys.place(value)
        yield f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>'
        yield (
            f'<text class="small" x="{_LEFT - 6}" y="{y + 4:.1f}" '
            f'text-anchor="end">{value:g}</text>'
        )
    for value in xs.ticks():
        yield (
            f'<text class="small" x="{xs.place(value):.1f}" y="{bottom + 17}" '
            f'text-anchor="middle">{value:g}</text>'
        )
    yield (
        f'<text class="small" x="{(_LEFT + right) / 2:g}" y="{bottom + 32}" '
        f'text-anchor="middle">{escape(across)}</text>'
    )
    for name, line in panel.series.items():
        number = names.index(name)
        places = [(xs.place(x), ys.place(y)) for x, y in line]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        if path:
            yield (
                f'<path class="line" d="M{path}" stroke="{_colour(number)}"{_dash(number)}>'
                f"<title>{escape(name)}</title></path>"
            )
        yield "".join(_mark(number, x, y) for x, y in places)


def _mark(number: int, x: float, y: float) -> str:
    """A dot, a square or a diamond."""
    colour = _colour(number)
    if number % 3 == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>'
    turn = f' transform="rotate(45 {x:.1f} {y:.1f})"' if number % 3 == 2 else ""
    return (
        f'<rect x="{x - 3.2:.1f}" y="{y - 3.2:.1f}" width="6.4" height="6.4" '
        f'fill="{colour}"{turn}/>'
    )


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _dash(number: int) -> str:
    dash = _DASHES[number % len(_DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""
