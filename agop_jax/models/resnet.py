"""Residual networks (He, Zhang, Ren & Sun 2016), for ImageNet and for CIFAR."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from agop_jax.core.errors import unknown_name
from agop_jax.core.types import Array, Float
from agop_jax.models.layers import BatchNorm, Conv, max_pool, scaled

STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}  # depth -> blocks (Table 1)
STEMS = ("imagenet", "cifar")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut.

    Attributes:
      features: channels out.
      strides: of the first convolution.
      projection: a shortcut that changes the shape is a 1x1 convolution (option B); else it drops rows and columns and
        pads with channels of zeros, half before and half after (option A, without parameters).
    """

    features: int
    strides: int = 1
    projection: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "n h w cin"], train: bool = False) -> Float[Array, "n h2 w2 cout"]:
        """The block's output after its last ReLU."""
        norm = partial(BatchNorm, use_running_average=not train)
        y = Conv(self.features, (3, 3), self.strides, padding=1, use_bias=False)(x)
        y = nn.relu(norm()(y))
        y = norm()(Conv(self.features, (3, 3), padding=1, use_bias=False)(y))
        shortcut = _projected if self.projection else _padded
        return nn.relu(y + shortcut(x, self.features, self.strides, norm))


class BottleneckBlock(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the last with four times the channels; the stride is the 3x3's, as in torchvision.

    Attributes:
      features: channels of the first two convolutions.
      strides: of the second.
    """

    features: int
    strides: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "n h w cin"], train: bool = False) -> Float[Array, "n h2 w2 cout"]:
        """The block's output after its last ReLU."""
        norm = partial(BatchNorm, use_running_average=not train)
        y = nn.relu(norm()(Conv(self.features, (1, 1), use_bias=False)(x)))
        y = nn.relu(norm()(Conv(self.features, (3, 3), self.strides, padding=1, use_bias=False)(y)))
        y = norm()(Conv(4 * self.features, (1, 1), use_bias=False)(y))
        return nn.relu(y + _projected(x, 4 * self.features, self.strides, norm))


def _projected(x: Array, features: int, strides: int, norm: Any) -> Array:
    if strides == 1 and x.shape[-1] == features:
        return x
    return norm()(Conv(features, (1, 1), strides, use_bias=False)(x))


def _padded(x: Array, features: int, strides: int, norm: Any) -> Array:
    missing = features - x.shape[-1]
    return jnp.pad(x[:, ::strides, ::strides], ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))


class ResNet(nn.Module):
    """ResNet-18, -34 or -50 with projection shortcuts.

    Attributes:
      num_classes: logits.
      width: factor on all channels.
      depth: 18, 34 or 50.
      stem: 'imagenet' (7x7 convolution of stride 2 and max-pooling) or 'cifar' (3x3 convolution, for small images).
    """

    num_classes: int
    width: float = 1.0
    depth: int = 18
    stem: str = "imagenet"

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n classes"]:
        """Logits of normalised images."""
        block = BasicBlock if self.depth < 50 else BottleneckBlock
        x = self._stem(x, train)
        for stage, blocks in enumerate(STAGES[self.depth]):
            for index in range(blocks):
                strides = 2 if stage > 0 and index == 0 else 1
                x = block(scaled(64 * 2**stage, self.width), strides)(x, train)
        return nn.Dense(self.num_classes)(x.mean((1, 2)))

    def _stem(self, x: Array, train: bool) -> Array:
        if self.stem not in STEMS:
            raise unknown_name("stem", self.stem, STEMS)
        features, norm = scaled(64, self.width), partial(BatchNorm, use_running_average=not train)
        if self.stem == "cifar":
            return nn.relu(norm()(Conv(features, (3, 3), padding=1, use_bias=False)(x)))
        x = nn.relu(norm()(Conv(features, (7, 7), 2, padding=3, use_bias=False)(x)))
        return max_pool(x, 3, 2, padding=1)


class CIFARResNet(nn.Module):
    """The networks of section 4.2 for 32 x 32 images: 6 n + 2 layers, three stages, shortcuts without parameters.

    Attributes:
      num_classes: logits.
      width: factor on all channels.
      depth: 20, 32, 44, 56, ...
    """

    num_classes: int
    width: float = 1.0
    depth: int = 20

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool = False) -> Float[Array, "n classes"]:
        """Logits of normalised images."""
        x = Conv(scaled(16, self.width), (3, 3), padding=1, use_bias=False)(x)
        x = nn.relu(BatchNorm(use_running_average=not train)(x))
        for stage in range(3):
            for index in range((self.depth - 2) // 6):
                strides = 2 if stage > 0 and index == 0 else 1
                x = BasicBlock(scaled(16 * 2**stage, self.width), strides, projection=False)(x, train)
        return nn.Dense(self.num_classes)(x.mean((1, 2)))
