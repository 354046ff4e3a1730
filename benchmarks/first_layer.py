"""The figure of the first page: covariances of a trained first layer, and filters drawn from each.

python -m benchmarks.first_layer cifar10.npz docs/first_layer

writes docs/first_layer_light.png and docs/first_layer_dark.png. The network has one wide kernel, so that a filter can be
looked at: 7 x 7 x 3 numbers. It takes some minutes on 2 cores.
"""

import sys
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure

import agop_jax
from agop_jax import LayerFeatures, kernel_init
from agop_jax.data import Pipeline, Split, load, subset
from agop_jax.training import DeviceData, Run, Settings, Trainer, train

IMAGES, STEPS, FILTERS = 20_000, 1_000, 8
KERNEL = (7, 7, 3)
ROWS = {"kaiming_normal": "He: random numbers", "he_nfm": "NFM", "he_sqrt_agop": "root of the AGOP"}
INKS = {"light": "#1b1b1b", "dark": "#e3e3e6"}


class Network(nn.Module):
    """A 7 x 7 convolution with stride 2, two of 3 x 3, and a Dense layer."""

    @nn.compact
    def __call__(self, x):
        """Logits of normalised images."""
        x = nn.relu(nn.Conv(48, KERNEL[:2], strides=2)(x))
        x = nn.relu(nn.Conv(64, (3, 3), strides=2)(x))
        x = nn.relu(nn.Conv(64, (3, 3))(x))
        return nn.Dense(10)(x.mean((1, 2)))


class Row(NamedTuple):
    """A method's covariance of a filter, k x k, and filters drawn from it, (rows, columns, channels, filters)."""

    covariance: np.ndarray
    filters: np.ndarray


def first_layer(path: str) -> LayerFeatures:
    """Of the network, trained on images of a file."""
    dataset = load(f"npz:{path}")
    model, pipeline = Network(), Pipeline.of(dataset)
    trainer = Trainer(model, pipeline, Settings(steps=STEPS, batch_size=64))
    data = DeviceData.of(dataset, trainer.mesh)
    start = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    run = Run(trainer.start(start))
    run = train(trainer, run, data, subset(dataset.train, IMAGES, seed=0), learning_rate=0.05, seed=0)
    print(f"validation accuracy {run.history[-1]['validation_accuracy']:.1%}")
    return agop_jax.extract(model, run.state.variables, _seen(pipeline, dataset.train), layers="Conv_0")["Conv_0"]


def _seen(pipeline: Pipeline, split: Split) -> np.ndarray:
    return np.asarray(pipeline(jnp.asarray(split.images[:256])))


def row(layer: LayerFeatures, method: str) -> Row:
    """What one method draws from."""
    shape = (*KERNEL, FILTERS)
    if method == "kaiming_normal":
        covariance = 2 * np.eye(layer.nfm.size) / layer.nfm.size
    else:
        covariance = np.asarray(agop_jax.covariance(layer, method).dense())
    return Row(covariance, np.asarray(kernel_init(layer, method)(jax.random.key(1), shape)))


def draw(rows: dict[str, Row], ink: str, path: str) -> None:
    """One line of the figure for each method; the ground is that of the page."""
    with matplotlib.rc_context({"text.color": ink, "font.size": 9}):
        figure = Figure(figsize=(7.2, 3.4), layout="constrained")
        panels = figure.subplots(len(rows), FILTERS + 1, width_ratios=[1.25] + [1] * FILTERS)
        for line, (method, label) in zip(panels, ROWS.items(), strict=True):
            largest = np.abs(rows[method].covariance).max()
            line[0].imshow(rows[method].covariance, cmap="RdBu_r", vmin=-largest, vmax=largest)
            line[0].set_ylabel(label, color=ink, rotation=0, ha="right", va="center")
            for axes, kernel in zip(line[1:], np.moveaxis(rows[method].filters, -1, 0), strict=True):
                axes.imshow(0.5 + 0.5 * kernel / np.abs(kernel).max())
            for axes in line:
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
        panels[0, 0].set_title("covariance", fontsize=9)
        panels[0, 1].set_title("filters drawn from it", fontsize=9, loc="left")
        figure.savefig(path, dpi=180, transparent=True)


def main() -> None:
    """Trains once, draws twice."""
    path, stem = sys.argv[1:]
    layer = first_layer(path)
    rows = {method: row(layer, method) for method in ROWS}
    for palette, ink in INKS.items():
        draw(rows, ink, f"{stem}_{palette}.png")


if __name__ == "__main__":
    main()
