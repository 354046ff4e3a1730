"""Networks by their shapes alone: nothing is computed, so that it takes no time, whatever their size."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from agop_jax.core import trees
from agop_jax.data import Pipeline
from agop_jax.features.taps import inference_arguments

Shape = tuple[int, ...]


def kernel_shapes(model: nn.Module, pipeline: Pipeline, shape: Sequence[int]) -> dict[str, Shape]:
    """Shapes of the kernels by the paths of their layers, in the order of the first calls.

    Args:
      model: the network.
      pipeline: what it sees of stored images.
      shape: (h, w, c) of a stored image.
    """
    called: dict[str, None] = {}

    def note(call: Any, arguments: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
        called["/".join(context.module.path)] = None
        return call(*arguments, **options)

    with nn.intercept_methods(note):
        images = jax.ShapeDtypeStruct((1, *shape), jnp.uint8)
        leaves = trees.flatten(jax.eval_shape(functools.partial(_init, model, pipeline), images)["params"])
    kernels = {path: leaves.get(trees.join(path, trees.KERNEL)) for path in called}
    return {path: leaf.shape for path, leaf in kernels.items() if leaf is not None}


def input_shape(pipeline: Pipeline, shape: Sequence[int]) -> Shape:
    """(h, w, c) of what a network sees of a stored image."""
    return jax.eval_shape(pipeline, jax.ShapeDtypeStruct((1, *shape), jnp.uint8)).shape[1:]


def _init(model: nn.Module, pipeline: Pipeline, images: Any) -> Mapping[str, Any]:
    return model.init(jax.random.key(0), pipeline(images), **inference_arguments(type(model).__call__))
