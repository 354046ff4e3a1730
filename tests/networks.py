"""Tiny networks, one for each construction that the taps have to see through."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

CLASSES = 3
IMAGE = (6, 7, 4)


def images(n: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, *IMAGE)).astype(np.float32)


def random_variables(model: nn.Module, dtype: str = "float32", seed: int = 1) -> dict[str, Any]:
    """Drawn with numpy: biases, scales and running statistics are not 0 and 1. The same numbers in every dtype."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), images())
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32).astype(dtype)
        fan_in = leaf.size / leaf.shape[-1] if name in ("kernel", "head") else 4
        return (rng.normal(size=leaf.shape) / np.sqrt(fan_in)).astype(np.float32).astype(dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


class OneConv(nn.Module):
    """A convolution, tanh, and a linear map that no tap sees, so that the convolution is the only layer."""

    options: Mapping[str, Any]

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Conv(**self.options)(x))
        head = self.param("head", nn.initializers.normal(), (x[0].size, 2))
        return x.reshape(len(x), -1) @ head


class Network(nn.Module):
    """A body, which is a function of this module and the images, before a mean over positions and a Dense."""

    body: Callable[[nn.Module, Any], Any]

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = self.body(self, x) if not train else _batch_norm(self, x, train=True)
        return nn.Dense(CLASSES)(x.mean(tuple(range(1, x.ndim - 1))))


class Block(nn.Module):
    """Two layers that keep the shape; the second argument and result are for `nn.scan`."""

    @nn.compact
    def __call__(self, x, _=None):
        x = nn.relu(nn.Conv(4, (3, 3), feature_group_count=2)(x))
        return nn.tanh(nn.Dense(4)(x)), None


def _residual(module, x):
    y = nn.relu(nn.Conv(5, (3, 3), strides=2)(x))
    return nn.tanh(y + nn.Conv(5, (3, 3))(y))


def _batch_norm(module, x, train=False):
    x = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x))
    return nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (1, 1))(nn.relu(x)))


def _shared(module, x):
    """The second call sees a smaller image than the first."""
    conv = nn.Conv(4, (3, 3))
    return nn.tanh(conv(nn.avg_pool(nn.tanh(conv(x)), (2, 2), (2, 2))))


def _remat(module, x):
    return nn.remat(Block)()(x)[0]


def _remat_shared(module, x):
    block = nn.remat(Block)()
    return block(block(x)[0])[0]


def _scan(module, x):
    axes = {"params": 0}
    return nn.scan(Block, variable_axes=axes, split_rngs={"params": True}, length=3)()(x, None)[0]


def _vmap(module, x):
    axes = {"params": 0}
    blocks = nn.vmap(Block, in_axes=None, variable_axes=axes, split_rngs={"params": True}, axis_size=2)()
    return blocks(x, None)[0].sum(0)


def _tokens(module, x):
    x = nn.tanh(nn.Dense(6)(x.reshape(len(x), -1, x.shape[-1])))
    return nn.tanh(nn.Dense(5)(x))


def _conv_1d(module, x):
    return nn.tanh(nn.Conv(5, 3, strides=2, padding=1, use_bias=False)(x.reshape(len(x), -1, x.shape[-1])))


def _weight_norm(module, x):
    return nn.tanh(nn.WeightNorm(nn.Conv(5, (3, 3)))(x))


NETWORKS: dict[str, nn.Module] = {
    "residual": Network(_residual),
    "batch_norm": Network(_batch_norm),
    "shared": Network(_shared),
    "remat": Network(_remat),
    "remat_shared": Network(_remat_shared),
    "scan": Network(_scan),
    "vmap": Network(_vmap),
    "tokens": Network(_tokens),
    "conv_1d": Network(_conv_1d),
    "weight_norm": Network(_weight_norm),
}
