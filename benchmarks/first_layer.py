"""The figure of the first page: covariances of a trained first layer, and filters drawn from each.

python -m benchmarks.first_layer resnet20_cifar10.npz cifar10.npz docs/first_layer

takes a ResNet-20 in PyTorch's names and CIFAR-10, and writes docs/first_layer_light.png and docs/first_layer_dark.png.
"""

import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure

import agop_jax
from agop_jax import LayerFeatures, kernel_init
from agop_jax.data import load

IMAGES, FILTERS, LAYER = 128, 10, "Conv_0"
ROWS = {"kaiming_normal": "He's random\nnumbers", "he_nfm": "NFM", "he_agop": "AGOP"}
INKS = {"light": "#1b1b1b", "dark": "#e3e3e6"}


class Row(NamedTuple):
    """A method's covariance of a filter, k x k, and filters drawn from it, (rows, columns, channels, filters)."""

    covariance: np.ndarray
    filters: np.ndarray


def first_layer(network: str, data: str) -> LayerFeatures:
    """Of the ResNet-20, by all of its logits."""
    model, variables, mean, std = agop_jax.load_pretrained("resnet20", f"npz:{network}")
    images = load(f"npz:{data}").train.images[:IMAGES] / 255
    normalised = jnp.asarray((images - np.asarray(mean)) / np.asarray(std), jnp.float32)
    return agop_jax.extract(model, variables, normalised, layers=LAYER, batch_size=64)[LAYER]


def row(layer: LayerFeatures, method: str) -> Row:
    """What one method draws from."""
    size = layer.nfm.size
    isotropic = method == "kaiming_normal"
    covariance = 2 * np.eye(size) / size if isotropic else np.asarray(agop_jax.covariance(layer, method).dense())
    shape = (*layer.kernel.shape[:3], FILTERS)
    return Row(covariance, np.asarray(kernel_init(layer, method)(jax.random.key(1), shape)))


def draw(rows: dict[str, Row], ink: str, path: str) -> None:
    """One line of the figure for each method; the ground is that of the page."""
    with matplotlib.rc_context({"text.color": ink, "font.size": 9}):
        figure = Figure(figsize=(7.2, 2.3), layout="constrained")
        panels = figure.subplots(len(rows), FILTERS + 1)
        for line, (method, label) in zip(panels, ROWS.items(), strict=True):
            largest = np.abs(rows[method].covariance).max()
            line[0].imshow(rows[method].covariance, cmap="RdBu_r", vmin=-largest, vmax=largest)
            line[0].set_ylabel(label, color=ink, rotation=0, ha="right", va="center")
            for axes, kernel in zip(line[1:], np.moveaxis(rows[method].filters, -1, 0), strict=True):
                axes.imshow(0.5 + 0.5 * kernel / np.abs(kernel).max())
            for axes in line:
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
        for axes, title, side in (
            (panels[0, 0], "covariance", "right"),
            (panels[0, 1], "filters drawn from it", "left"),
        ):
            axes.set_title(title, fontsize=9, loc=side).set_in_layout(False)  # wider than its panel
        figure.get_layout_engine().set(rect=(0, 0, 1, 0.92))
        figure.savefig(path, dpi=200, transparent=True)


def main() -> None:
    """Extracts once, draws twice."""
    network, data, stem = sys.argv[1:]
    layer = first_layer(network, data)
    rows = {method: row(layer, method) for method in ROWS}
    for palette, ink in INKS.items():
        draw(rows, ink, f"{stem}_{palette}.png")


if __name__ == "__main__":
    main()
