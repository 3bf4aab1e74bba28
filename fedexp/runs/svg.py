"""Pictures as inline SVG: text stays text, and colours are classes of the page, light or dark.

Matplotlib would take seconds for a page that is written anew every few seconds, and fixes colours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from fedexp.runs.series import Floats, Series

WIDTH, HEIGHT = 480, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 16, 10, 42
_MOST_POINTS = 150  # of a line: more than the eye tells apart at this width


@dataclass(frozen=True)
class AxisScale:
    """Values to positions along an axis.

    Attributes:
        low, high: values at the ends.
        start, end: positions of the two.
        log: whether equal factors are equally far apart.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, values: Floats | float) -> Floats:
        """Positions; those of values beyond the ends are at the ends."""
        x = np.clip(np.asarray(values, np.float64), self.low, self.high)
        low, high = self.low, self.high
        if self.log:
            x, low, high = np.log(x), math.log(low), math.log(high)
        return np.asarray(self.start + (x - low) / (high - low) * (self.end - self.start))

    @property
    def ticks(self) -> list[float]:
        """Round numbers between the ends."""
        return log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high)


def chart(
    lines: Mapping[str, Series],
    classes: Mapping[str, str],
    *,
    label: str,
    x: str,
    y: str,
    log: bool = False,
    targets: Sequence[float] = (),
    unit: float = 1,
) -> Markup:
    """Lines in their bands of one standard deviation; empty if there is nothing to draw.

    Args:
        lines: by name.
        classes: CSS class by name.
        label: what the picture shows, for those who cannot see it.
        x: title of its axis.
        y: title of its axis.
        log: whether ``y`` is on a logarithmic axis.
        targets: values of ``y`` that have a line across.
        unit: of the x axis, in units of ``Series.x``.
    """
    lines = {name: line.positive if log else line for name, line in lines.items()}
    lines = {name: _thinned(line) for name, line in lines.items() if line.drawable}
    if not lines:
        return Markup()
    across = AxisScale(*ends([s.x / unit for s in lines.values()]), _LEFT, WIDTH - _RIGHT)
    edges = [edge for s in lines.values() for edge in (s.low(log), s.mean + s.std)]
    bottom, top = ends([*edges, np.array(targets)], log)
    up = AxisScale(bottom, top, HEIGHT - _BOTTOM, _TOP, log)
    parts = [_axes(across, up, x, y)]
    parts += [_line(name, classes[name], s, across, up, unit) for name, s in lines.items()]
    parts += [_target(up, target) for target in targets]
    return picture(label, WIDTH, HEIGHT, parts)


def picture(label: str, width: float, height: float, parts: Sequence[Markup]) -> Markup:
    """An ``svg`` element that scales with its box."""
    return Markup('<svg viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">{}</svg>').format(
        width, height, label, Markup("\n").join(parts)
    )


def words(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> Markup:
    """Text at a point."""
    template = '<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>'
    return Markup(template).format(x, y, anchor, kind, text)


def box(x: float, y: float, width: float, height: float, kind: str, opacity: float = 1) -> Markup:
    """A filled rectangle."""
    template = '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="{}"{}/>'
    faint = Markup(' fill-opacity="{:.2f}"').format(opacity) if opacity < 1 else ""
    return Markup(template).format(x, y, width, height, kind, faint)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, at most ``most`` of them."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def ends(values: Sequence[Floats], log: bool = False) -> tuple[float, float]:
    """The smallest and largest value, with some room if all are alike."""
    all_ = np.concatenate(values)
    low, high = float(np.nanmin(all_)), float(np.nanmax(all_))
    if log:
        return (low, high) if high / low > 1.5 else (low / 2, high * 2)
    room = max(abs(high), 1) * 1e-9
    return (low, high) if high - low > room else (low - 0.5, high + 0.5)


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with 2 and 5 times those where that is few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = max(1, (last - first) // 6)
    factors = (1, 2, 5) if last - first <= 3 else (1,)
    found = [f * 10.0**p for p in range(first, last + 1, stride) for f in factors]
    return [tick for tick in found if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]


def _thinned(series: Series) -> Series:
    """Points that have a value, at most so many, the first and the last among them."""
    kept = np.flatnonzero(np.isfinite(series.x + series.mean))
    if len(kept) > _MOST_POINTS:
        kept = kept[np.linspace(0, len(kept) - 1, _MOST_POINTS).round().astype(int)]
    return Series(series.x[kept], series.mean[kept], series.std[kept])


def _axes(across: AxisScale, up: AxisScale, x: str, y: str) -> Markup:
    """Grid, numbers and titles."""
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = [
        Markup('<path class="grid" d="{}"/>').format(
            "".join(f"M{_LEFT} {float(up(t)):.1f}H{right}" for t in up.ticks)
            + "".join(f"M{float(across(t)):.1f} {_TOP}V{bottom}" for t in _whole(across.ticks, x))
        )
    ]
    parts += [words(_LEFT - 6, float(up(t)) + 4, f"{t:.4g}", "end") for t in up.ticks]
    parts += [
        words(float(across(t)), bottom + 16, f"{t:.6g}", "middle") for t in _whole(across.ticks, x)
    ]
    parts.append(words((_LEFT + right) / 2, HEIGHT - 6, x, "middle", "title"))
    turned = '<text class="title turned" transform="translate(13 {:g}) rotate(-90)">{}</text>'
    parts.append(Markup(turned).format((_TOP + bottom) / 2, y))
    return Markup("").join(parts)


def _whole(values: Sequence[float], x: str) -> list[float]:
    return [value for value in values if x != "Round" or value == round(value)]


def _target(up: AxisScale, target: float) -> Markup:
    at = float(up(target))
    line = Markup('<path class="target" d="M{} {:.1f}H{}"/>').format(_LEFT, at, WIDTH - _RIGHT)
    beside = at - 4 if at > _TOP + 12 else at + 13  # below it where the picture ends
    return line + words(_LEFT + 4, beside, f"target {target:g}", "start", "note")


def _line(
    name: str, kind: str, series: Series, across: AxisScale, up: AxisScale, unit: float
) -> Markup:
    """A line, its band, and its name for a pointer that rests on it."""
    x, y = across(series.x / unit), up(series.mean)
    low, high = up(series.low(up.log)), up(series.mean + series.std)
    shape = Markup('<path class="line" d="M{}"/>').format(_points(x, y))
    if len(x) == 1:
        shape = Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(x[0], y[0])
    band = Markup("")
    if np.any(series.std > 0):
        there, back = _points(x, high), _points(x[::-1], low[::-1])
        band = Markup('<path class="band" d="M{} {}z"/>').format(there, back)
    return Markup('<g class="{}"><title>{}</title>{}{}</g>').format(kind, name, band, shape)


def _points(x: Floats, y: Floats) -> str:
    return " ".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))
