"""A recipient before its training: what its features tell already, and how new its filters are."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from agop_jax.analysis.novelty import nearest_cosine
from agop_jax.analysis.probe import Labelled, last_features, linear_probe
from agop_jax.core import devices, trees
from agop_jax.core.networks import Network, open_network
from agop_jax.core.types import Variables
from agop_jax.data import AnySplit
from agop_jax.experiments.recipients import Comparison
from agop_jax.experiments.sweep_tables import Cell
from agop_jax.features.layer import LayerFeatures
from agop_jax.features.taps import tap
from agop_jax.initializers.registry import get_method
from agop_jax.training.trainer import Trainer

BATCH = 250  # images in one forward pass of the probe


@devices.on_purpose
def before_training(
    comparison: Comparison, cell: Cell, seed: int, variables: Variables, trainer: Trainer
) -> dict[str, float]:
    """The columns of `results.csv` that say what a start is worth by itself.

    Args:
      comparison: what all recipients share.
      cell: of the recipient.
      seed: of the recipient.
      variables: its start.
      trainer: of its network.
    """
    method = get_method(cell.init)
    donor = comparison.donors["untrained" if method.untrained else "trained"].features
    layers = drawn_layers(comparison, variables, trainer)
    probe = probe_accuracy(comparison, cell, seed, variables, trainer) if comparison.config.recipients.probe else np.nan
    return {"probe_accuracy": probe, "nearest_cosine": nearest_cosine(layers, donor)}


def drawn_layers(comparison: Comparison, variables: Variables, trainer: Trainer) -> dict[str, LayerFeatures]:
    """The layers that `config.recipients.layers` selects, with their kernels."""
    network, inputs = open_network(trainer.model, variables), _sample(comparison, trainer)
    tapped = tap(network, inputs)
    kernels = tapped.kernels(network.params, network.others)
    sites = {path: tapped.first(path) for path in trees.select(tapped.layers, comparison.config.recipients.layers)}
    return {
        path: LayerFeatures(kernels[path], None, 1, path, site.groups, site.stacked) for path, site in sites.items()
    }


def probe_accuracy(comparison: Comparison, cell: Cell, seed: int, variables: Variables, trainer: Trainer) -> float:
    """Test accuracy of a linear probe on the last features of the recipient's own training images.

    A network with BatchNorm is run as in training, with the statistics of each batch: its own are those of no data.
    """
    most, dataset = comparison.config.recipients.probe, comparison.dataset
    normalised = "batch_stats" in variables
    network = open_network(trainer.model, variables, training=normalised)
    splits = (
        dataset.train.take(comparison.images(cell, seed)[:most]),
        *(_spaced(split, most) for split in (dataset.validation, dataset.test)),
    )
    train, validation, test = (_features(network, trainer, split) for split in splits)
    return linear_probe(train, validation, test, dataset.num_classes).test_accuracy


def _spaced(split: AnySplit, most: int) -> AnySplit:
    """At most so many images, evenly spaced, since a set may be in the order of its classes."""
    present = len(split.labels)
    return split.take(np.arange(min(present, most)) * present // min(present, most))


def _features(network: Network, trainer: Trainer, split: AnySplit) -> Labelled:
    parts = [_batch(network, trainer, images) for images in _batches(split)]
    return np.concatenate(parts)[: len(split.labels)], np.asarray(split.labels)


def _batches(split: AnySplit) -> Iterable[np.ndarray]:
    """Batches of one size, for one compilation; the last is filled up with the split's first images."""
    for start in range(0, len(split.labels), BATCH):
        yield np.asarray(split.take(np.arange(start, start + BATCH) % len(split.labels)).load().images)


def _batch(network: Network, trainer: Trainer, images: np.ndarray) -> np.ndarray:
    inputs = trainer.pipeline(jnp.asarray(images))
    features = last_features(network, inputs)
    return np.asarray(jax.device_get(features(network.params, network.others, inputs)), np.float64)


def _sample(comparison: Comparison, trainer: Trainer) -> jax.Array:
    return trainer.pipeline(jnp.asarray(comparison.dataset.train.take(np.arange(1)).load().images))
