"""The benchmarks' two figures, in the style of the package's own."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from agop_jax.results.figures import BLUE, GREY, INK, STYLE, VERMILLION, WIDTH, save

COLUMNS = 4


@matplotlib.rc_context(STYLE)
def save_probe(stem: str | os.PathLike, probed: Sequence[Any], exact: Sequence[Any], own: Mapping[str, float]) -> None:
    """Error against reverse passes, a panel a layer: `probe`, what it states, and `gram` on fewer images.

    Args:
      stem: of the files.
      probed, exact: with `passes`, `measured` and, of `probe`, `stated`, each {layer: relative error}.
      own: {layer: error of the reference}.
    """
    layers = list(own)
    rows = -(-len(layers) // COLUMNS)
    figure = Figure(figsize=(WIDTH, 0.6 + 1.7 * rows))
    panels = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False)
    for axes, path in zip(panels.flat, layers, strict=False):
        for points, style, colour, label in (
            ([(one.passes, one.measured[path]) for one in exact], "s-", VERMILLION, "gram, fewer images"),
            ([(one.passes, one.measured[path]) for one in probed], "o-", BLUE, "probe"),
            ([(one.passes, one.stated[path]) for one in probed if one.stated], "x", INK, "probe, as stated"),
        ):
            passes, errors = np.transpose(points)
            axes.loglog(passes, 100 * errors, style, color=colour, markersize=4, label=label)
        axes.axhline(100 * own[path], color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), label="the reference's own")
        axes.set_title(path)
    for axes in panels.flat[len(layers) :]:
        axes.set_visible(False)
    for axes in panels[:, 0]:
        axes.set_ylabel("error of AGOP, %")
    shown = [one.passes for one in probed][::2]
    for axes in panels[-1]:
        axes.set_xticks(shown, [str(passes) for passes in shown])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("reverse passes")
    figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    save(figure, stem)


@matplotlib.rc_context(STYLE)
def save_growth(stem: str | os.PathLike, curves: Mapping[str, tuple[Sequence[float], Sequence[float], float]]) -> None:
    """Seconds of an extraction against what grows, a panel each, with the slope on logarithmic axes.

    Args:
      stem: of the files.
      curves: {what grows: (its values, seconds, slope)}.
    """
    figure = Figure(figsize=(WIDTH, 2.1))
    panels = figure.subplots(1, len(curves), sharey=True)
    for axes, (name, (values, seconds, slope)) in zip(panels, curves.items(), strict=True):
        x = np.asarray(values, float)
        fitted = np.exp(np.mean(np.log(seconds)) + slope * (np.log(x) - np.mean(np.log(x))))
        axes.loglog(x, fitted, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        axes.loglog(x, seconds, "o", color=BLUE)
        axes.set_xticks(x, [f"{value:g}" for value in x])
        axes.minorticks_off()
        axes.tick_params(labelsize=7)
        axes.set_xlabel(name)
        axes.set_title(f"slope {slope:.2f}")
    panels[0].set_ylabel("seconds")
    save(figure, stem)
