"""Pictures of features: matrices, eigenvectors, transforms, the ansatz and its null, each a matplotlib `Figure`.

`figures.save(figure, stem)` writes one as PNG and SVG; in a notebook it shows as it is.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from agop_jax.core.files import Row
from agop_jax.features.layer import LayerFeatures
from agop_jax.features.matrix import FeatureMatrix
from agop_jax.results.figures import BLUE, GREY, ORANGE, STYLE, VERMILLION, WIDTH, strip, wrapped

PIXELS = 256  # of a heat map's side; larger matrices are averaged over blocks
MAPS_SHOWN = 8
IMAGE_STYLE: dict[Any, Any] = {**STYLE, "axes.grid": False}


@matplotlib.rc_context(IMAGE_STYLE)
def heat_maps(layers: Mapping[str, LayerFeatures]) -> Figure:
    """NFM and AGOP side by side, a row a layer: red above zero, blue below, the colour scale each matrix' own.

    Rows and columns are the entries of a patch: position by position, and within it channel by channel. Of a layer with
    several matrices the first is shown.
    """
    figure = Figure(figsize=(5.2, 0.3 + 2.4 * len(layers)))
    grid = figure.subplots(len(layers), 2, squeeze=False)
    for row, (path, layer) in zip(grid, layers.items(), strict=True):
        for axes, name in zip(row, ("nfm", "agop"), strict=True):
            matrix = first_of_stack(getattr(layer, name))
            values = block_means(matrix)
            limit = np.percentile(np.abs(values), 99.5) or 1.0
            extent = (0, matrix.size, matrix.size, 0)
            axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest", extent=extent)
            axes.tick_params(length=2, pad=2, labelsize=7)
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.set_title(f"{name.upper()} of {path}", loc="left", pad=3)
    return figure


def first_of_stack(matrix: FeatureMatrix) -> FeatureMatrix:
    """The first matrix of a grouped or stacked layer; any other as it is."""
    while matrix.values.ndim > 1:
        floor = None if matrix.floor is None else matrix.floor[0]
        matrix = FeatureMatrix(matrix.vectors[0], matrix.values[0], floor)
    return matrix


def block_means(matrix: FeatureMatrix) -> np.ndarray:
    """At most PIXELS x PIXELS means over blocks of entries; those of L L^T follow from the means of rows of L."""
    factor = np.asarray(matrix.vectors) * np.sqrt(np.asarray(matrix.values))
    blocks = np.array_split(factor, min(PIXELS, len(factor)))
    rows = np.stack([block.mean(0) for block in blocks])
    return rows @ rows.T


@matplotlib.rc_context(IMAGE_STYLE)
def filter_patches(kernels: Mapping[str, np.ndarray]) -> Figure:
    """The first filters or eigenvectors of (kh, kw, cin, num) kernels, a row each, largest eigenvalue on the left.

    Colours as in `figures.first_layer_filters`: RGB for three channels, else the grey of their mean; grey is zero.
    """
    figure = Figure(figsize=(4.4, 0.25 + 0.5 * len(kernels)))
    for axes, (name, kernel) in zip(
        figure.subplots(len(kernels), 1, squeeze=False)[:, 0], kernels.items(), strict=True
    ):
        axes.imshow(strip(kernel), interpolation="nearest")
        axes.set(xticks=[], yticks=[], frame_on=False)
        axes.set_ylabel(wrapped(name), rotation=0, ha="right", va="center")
    return figure


@matplotlib.rc_context(IMAGE_STYLE)
def transform_grid(picture: np.ndarray, transforms: Mapping[str, np.ndarray], columns: int = 3) -> Figure:
    """A picture (h, w, channels) beside what layers make of it, (h, w) each: bright is large.

    One channel is shown in grey, three in colour; of any other number the first, middle and last, in grey each.
    """
    picture = np.asarray(picture)
    shown = {**_visible(picture), **transforms}
    columns = min(columns, len(shown))
    rows = math.ceil(len(shown) / columns)
    height = WIDTH / columns * picture.shape[0] / picture.shape[1] + 0.25
    figure = Figure(figsize=(WIDTH, rows * height))
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(shown) :]:
        axes.remove()
    for axes, (title, image) in zip(grid, shown.items(), strict=False):
        _show(axes, np.asarray(image), title)
    return figure


def _visible(picture: np.ndarray) -> dict[str, np.ndarray]:
    """What can be shown of a picture, by title."""
    channels = picture.shape[-1]
    if channels in (1, 3):
        return {"picture": picture[..., 0] if channels == 1 else picture}
    chosen = sorted({0, channels // 2, channels - 1})
    return {f"channel {channel}": picture[..., channel] for channel in chosen}


def _show(axes: Axes, image: np.ndarray, title: str = "") -> None:
    top = np.percentile(image, 99.5) if image.ndim == 2 else None  # a few bright positions would darken the rest
    axes.imshow(image, cmap="gray", vmax=top, interpolation="nearest")
    axes.set(xticks=[], yticks=[], frame_on=False)
    axes.set_title(title, loc="left", pad=3)


@matplotlib.rc_context(IMAGE_STYLE)
def feature_maps(layers: Mapping[str, np.ndarray]) -> Figure:
    """The channels of largest variance of each layer's output (h, w, cout), a row a layer, numbers as titles."""
    h, w = np.shape(next(iter(layers.values())))[:2]
    figure = Figure(figsize=(WIDTH, 0.2 + (0.2 + WIDTH / MAPS_SHOWN * h / w) * len(layers)))
    grid = figure.subplots(len(layers), MAPS_SHOWN, squeeze=False)
    for row, (path, maps) in zip(grid, layers.items(), strict=True):
        maps = np.asarray(maps)
        chosen = np.argsort(-maps.var((0, 1)), kind="stable")[:MAPS_SHOWN]
        for axes, channel in zip(row, chosen, strict=False):
            _show(axes, maps[..., channel], str(channel))
        for axes in row[len(chosen) :]:
            axes.remove()
        row[0].set_ylabel(wrapped(path, 14), fontsize=7.5)
    return figure


