"""Figures of the report: small SVG charts whose colours follow the page, spectrograms as WebP images.

The charts contain no colours: every mark has a class, and the style sheet of the page (or, for separate files, that of
:func:`standalone`) colours it for light and dark backgrounds.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

import numpy as np

FLOOR_DB = -80.0
"""Level of the darkest colour of a spectrogram, below the loudest point of the utterance's reference."""

WINDOW_SECONDS = 0.032
"""Analysis window of the spectrograms: 31.25 Hz between bins at every rate."""

STYLE = """
svg.chart{--text:#1b2129;--muted:#57616d;--line:#d5dbe3;--accent:#0b62c4;--input:#a84f00;--enhanced:#0a7466;--reference:#6048b8;--raised:#fff;
font:11px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;font-variant-numeric:tabular-nums}
@media (prefers-color-scheme:dark){svg.chart{--text:#e6e9ee;--muted:#a3aebb;--line:#323b46;--accent:#6fb5ff;
--input:#f2a65e;--enhanced:#52d1b7;--reference:#b9a7ff;
--raised:#11161c}}
"""
CHART_STYLE = """
svg.chart text{fill:var(--muted)}svg.chart text.name{fill:var(--text)}
svg.chart .grid{stroke:var(--line);stroke-width:1;shape-rendering:crispEdges}
svg.chart .raw{fill:none;stroke:var(--accent);stroke-width:1;opacity:.32}
svg.chart .smooth{fill:none;stroke:var(--accent);stroke-width:1.8;stroke-linejoin:round}
svg.chart .point{fill:var(--accent)}
.of-0{--tone:var(--enhanced)}.of-1{--tone:var(--compared)}.of-2{--tone:var(--accent);--dash:7 3}
.of-3{--tone:var(--muted);--dash:2 2.5}.of-4{--tone:var(--text);--dash:9 3 2 3}
svg.chart path[class*=of-]{stroke:var(--tone);stroke-dasharray:var(--dash,none)}
svg.chart circle[class*=of-]{fill:var(--tone)}
svg.chart .input{stroke:var(--input);fill:none;stroke-width:1.8}
svg.chart .enhanced{stroke:var(--enhanced);stroke-width:2}
svg.chart .reference{stroke:var(--reference);stroke-width:2;stroke-dasharray:3 2}
svg.chart circle.enhanced{fill:var(--enhanced)}svg.chart circle.input{fill:var(--raised)}
"""


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; `low` and `high` are NaN if there is none."""

    mean: float
    low: float = math.nan
    high: float = math.nan


def number(value: float, digits: int = 3) -> str:
    """`value` with `digits` significant digits, without an exponent between 1e-3 and 1e6."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -3 or magnitude >= 6:
        return f"{value:.{digits - 1}e}".replace("e-0", "e-").replace("e+0", "e")
    text = f"{value:,.{max(0, digits - 1 - magnitude)}f}"
    return text.replace("-", "−")


def with_interval(interval: Interval | None, signed: bool = False) -> str:
    """`1.23 ± 0.04`, with decimals according to the interval; `signed`: always with a sign, for differences."""
    if interval is None or not math.isfinite(interval.mean):
        return "–"
    half = (interval.high - interval.low) / 2
    if not math.isfinite(half):
        return ("+" if signed and interval.mean > 0 else "") + number(interval.mean)
    decimals = 0 if half >= 100 else 1 if half >= 10 else 2 if half >= 0.05 else 3
    mean = round(interval.mean, decimals) or 0.0  # no -0.00
    return f"{'+' if signed and mean > 0 else ''}{mean:,.{decimals}f} ± {half:,.{decimals}f}".replace("-", "−")


