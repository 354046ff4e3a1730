"""The experiment's pictures. Every function takes plain numbers and returns a matplotlib `Figure`; `save` writes it.

Colours are those of Okabe and Ito (2008), told apart by readers of any colour vision; shape or position always repeats
what colour says. With many initialisations curves get small multiples, one panel each, with He's curve in grey behind.
"""

import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from agop_jax.core.files import atomic_write_bytes

BLUE, VERMILLION, ORANGE, GREY, INK = "#0072B2", "#D55E00", "#E69F00", "#8C8C8C", "#222222"
# verdict -> colour and marker
VERDICTS = {"better": (BLUE, "^"), "worse": (VERMILLION, "v")}
NO_VERDICT = ("#555555", "o")

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 8,
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.hashsalt": "agop_jax",  # the same figure is the same file
    "xtick.color": "#444444",
    "ytick.color": "#444444",
}
WIDTH = 7.2  # inches
COLUMNS = 4
FILTERS_SHOWN = 8
SMALLEST_SHOWN = 1e-7  # share of the trace below which an eigenvalue is rounding


@dataclass(frozen=True)
class Dots:
    """One initialisation's accuracies, fractions: a value a seed, their mean and its interval (nan where n = 1)."""

    name: str
    values: Sequence[float]
    mean: float
    low: float
    high: float
    verdict: str
    trains: bool = True


@dataclass(frozen=True)
class Curve:
    """A mean and the limits of a band around it, at each x."""

    x: Sequence[int] | Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def save(figure: Figure, stem: str | os.PathLike) -> bytes:
    """Write `stem`.png (150 dpi) and `stem`.svg, byte for byte the same for the same figure; returns the SVG."""
    formats = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    with matplotlib.rc_context(STYLE):
        _lay_out(figure)
    with matplotlib.rc_context({**STYLE, "figure.constrained_layout.use": False}):  # or `savefig` sets an engine again
        for suffix, metadata in formats.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, dpi=150, metadata=metadata)
            atomic_write_bytes(Path(f"{stem}.{suffix}"), buffer.getvalue())
    return buffer.getvalue()


def _lay_out(figure: Figure) -> None:
    """Places the panels for good: an engine would lay them out anew for each form, and draw the figure once more."""
    if engine := figure.get_layout_engine():
        engine.execute(figure)
    with matplotlib.rc_context({"figure.autolayout": False, "figure.constrained_layout.use": False}):
        figure.set_layout_engine(None)


