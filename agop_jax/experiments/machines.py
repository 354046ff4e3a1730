"""Filters from recursive feature machines: of a donor that nothing trained, and of each recipient's own images."""

import time
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging

from agop_jax.core.types import PRNGKey
from agop_jax.data import AnySplit, Pipeline
from agop_jax.experiments.settings import MachineConfig
from agop_jax.features.layer import LayerFeatures
from agop_jax.rfm import ConvRFMClassifier, deep_features

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
    """Of the convolutions of a network, layer after layer, and the seconds that it took.

    Args:
      config: of the machines.
      model, variables: the network before.
      pipeline: from stored images to what it sees.
      split: images and labels.
      indices: of those that may be used; `config.num_images` of them are.
      key: of the draws.
      layers: regular expression for the layers.
    """
    start = time.perf_counter()
    images, labels = split.take(indices[: config.num_images]).load()
    inputs = np.asarray(pipeline(jnp.asarray(images)))
    options = {name: value for name, value in vars(config).items() if name != "num_images"}
    machine = ConvRFMClassifier(**options, progress=False)
    features = deep_features(model, variables, inputs, labels, key=key, layers=layers, machine=machine)
    seconds = time.perf_counter() - start
    logging.info("filters of %d layers from recursive feature machines: %.1f s", len(features), seconds)
    return features, seconds