def counted(n: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers within [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _tick_label(value: float, values: Sequence[float]) -> str:
    """Label of a tick, with as few decimals as distinguish it from its neighbours."""
    if value == 0:
        return "0"
    largest = max(map(abs, values))
    if largest >= 1e6 or largest < 1e-2:
        digits, _, exponent = f"{value:.2e}".partition("e")
        return f"{float(digits):g}e{int(exponent)}".replace("-", "−")
    step = min((b - a for a, b in itertools.pairwise(values)), default=abs(value) or 1.0)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if abs(step * 10**decimals - round(step * 10**decimals)) > 1e-6:  # 2.5, 0.25
        decimals += 1
    return f"{value:,.{decimals}f}".replace("-", "−")


def thin(steps: np.ndarray, values: np.ndarray, points: int = 240) -> tuple[np.ndarray, np.ndarray]:
    """At most about `points` points of a curve: the smallest and the largest value of every bin of steps."""
    if len(values) <= points:
        return steps, values
    kept: list[int] = [0]
    for index in np.array_split(np.arange(len(values)), points // 2):
        kept += sorted({int(index[np.argmin(values[index])]), int(index[np.argmax(values[index])])})
    kept.append(len(values) - 1)
    keep = np.unique(kept)
    return steps[keep], values[keep]


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Centred moving average whose window shrinks at both ends."""
    if window < 2:
        return values
    half = window // 2
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


TONES = 5
"""Curves in one chart that have a colour and a pattern of their own; further ones begin again with the second."""


@dataclasses.dataclass(frozen=True)
class Series:
    """One quantity over training steps. tone: 0 for one's own, 1, 2, ... for others, each drawn differently."""

    steps: Sequence[float]
    values: Sequence[float]
    label: str = ""
    tone: int = 0


def style_of(tone: int) -> str:
    """The class of a colour and pattern among several."""
    return f"of-{(tone - 1) % (TONES - 1) + 1 if tone else 0}"


def curve(
    steps: Sequence[float],
    values: Sequence[float],
    title: str,
    *,
    dots: bool = False,
    others: Sequence[Series] = (),
    width: int = 320,
    height: int = 150,
) -> str:
    """One quantity over training steps as SVG; logarithmic if positive values span more than a factor of 30.

    Values that are not finite are left out and counted in the description.

    others: the same quantity of others, over it; of several curves only the smoothed ones are drawn.
    """
    given = [Series(steps, values), *others]
    drawn, skipped = [], 0
    for series in given:
        x, y = np.asarray(series.steps, dtype=float), np.asarray(series.values, dtype=float)
        finite = np.isfinite(y)
        skipped += int((~finite).sum())
        if finite.any():
            drawn.append((series, x[finite], y[finite]))
    if not drawn:
        return ""
    every = np.concatenate([y for *_, y in drawn])
    log = bool(every.min() > 0 and every.max() / every.min() > 30)
    low, high = (float(limit) for limit in (every.min(), every.max()))
    low, high = (math.log(low), math.log(high)) if log else (low, high)
    pad = (high - low) * 0.06 or abs(high) * 0.05 or 0.5
    low, high = low - pad, high + pad
    x_low, x_high = min(float(x.min()) for _, x, _ in drawn), max(float(x.max()) for _, x, _ in drawn)
    if x_high == x_low:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    left, right, top, bottom = 46, 10, 8, 22

    def place_x(v):
        return left + (v - x_low) / (x_high - x_low) * (width - left - right)

    def place_y(v):
        return height - bottom - (v - low) / (high - low) * (height - top - bottom)

    if log:
        marks = [m * 10.0**p for p in range(-9, 10) for m in (1, 2, 5)]
        y_ticks = [m for m in marks if low <= math.log(m) <= high]
        if len(y_ticks) > 5:
            y_ticks = [m for m in y_ticks if f"{m:e}"[0] == "1"] if len(y_ticks) > 9 else y_ticks[::2]
        y_places = [place_y(math.log(m)) for m in y_ticks]
        y_labels = [f"{m:,g}" for m in y_ticks]
    else:
        y_ticks = ticks(low, high, 4)
        y_places = [place_y(m) for m in y_ticks]
        y_labels = [_tick_label(m, y_ticks) for m in y_ticks]
    x_ticks = ticks(x_low, x_high, 4)

    courses = [
        f"{series.label} from {number(y[0])} at step {x[0]:,.0f} to {number(y[-1])} at step {x[-1]:,.0f}".strip()
        for series, x, y in drawn
    ]
    described = f"{title}: {'; '.join(courses)}"
    if skipped:
        described += f"; {skipped} values that are not finite are left out"
    parts = [_open(width, height, described)]
    for place, label in zip(y_places, y_labels, strict=True):
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{place:.1f}" y2="{place:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{place + 3.5:.1f}" text-anchor="end">{label}</text>')
    for mark in x_ticks:
        place = place_x(mark)
        anchor = "end" if place > width - 24 else "middle"
        parts.append(
            f'<text x="{place:.1f}" y="{height - 6}" text-anchor="{anchor}">{_tick_label(mark, x_ticks)}</text>'
        )
    for series, x, y in reversed(drawn):  # one's own on top
        transformed = np.log(y) if log else y
        window = max(1, len(y) // 40) if len(y) >= 20 else 1
        if len(drawn) == 1 and window > 1:
            thin_x, thin_y = thin(x, transformed)
            parts.append(f'<path class="raw" d="{_path(place_x(thin_x), place_y(thin_y))}"/>')
        thin_x, thin_y = thin(x, smoothed(transformed, window))
        style = f" {style_of(series.tone)}" if others else ""
        parts.append(f'<path class="smooth{style}" d="{_path(place_x(thin_x), place_y(thin_y))}"/>')
        if dots or len(y) == 1:
            for a, b, value in zip(place_x(x), place_y(transformed), y, strict=True):
                told = f"{series.label} {number(value)}".strip()
                parts.append(
                    f'<circle class="point{style}" cx="{a:.1f}" cy="{b:.1f}" r="2.6">'
                    f"<title>{escape(told)}</title></circle>"
                )
    parts.append("</svg>")
    return "".join(parts)


def dot_plot(
    rows: Sequence[tuple[str, Interval | None, Interval | None]],
    title: str,
    *,
    width: int = 320,
) -> str:
    """Means with intervals, a row per (label, input, output): hollow dots for the input, filled ones for the output."""
    values = [
        v for _, *pair in rows for i in pair if i is not None for v in (i.mean, i.low, i.high) if math.isfinite(v)
    ]
    if not values:
        return ""
    low, high = min(values), max(values)
    pad = (high - low) * 0.08 or abs(high) * 0.1 or 0.5
    low, high = low - pad, high + pad
    longest = max(len(label) for label, *_ in rows)
    left, right, top, bottom, step = min(int(longest * 6.2) + 10, 130), 14, 6, 20, 26
    height = top + step * len(rows) + bottom

    def place(v: float) -> float:
        return left + (v - low) / (high - low) * (width - left - right)

    texts = []
    for label, given, output in rows:
        words = [f"{name} {number(i.mean)}" for name, i in (("input", given), ("output", output)) if i is not None]
        texts.append(f"{label} {', '.join(words) or 'not measured'}")
    parts = [_open(width, height, f"{title}: {'; '.join(texts)}")]
    marks = ticks(low, high, 4)
    for mark in marks:
        x = place(mark)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height - bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 5}" text-anchor="middle">{_tick_label(mark, marks)}</text>')
    for i, (label, given, output) in enumerate(rows):
        middle = top + step * (i + 0.5)
        parts.append(f'<text class="name" x="0" y="{middle + 3.5:.1f}">{escape(label)}</text>')
        pairs = [(given, "input", -4.5 if output else 0.0), (output, "enhanced", 4.5 if given else 0.0)]
        for interval, kind, shift in pairs:
            if interval is None or not math.isfinite(interval.mean):
                continue
            y = middle + shift
            if math.isfinite(interval.low) and math.isfinite(interval.high):
                parts.append(
                    f'<line class="{kind}" x1="{place(interval.low):.1f}" x2="{place(interval.high):.1f}" '
                    f'y1="{y:.1f}" y2="{y:.1f}"/>'
                )
            parts.append(f'<circle class="{kind}" cx="{place(interval.mean):.1f}" cy="{y:.1f}" r="3.6"/>')
    parts.append("</svg>")
    return "".join(parts)


def interval_pair(
    given: Interval | None, output: Interval | None, title: str, reference: Interval | None = None
) -> str:
    """Two means with their intervals on a small axis without labels, and the reference's mean as a line across it."""
    present = [i for i in (given, output, reference) if i is not None and math.isfinite(i.mean)]
    if len(present) < 2 or output is None:
        return ""  # a single interval says nothing
    values = [v for i in present for v in (i.mean, i.low, i.high) if math.isfinite(v)]
    low, high = min(values), max(values)
    pad = (high - low) * 0.06 or 0.5
    low, high, width, height = low - pad, high + pad, 140, 28

    def place(v: float) -> float:
        return 5 + (v - low) / (high - low) * (width - 10)

    texts = [
        f"{name} {number(i.mean)}" for name, i in (("input", given), ("output", output), ("reference", reference)) if i
    ]
    parts = [_open(width, height, f"{title}: {', '.join(texts)}")]
    parts.append(f'<line class="grid" x1="0" x2="{width}" y1="14" y2="14"/>')
    if reference is not None:
        parts.append(f'<path class="reference" d="M{place(reference.mean):.1f} 3v22"/>')
    for interval, kind, y in ((given, "input", 9), (output, "enhanced", 19 if given else 14)):
        if interval is None or not math.isfinite(interval.mean):
            continue
        if math.isfinite(interval.low):
            parts.append(f'<path class="{kind}" d="M{place(interval.low):.1f} {y}H{place(interval.high):.1f}"/>')
        parts.append(f'<circle class="{kind}" cx="{place(interval.mean):.1f}" cy="{y}" r="3.6"/>')
    parts.append("</svg>")
    return "".join(parts)


def standalone(charts: Sequence[tuple[str, str]], columns: int = 3, width: int = 320) -> str:
    """Charts of this module, each under its title, in one separate SVG file."""
    charts = [(title, str(chart)) for title, chart in charts if chart]  # Markup would escape what is inserted
    rows = [charts[i : i + columns] for i in range(0, len(charts), columns)]
    y, placed = 0, []
    for row in rows:
        heights = []
        for i, (title, chart) in enumerate(row):
            height = int(chart.split('viewBox="0 0 ', 1)[1].split('"', 1)[0].split()[1])
            heights.append(height)
            x = i * (width + 24) + 12
            placed.append(f'<text class="name" x="{x}" y="{y + 20}" font-weight="600">{escape(title)}</text>')
            placed.append(chart.replace("<svg ", f'<svg x="{x}" y="{y + 26}" width="{width}" height="{height}" ', 1))
        y += max(heights) + 40
    total = max(1, min(columns, len(charts))) * (width + 24)
    return (
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {max(y, 40)}" '
        f'width="{total}" height="{max(y, 40)}"><style>{STYLE}{CHART_STYLE}svg.chart{{background:var(--raised)}}'
        "</style>"
        f"{''.join(placed)}</svg>\n"
    )


def spectrogram(wav: np.ndarray, sample_rate: int, top_hz: float, reference_db: float, columns: int = 480) -> bytes:
    """Log-magnitude spectrogram of `wav` [T] from 0 Hz (bottom) to `top_hz` as a WebP image of `columns` x 192 pixels.

    The frequency axis is linear in mel (:func:`mel_share`). The colours range from `reference_db` down to FLOOR_DB
    below it, so that the signals of an utterance can be compared.
    Frequencies above half of `sample_rate` are drawn as silence.
    """
    from matplotlib.image import imsave

    rows = 192
    power = _power(wav, sample_rate, columns)
    bins = round(top_hz * WINDOW_SECONDS)
    full = np.zeros((bins, columns))
    count = min(bins, len(power) - 1)
    full[:count] = power[1 : count + 1]
    edges = _mel_to_hz(np.linspace(0, _hz_to_mel(top_hz), rows + 1)) * WINDOW_SECONDS
    cumulative = np.concatenate([np.zeros((1, columns)), np.cumsum(full, axis=0)])
    at = np.stack([np.interp(edges, np.arange(bins + 1), cumulative[:, c]) for c in range(columns)], axis=1)
    pooled = np.diff(at, axis=0) / np.diff(edges)[:, None]
    level = 10 * np.log10(np.maximum(pooled, 1e-20)) - reference_db
    image = io.BytesIO()
    imsave(
        image,
        level[::-1],
        vmin=FLOOR_DB,
        vmax=0,
        cmap="magma",
        format="webp",
        pil_kwargs={"quality": 72, "method": 4},
    )
    return image.getvalue()


def mel_share(hz: float, top_hz: float) -> float:
    """Height of `hz` in a spectrogram that ends at `top_hz`, from 0 to 1."""
    return _hz_to_mel(hz) / _hz_to_mel(top_hz)


def _hz_to_mel(hz: float) -> float:
    return 2595 * math.log10(1 + hz / 700)


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    return 700 * (10 ** (mel / 2595) - 1)


def loudest_db(wav: np.ndarray, sample_rate: int) -> float:
    """Level in dB of the loudest point of the spectrogram of `wav` [T]; -60 at least, so that silence stays dark."""
    return max(-60.0, 10 * math.log10(max(float(_power(wav, sample_rate, 480).max()), 1e-20)))


def _power(wav: np.ndarray, sample_rate: int, columns: int) -> np.ndarray:
    """Power spectrogram [bins, columns], 1 for a full-scale sine wave at the centre of a bin."""
    size = round(WINDOW_SECONDS * sample_rate)
    window = np.hanning(size + 1)[:-1]
    padded = np.pad(np.asarray(wav, dtype=np.float64), (size // 2, size))
    starts = np.linspace(0, max(0, len(wav) - 1), columns).astype(int)
    frames = padded[starts[:, None] + np.arange(size)[None]] * window
    return (np.abs(np.fft.rfft(frames, axis=1)).T * 2 / window.sum()) ** 2


def _open(width: int, height: int, described: str) -> str:
    return (
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(described, {chr(34): "&quot;"})}">'
    )


def _path(x: np.ndarray, y: np.ndarray) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))
