"""Pictures of recursive feature machines: M beside other matrices of the same patches, and accuracy by round."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from agop_jax.core.errors import UserError
from agop_jax.features.matrix import FeatureMatrix
from agop_jax.results.feature_figures import IMAGE_STYLE, block_means
from agop_jax.results.figures import BLUE, STYLE, WIDTH, strip


@matplotlib.rc_context(IMAGE_STYLE)
def patch_matrices(matrices: Mapping[str, FeatureMatrix], shape: tuple[int, int, int], num: int = 8) -> Figure:
    """A row a matrix: its entries, red above zero and blue below, and its top eigenvectors as filters.

    Args:
      matrices: by title, such as M of the first layer and the NFM of a donor's.
      shape: (kh, kw, cin) of their patches.
      num: eigenvectors, largest eigenvalue on the left.

    Raises:
      UserError: a matrix of another size.
    """
    figure = Figure(figsize=(WIDTH, 1.5 * len(matrices) + 0.2))
    grid = figure.subplots(len(matrices), 2, squeeze=False, width_ratios=(1, 4))
    for (left, right), (title, matrix) in zip(grid, matrices.items(), strict=True):
        if matrix.size != int(np.prod(shape)):
            raise UserError(f"{title}: needed {int(np.prod(shape))} rows for patches {shape}, got {matrix.size}")
        values = block_means(matrix)
        limit = np.percentile(np.abs(values), 99.5) or 1.0
        left.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        right.imshow(strip(np.asarray(matrix.vectors[:, :num]).reshape(*shape, -1)), interpolation="nearest")
        left.set_title(title, loc="left", pad=3)
        for axes in (left, right):
            axes.set(xticks=[], yticks=[], frame_on=False)
    return figure


@matplotlib.rc_context(STYLE)
def accuracy_by_round(runs: Sequence[Sequence[float]]) -> Figure:
    """A thin line a run and their mean: `[row["score"] for row in machine.history_]` of each; round 0 has M = I."""
    accuracies = 100 * np.asarray(runs, float)
    figure = Figure(figsize=(4.0, 2.4))
    axes = figure.subplots()
    axes.plot(accuracies.T, color=BLUE, alpha=0.3, linewidth=0.8)
    axes.plot(accuracies.mean(0), color=BLUE, marker="o", markersize=4)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="round", ylabel="accuracy, %", ylim=(None, min(axes.get_ylim()[1], 100.5)))
    return figure
