"""Pictures of several experiments; colours and style are those of `figures`."""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from agop_jax.results.figures import BLUE, GREY, INK, STYLE, VERMILLION, wrapped
from agop_jax.results.intervals import Interval
from agop_jax.results.summary_words import points

SCALE = LinearSegmentedColormap.from_list("worse to better", [VERMILLION, "#FFFFFF", BLUE])
DEPTH = 0.75  # of the strongest colour, on which black text is still read
MARKS = {"better": "▲", "worse": "▼"}


@matplotlib.rc_context(STYLE)
def difference_matrix(
    inits: Sequence[str], settings: Sequence[str], differences: np.ndarray, verdicts: Mapping[tuple[int, int], str]
) -> Figure:
    """Points by init (a row) and setting (a column): colour and number; a triangle where the verdict is clear.

    Args:
      inits: names.
      settings: names, broken into lines at their commas.
      differences: (init, setting), fractions; nan where there is none.
      verdicts: by row and column.
    """
    lines = max(_broken(name).count("\n") for name in settings)
    figure = Figure(figsize=(2.1 + 0.95 * len(settings), 0.6 + 0.12 * lines + 0.27 * len(inits)))
    axes = figure.subplots()
    most = max(np.nanmax(np.abs(differences), initial=0.0), 1e-9)
    axes.imshow(differences / most * DEPTH, cmap=SCALE, vmin=-1, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(differences):
        if np.isfinite(value):
            mark = MARKS.get(verdicts.get((row, column), ""), "")
            weight = "bold" if mark else "normal"
            axes.text(column, row, f"{points(value)} {mark}".strip(), ha="center", va="center", weight=weight, size=8)
    axes.set_xticks(range(len(settings)), [_broken(name) for name in settings], fontsize=7)
    axes.set_yticks(range(len(inits)), [wrapped(name, 26) for name in inits])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    for place in range(1, len(settings)):  # between columns
        axes.axvline(place - 0.5, color="white", linewidth=2)
    return figure


def _broken(name: str, limit: int = 17) -> str:
    """The parts of a setting's name below one another, long ones broken at blanks."""
    parts = (textwrap.wrap(part, limit, break_long_words=False, break_on_hyphens=False) for part in name.split(", "))
    return "\n".join(line for lines in parts for line in lines)


@matplotlib.rc_context(STYLE)
def over_settings(
    inits: Sequence[str], chances: Mapping[str, Sequence[Interval | None]], ranks: Sequence[Interval | None]
) -> Figure:
    """How often each init wins, over each baseline, and its mean rank where there is one.

    Args:
      inits: names, the best first.
      chances: baseline -> probability of improvement of each init over it.
      ranks: of each init.
    """
    ranked = any(ranks)
    figure = Figure(figsize=(7.2 if ranked else 4.8, 1.0 + 0.3 * len(inits)))
    panels = figure.subplots(1, 2, width_ratios=(3, 2)) if ranked else [figure.subplots()]
    styles = [(BLUE, "o", -0.14), (GREY, "D", 0.14)]
    for (baseline, intervals), (colour, marker, offset) in zip(chances.items(), styles, strict=False):
        _intervals(panels[0], intervals, colour, marker, offset if len(chances) > 1 else 0.0, f"over {baseline}")
    panels[0].axvline(0.5, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    panels[0].set(xlim=(-0.03, 1.03), xlabel="probability of improvement")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=2, fontsize=8)
    if ranked:
        _intervals(panels[1], ranks, INK, "s", 0.0, "")
        panels[1].set_xlabel("mean rank (1 is best)")
    for axes, names in zip(panels, ([wrapped(name, 26) for name in inits], []), strict=False):
        axes.set_yticks(range(len(inits)), names or [""] * len(inits))
        axes.set_ylim(len(inits) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    return figure


def _intervals(
    axes: Axes, intervals: Sequence[Interval | None], colour: str, marker: str, offset: float, label: str
) -> None:
    rows = [(row + offset, interval) for row, interval in enumerate(intervals) if interval]
    for y, interval in rows:
        axes.plot([interval.low, interval.high], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
    places, means = [y for y, _ in rows], [interval.mean for _, interval in rows]
    axes.plot(means, places, marker, color=colour, markersize=4.5, markeredgecolor="white", label=label)