@matplotlib.rc_context(STYLE)
def accuracy_by_init(dots: Sequence[Dots], baseline: str) -> Figure:
    """Test accuracy: a dot a seed, mean and interval, best on top; a line at the baseline's mean.

    What does not train gets a line of text at the bottom, or its accuracy would squeeze all others together.
    """
    trained = sorted((row for row in dots if row.trains), key=lambda row: -row.mean)
    idle = sorted((row for row in dots if not row.trains), key=lambda row: row.name)
    figure = Figure(figsize=(6.2, 0.8 + 0.26 * len(dots)))
    axes = figure.subplots()
    for y, row in enumerate(trained):
        _draw_dots(axes, y, row, baseline)
    for y, row in enumerate(idle, start=len(trained)):
        text = f"does not train ({_percent(round(row.mean, 3))})"
        axes.text(0.01, y, text, transform=axes.get_yaxis_transform(), va="center", style="italic", color="#555555")
    for row in trained:
        if row.name == baseline:
            axes.axvline(row.mean, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    _label_rows(axes, [row.name for row in (*trained, *idle)], baseline)
    left, right = axes.get_xlim()
    axes.set_xlim(max(left, -0.02), min(right, 1.02))
    axes.set_xlabel("test accuracy")
    axes.xaxis.set_major_formatter(_percent)
    return figure


def _percent(fraction: float, _: Any = None) -> str:
    return f"{100 * fraction:g} %"


def _draw_dots(axes: Axes, y: int, row: Dots, baseline: str) -> None:
    colour, marker = (INK, "D") if row.name == baseline else VERDICTS.get(row.verdict, NO_VERDICT)
    seeds = np.full(len(row.values), y + 0.27)
    axes.plot(row.values, seeds, "o", color=colour, alpha=0.6, markersize=3, markeredgewidth=0)
    axes.plot([row.low, row.high], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
    axes.plot([row.mean], [y], marker, color=colour, markersize=5.5, markeredgecolor="white", markeredgewidth=0.6)


def _label_rows(axes: Axes, names: Sequence[str], baseline: str) -> None:
    axes.set_yticks(range(len(names)), [wrapped(name) for name in names], linespacing=0.95)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == baseline else "normal")
        label.set_fontsize(7.3 if "\n" in label.get_text() else 8.5)


@matplotlib.rc_context(STYLE)
def small_multiples(
    curves: Mapping[str, Curve], baseline: str, xlabel: str, ylabel: str, *, percent: bool = True, points: bool = False
) -> Figure:
    """A panel an initialisation, axes shared, with the baseline's mean in grey in each.

    Args:
      percent: y is a fraction, to be shown in per cent.
      points: x is a few measured values on a log scale (sizes, widths) rather than a course over time.
    """
    figure, panels = panel_grid([wrapped(name) for name in curves], 1.42)
    line = "o-" if points else "-"
    for axes, (name, curve) in zip(panels, curves.items(), strict=True):
        if name != baseline and baseline in curves:
            axes.plot(curves[baseline].x, curves[baseline].mean, line, color=GREY, markersize=3, linewidth=1)
        colour = INK if name == baseline else BLUE
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.22, linewidth=0)
        axes.plot(curve.x, curve.mean, line, color=colour, linewidth=1.4, markersize=3.5)
    _scale_panels(panels, list(curves.values()), percent, points)
    figure.supxlabel(xlabel, fontsize=8.5)
    figure.supylabel(ylabel, fontsize=8.5)
    return figure


def _scale_panels(panels: Sequence[Axes], curves: Sequence[Curve], percent: bool, points: bool) -> None:
    """The same limits, ticks and units for all panels; values far outside the middle 96 % leave the frame."""
    values = np.concatenate([np.concatenate([curve.mean, curve.low, curve.high]) for curve in curves])
    values = np.clip(values, 0, 1) if percent else values
    values = values[np.isfinite(values)]
    if values.size:
        low, high = np.percentile(values, [2, 98])
        low, high = max(values.min(), 2 * low - high), min(values.max(), 2 * high - low)
        margin = 0.05 * (high - low) or 0.05
        for axes in panels:
            axes.set_ylim(low - margin, high + margin)
    for axes in panels:
        _set_ticks(axes, curves, percent, points)
    ends = [end for axes in panels for end in axes.get_xlim()]
    for axes in panels:
        axes.set_xlim(min(ends), max(ends))


def _set_ticks(axes: Axes, curves: Sequence[Curve], percent: bool, points: bool) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(4))
    if percent:
        axes.yaxis.set_major_formatter(_percent)
    if points:
        ticks = sorted({x for curve in curves for x in curve.x})
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))


def panel_grid(titles: Sequence[str], height: float, share: bool = True) -> tuple[Figure, list[Axes]]:
    """One panel a title, `COLUMNS` a row; of the same limits in all, labels stand at the left and the bottom alone.

    The axes are never matplotlib's shared ones: each of n asks all others for their limits, n^2 times a drawing.
    """
    columns = min(COLUMNS, len(titles))
    rows = math.ceil(len(titles) / columns)
    figure = Figure(figsize=(max(WIDTH * columns / COLUMNS, 3.2), 0.45 + height * rows))
    grid = figure.subplots(rows, columns, squeeze=False)
    panels = list(grid.flat)
    for axes in panels[len(titles) :]:
        axes.remove()
    for index, (axes, title) in enumerate(zip(panels, titles, strict=False)):
        axes.set_title(title, loc="left", pad=3)
        outer = {"labelbottom": index + columns >= len(titles), "labelleft": index % columns == 0}
        axes.tick_params(length=2, pad=2, labelsize=7, **(outer if share else {}))
    return figure, panels[: len(titles)]


