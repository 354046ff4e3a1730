"""The networks that both sides run, with one set of weights, and images."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from agop_jax import models

Variables = dict[str, Any]


def random_variables(model: nn.Module, size: int, seed: int = 0) -> Variables:
    """He's scale with small biases, drawn with numpy, so that a peer's process needs no compiled initialiser.

    Of BatchNorm, scales and variances are near one, means near zero.
    """
    random = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))

    def draw(path: Any, leaf: Any) -> jax.Array:
        scale = math.sqrt(2 / math.prod(leaf.shape[:-1])) if path[-1].key == "kernel" else 0.05
        centre = float(path[-1].key in ("scale", "var"))
        return jnp.asarray(centre + scale * random.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def create(name: str, size: int, outputs: int = 10, width: float = 1.0, **fields: Any) -> tuple[nn.Module, Variables]:
    """A network of `agop_jax.models` and its weights."""
    model = models.create(name, outputs, width, **fields)
    return model, random_variables(model, size)


def smooth_images(number: int, size: int, seed: int = 0) -> np.ndarray:
    """(number, size, size, 3), normalised: noise at 8 x 8 brought to this size, so that neighbours are alike."""
    coarse = np.random.default_rng(seed).normal(size=(number, 8, 8, 3)).astype(np.float32)
    return np.asarray(jax.image.resize(jnp.asarray(coarse), (number, size, size, 3), "bilinear"))


def uint8_images(number: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images (number, size, size, 3) and labels of ten classes, as a data set holds them."""
    pixels = 127.5 + 50 * smooth_images(number, size, seed)
    return np.clip(pixels, 0, 255).astype(np.uint8), np.arange(number) % 10
