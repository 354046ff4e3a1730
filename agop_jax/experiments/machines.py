"""Filters from recursive feature machines: of a donor that nothing trained, and of each recipient's own images."""

import time
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from absl import logging

from agop_jax.core.types import PRNGKey
from agop_jax.data import AnySplit, Dataset, Pipeline
from agop_jax.experiments.sections import MachineConfig
from agop_jax.experiments.settings import Config
from agop_jax.features.layer import LayerFeatures
from agop_jax.features.matrix import FeatureMatrix

SOURCE = "rfm:"  # of a donor


def drawn_features(
    config: MachineConfig,
    model: Any,
    variables: Any,
    pipeline: Pipeline,
    split: AnySplit,
    indices: np.ndarray,
    key: PRNGKey,
    layers: str,
) -> tuple[dict[str, LayerFeatures], float]:
    """The features of the convolutions of a network, layer after layer, and the seconds that they took.

    Args:
      config: of the machines.
      model, variables: the network before.
      pipeline: from stored images to what it sees.
      split: images and labels.
      indices: of those that may be used; `config.num_images` of them are.
      key: of the draws.
      layers: regular expression for the layers.
    """
    # scikit-learn takes a quarter of the program's start, and few experiments use machines
    from agop_jax.rfm import ConvRFMClassifier, deep_features

    start = time.perf_counter()
    inputs, labels = _examples(config, pipeline, split, indices)
    machine = ConvRFMClassifier(**_options(config), progress=False)
    features = deep_features(model, variables, inputs, labels, key=key, layers=layers, machine=machine)
    seconds = time.perf_counter() - start
    logging.info("filters of %d layers from recursive feature machines: %.1f s", len(features), seconds)
    return features, seconds


def are_used(config: Config) -> bool:
    """Whether a donor or an init of the experiment comes from machines."""
    inits = (init.partition("@")[0] for init in config.recipients.inits)
    return config.donor.source == SOURCE or "convrfm" in inits


class Rounds(NamedTuple):
    """A machine on the patches of images themselves, as pictures show it.

    Attributes:
      covariance: M of its last round, from which 'convrfm' draws.
      accuracies: on validation images, round by round; empty without such images.
    """

    covariance: FeatureMatrix
    accuracies: list[float]


def rounds_on_images(config: MachineConfig, pipeline: Pipeline, dataset: Dataset, kernel_size: int) -> Rounds:
    """Fitted to the training images, of which all may be used.

    With validation images a machine keeps its best round in place of the last, so they are shown to a second one.

    Args:
      config: of the machines.
      pipeline: from stored images to what the machines see.
      dataset: training and validation images.
      kernel_size: side of a patch.
    """
    from agop_jax.rfm import ConvRFMClassifier  # as above

    machine = lambda: ConvRFMClassifier(kernel_size=kernel_size, **_options(config), progress=False)
    examples = lambda split: _examples(config, pipeline, split, np.arange(len(split.labels)))
    train = examples(dataset.train)
    covariance = machine().fit(*train).M_
    if not len(dataset.validation.labels):
        return Rounds(covariance, [])
    judged = machine().fit(*train, validation=examples(dataset.validation))
    return Rounds(covariance, [row["score"] for row in judged.history_])


def _examples(
    config: MachineConfig, pipeline: Pipeline, split: AnySplit, indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    images, labels = split.take(indices[: config.num_images]).load()
    return np.asarray(pipeline(jnp.asarray(images))), labels


def _options(config: MachineConfig) -> dict[str, Any]:
    return {name: value for name, value in vars(config).items() if name != "num_images"}
