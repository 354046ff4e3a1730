"""Networks by their shapes alone: nothing is computed, so that it takes no time, whatever their size."""

# pyright: reportArgumentType=false

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from agop_jax.core.networks import open_network, switches_of
from agop_jax.data import Pipeline
from agop_jax.features.taps import tap

Shape = tuple[int, ...]


def kernel_shapes(model: nn.Module, pipeline: Pipeline, shape: Sequence[int]) -> dict[str, Shape]:
    """Shapes of the kernels by the paths of their layers, in the order of the first calls.

    Args:
      model: the network.
      pipeline: what it sees of stored images.
      shape: (h, w, c) of a stored image.
    """
    images = jax.ShapeDtypeStruct((1, *shape), jnp.uint8)
    inputs = jax.eval_shape(pipeline, images)
    network = open_network(model, jax.eval_shape(functools.partial(_init, model), inputs))
    tapped = tap(network, inputs)
    kernels = jax.eval_shape(tapped.kernels, network.params, network.others)
    return {path: kernels[path].shape for path in tapped.layers}


def input_shape(pipeline: Pipeline, shape: Sequence[int]) -> Shape:
    """(h, w, c) of what a network sees of a stored image."""
    return jax.eval_shape(pipeline, jax.ShapeDtypeStruct((1, *shape), jnp.uint8)).shape[1:]


def _init(model: nn.Module, inputs: Any) -> Mapping[str, Any]:
    return model.init(jax.random.key(0), inputs, **switches_of(type(model).__call__))