def wrapped(name: str, limit: int = 21) -> str:
    """A name too long for its panel, broken after a ':' or '_', or before an '@'."""
    if len(name) <= limit:
        return name
    ends = [match.start() for match in re.finditer("(?<=[:_])|(?=@)", name) if 0 < match.start() <= limit]
    colon = name.find(":") + 1
    at = colon if 0 < colon <= limit else (ends or [limit])[-1]
    return name[:at] + "\n" + wrapped(name[at:], limit)


@matplotlib.rc_context(STYLE)
def training_course(train: Curve, validation: Curve) -> Figure:
    """One run's accuracy on the images it is trained on and on validation, by step."""
    figure = Figure(figsize=(4.6, 2.5))
    axes = figure.subplots()
    axes.plot(train.x, train.mean, color=ORANGE, linestyle="--", label="train")
    axes.plot(validation.x, validation.mean, color=BLUE, label="validation")
    axes.set(xlabel="step", ylabel="accuracy")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter(_percent)
    axes.legend(loc="lower right")
    return figure


@matplotlib.rc_context(STYLE)
def spectra(layers: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Eigenvalues of the donor's NFM and AGOP, layer -> matrix -> values from the largest, as shares of the trace."""
    figure, panels = panel_grid([wrapped(layer) for layer in layers], 1.55, share=False)
    styles = {"nfm": (BLUE, "-"), "agop": (VERMILLION, "--")}
    for axes, matrices in zip(panels, layers.values(), strict=True):
        for name, values in matrices.items():
            colour, line = styles.get(name, (INK, ":"))
            x = range(1, len(values) + 1)
            axes.plot(x, _shares(values), line, color=colour, linewidth=1.4, label=name.upper())
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    panels[0].legend(fontsize=7, loc="lower left", borderaxespad=0.2)
    figure.supxlabel("eigenvalue, from the largest", fontsize=8.5)
    figure.supylabel("share of the trace", fontsize=8.5)
    return figure


def _shares(values: Sequence[float]) -> np.ndarray:
    """Eigenvalues over their sum; nan, which draws nothing, where only rounding is left."""
    shares = np.asarray(values, float)
    total = shares.sum()
    shares = shares / total if total > 0 else shares
    return np.where(shares > SMALLEST_SHOWN, shares, np.nan)


@matplotlib.rc_context(STYLE)
def first_layer_filters(kernels: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """The first filters of one seed, before and after training: init -> (initial, trained), each (kh, kw, cin, cout).

    Three input channels make an RGB patch, any other number a grey one (their mean). Each patch has its own scale, with
    middle grey for zero, so patches show patterns and not sizes.
    """
    figure = Figure(figsize=(9.4, 0.4 + 0.55 * len(kernels)))
    grid = figure.subplots(len(kernels), 2, squeeze=False, gridspec_kw={"wspace": 0.05})
    for row, (name, pair) in zip(grid, kernels.items(), strict=True):
        for axes, kernel in zip(row, pair, strict=True):
            axes.imshow(strip(kernel), interpolation="nearest")
            axes.set(xticks=[], yticks=[], frame_on=False)
        row[0].set_ylabel(wrapped(name), rotation=0, ha="right", va="center")
    for axes, title in zip(grid[0], ("initial", "trained"), strict=True):
        axes.set_title(title, loc="left", pad=3)
    return figure


def strip(kernel: np.ndarray) -> np.ndarray:
    """(kh, kw, cin, cout) -> one RGB image with the first filters side by side, a white line between them."""
    kernel = np.nan_to_num(np.asarray(kernel, float), posinf=0, neginf=0)[..., :FILTERS_SHOWN]
    if kernel.shape[2] != 3:
        kernel = np.repeat(kernel.mean(2, keepdims=True), 3, 2)
    largest = np.abs(kernel).max((0, 1, 2), keepdims=True)
    patches = 0.5 + 0.5 * kernel / np.where(largest > 0, largest, 1)
    upscaled = patches.repeat(8, 0).repeat(8, 1)
    gap = np.ones((upscaled.shape[0], 3, 3))
    pieces = [piece for i in range(kernel.shape[3]) for piece in (upscaled[..., i], gap)]
    return np.concatenate(pieces[:-1], axis=1)