@matplotlib.rc_context(STYLE)
def ansatz(rows: Sequence[Row]) -> Figure:
    """The rows of `ansatz_report`: NFM against each power of the AGOP, layer by layer, and the best-fitting power.

    Bars run from the null's mean to its 95th percentile: a trained network's mark inside or left of its bar shows
    nothing that any W would not show.
    """
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    powers = sorted({row["power"] for row in rows if not row["fitted"] and row["comparison"] == "trained"})
    figure = Figure(figsize=(2.4 * (len(powers) + 1) + 0.8, 0.95 + 0.22 * len(layers)))
    grid = list(figure.subplots(1, len(powers) + 1, sharey=True))
    for axes, power in zip(grid, powers, strict=False):
        chosen = [row for row in rows if not row["fitted"] and row["power"] == power]
        _draw_correlations(axes, layers, chosen)
        axes.set_title(f"NFM and AGOP^{power:g}", loc="left")
        axes.set_xlabel("Pearson correlation")
    _draw_powers(grid[-1], layers, [row for row in rows if row["fitted"]])
    grid[0].set_yticks(range(len(layers)), layers, fontsize=7.5)
    grid[0].set_ylim(len(layers) - 0.4, -0.6)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=7.5)
    return figure


MARKS = {
    "trained": (BLUE, "o", "trained"),
    "untrained": (GREY, "D", "untrained"),
    "centred": (VERMILLION, "s", "centred"),
}


def _draw_correlations(axes: Axes, layers: Sequence[str], rows: Sequence[Row]) -> None:
    places = {layer: y for y, layer in enumerate(layers)}
    trained = [row for row in rows if row["comparison"] == "trained"]
    y = [places[row["layer"]] for row in trained]
    low, high = ([row[f"null_pearson_{end}"] for row in trained] for end in ("mean", "95"))
    # edges, so that a narrow null still shows
    label = "null of trained: mean to 95 %"
    axes.barh(y, np.subtract(high, low), 0.75, low, color="#F7DCA8", edgecolor=ORANGE, linewidth=0.8, label=label)
    for comparison, (colour, marker, label) in MARKS.items():
        chosen = [row for row in rows if row["comparison"] == comparison]
        if chosen:
            x, y = [row["pearson"] for row in chosen], [places[row["layer"]] for row in chosen]
            face = colour if comparison == "trained" else "white"
            axes.plot(x, y, marker, color=colour, markerfacecolor=face, markersize=4.5, label=label)
    axes.tick_params(axis="y", length=0)
    lowest = min((row["pearson"] for row in rows), default=0)
    axes.set_xlim(min(0, lowest - 0.05), 1.03)


def _draw_powers(axes: Axes, layers: Sequence[str], rows: Sequence[Row]) -> None:
    places = {layer: y for y, layer in enumerate(layers)}
    for comparison, offset in (("untrained", 0.12), ("trained", -0.12)):
        colour, marker, _ = MARKS[comparison]
        for row in (row for row in rows if row["comparison"] == comparison):
            y = places[row["layer"]] + offset
            axes.plot([row["power_low"], row["power_high"]], [y, y], color=colour, linewidth=1.6)
            face = colour if comparison == "trained" else "white"
            axes.plot([row["power"]], [y], marker, color=colour, markerfacecolor=face, markersize=4.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.set_title("best-fitting power", loc="left")
    axes.set_xlabel("power, 95 % interval")


@matplotlib.rc_context(STYLE)
def evolution(rows: Sequence[Row]) -> Figure:
    """The rows of `FeatureEvolution`: a column a layer, correlation with the last features above, rank below."""
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    labels = {"pearson": "correlation with the last", "effective_rank": "effective rank"}
    figure = Figure(figsize=(max(1.75 * len(layers), 3.4) + 0.4, 3.6))
    grid = figure.subplots(2, len(layers), sharex=True, squeeze=False)
    for column, layer in zip(grid.T, layers, strict=True):
        for axes, value in zip(column, labels, strict=True):
            for name, colour, line in (("nfm", BLUE, "o-"), ("agop", VERMILLION, "s--")):
                chosen = [row for row in rows if (row["layer"], row["matrix"]) == (layer, name)]
                x, y = [row["step"] for row in chosen], [row[value] for row in chosen]
                axes.plot(x, y, line, color=colour, markersize=3, linewidth=1.3, label=name.upper())
        column[0].set_title(wrapped(layer), loc="left", pad=3)
        column[0].set_ylim(min(0, column[0].get_ylim()[0]), 1.05)
        column[1].set_ylim(bottom=0)
        column[1].xaxis.set_major_locator(MaxNLocator(3, integer=True))
    for axes, label in zip(grid[:, 0], labels.values(), strict=True):
        axes.set_ylabel(label)
    grid[1, 0].legend(fontsize=7, loc="lower left")
    figure.supxlabel("training step", fontsize=8.5)
    return figure
