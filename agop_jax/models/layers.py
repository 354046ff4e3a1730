"""Operations that XLA's CPU backend is slow at, written so that it is not. Same values, on every backend.

Measured on 2 cores: a 3x3 convolution 512 -> 512 of a 64 x 2 x 2 batch took 1.07 s, as a product over patches 0.013 s;
the gradient of `nn.max_pool` is a select-and-scatter, that of a maximum over a reshaped axis a comparison.
"""

import functools
import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from agop_jax.core.types import Array, Float

SMALL = 2  # inputs up to 2 x 2


def scaled(features: int, width: float) -> int:
    """A number of channels times the width factor, at least one."""
    return max(1, round(features * width))


def max_pool(
    x: Float[Array, "n h w c"], window: int = 2, strides: int | None = None, padding: int = 0
) -> Float[Array, "n h2 w2 c"]:
    """Maxima of square windows; rows and columns that fill no window are dropped.

    Equal maxima of one window share the gradient; `nn.max_pool` gives it to the first.

    Args:
      x: images.
      window: side of a window.
      strides: between windows; None for the window's side.
      padding: rows and columns of minus infinity on every side.
    """
    strides = strides or window
    if padding:
        x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)), constant_values=-jnp.inf)
    n, h, w, c = x.shape
    if strides == window:
        x = x[:, : h // window * window, : w // window * window]
        return x.reshape(n, h // window, window, w // window, window, c).max((2, 4))
    for axis in (1, 2):  # a maximum over a square is one over rows of maxima over columns
        last = x.shape[axis] - window + 1
        slices = [jax.lax.slice_in_dim(x, i, last + i, strides, axis) for i in range(window)]
        x = functools.reduce(jnp.maximum, slices)
    return x


def adaptive_mean_pool(x: Float[Array, "n h w c"], size: int) -> Float[Array, "n size size c"]:
    """Means over size x size windows that cover the image, as PyTorch's `AdaptiveAvgPool2d`.

    Window i of n holds the rows from floor(i h / n) to ceil((i + 1) h / n): they overlap where n does not divide h. An
    image of this size stays as it is.
    """
    for axis in (1, 2):
        if (length := x.shape[axis]) != size:
            windows = [(i * length // size, -(-(i + 1) * length // size)) for i in range(size)]
            x = jnp.stack([jax.lax.slice_in_dim(x, *ends, axis=axis).mean(axis) for ends in windows], axis)
    return x


def convolve(lhs: Array, rhs: Array, strides, padding, **kwargs: Any) -> Array:
    """`jax.lax.conv_general_dilated` as `nn.Conv` calls it; inputs up to 2 x 2 as a matrix product over patches."""
    ones = (1, 1)
    plain = kwargs["lhs_dilation"] in (None, ones) and kwargs["rhs_dilation"] in (None, ones)
    small = lhs.ndim == 4 and max(lhs.shape[1:3]) <= SMALL
    if not (small and plain and kwargs["feature_group_count"] == 1):
        return jax.lax.conv_general_dilated(lhs, rhs, strides, padding, **kwargs)
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
    padded = jnp.pad(lhs, ((0, 0), *padding, (0, 0)))
    kh, kw, _, cout = rhs.shape
    rows = [(i, padded.shape[1] - kh + i + 1) for i in range(kh)]
    columns = [(j, padded.shape[2] - kw + j + 1) for j in range(kw)]
    taps = [padded[:, a : b : strides[0], c : d : strides[1]] for a, b in rows for c, d in columns]
    patches = jnp.concatenate(taps, axis=-1)
    return jnp.dot(patches, rhs.reshape(-1, cout), precision=kwargs.get("precision"))


Conv = partial(nn.Conv, conv_general_dilated=convolve)


class BatchNorm(nn.Module):
    """`nn.BatchNorm` over all axes but the last, with its parameters and statistics, and a derivative of its own.

    Attributes:
      use_running_average: normalise by the statistics kept, not by those of the batch.
      momentum, epsilon: PyTorch's defaults; its momentum counts the other way.
    """

    use_running_average: bool
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        """Normalised, scaled and shifted; in the type of input and parameters, statistics in float32 at least."""
        channels = x.shape[-1:]
        means = self.variable("batch_stats", "mean", jnp.zeros, channels)
        variances = self.variable("batch_stats", "var", jnp.ones, channels)
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        dtype = jnp.result_type(x, scale, bias)
        x, scale, bias = (array.astype(jnp.promote_types(array.dtype, jnp.float32)) for array in (x, scale, bias))
        if self.use_running_average:
            return _normalised(x, scale, bias, means.value, variances.value + self.epsilon).astype(dtype)
        y, mean, variance = _batch_normalised(x, scale, bias, self.epsilon)
        if not self.is_initializing():
            for kept, new in ((means, mean), (variances, variance)):
                kept.value = self.momentum * kept.value + (1 - self.momentum) * new
        return y.astype(dtype)


def _normalised(x: Array, scale: Array, bias: Array, mean: Array, variance: Array) -> Array:
    return (x - mean) * (jax.lax.rsqrt(variance) * scale) + bias


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _batch_normalised(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, Array, Array]:
    """The normalised batch, and the mean and variance of each channel: E[x^2] - E[x]^2."""
    mean = _mean(x)
    variance = jnp.maximum(0, _mean(x * x) - mean * mean)
    return _normalised(x, scale, bias, mean, variance + epsilon), mean, variance


@_batch_normalised.defjvp
def _batch_normalised_jvp(epsilon: float, primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Any, Any]:
    """Linear in two numbers a channel: its transpose, the gradient, has two sums over positions and not four."""
    (x, scale, _), (dx, dscale, dbias) = primals, tangents
    y, mean, variance = _batch_normalised(*primals, epsilon)
    inverse = jax.lax.rsqrt(variance + epsilon)
    unit = (x - mean) * inverse
    factor, dmean, covariance = scale * inverse, _mean(dx), _mean(unit * dx)
    shift, stretch = dbias - factor * dmean, dscale - factor * covariance
    dy = factor * dx + _over_positions(shift, x.shape) + unit * _over_positions(stretch, x.shape)
    return (y, mean, variance), (dy, dmean, 2 * covariance / inverse)


def _mean(x: Float[Array, "*n c"]) -> Float[Array, "c"]:
    """The mean over all axes but the last; on a CPU a product with ones takes a quarter of the time of XLA's sum."""
    count = x.size // x.shape[-1]
    product = lambda x: jnp.dot(jnp.ones(count, x.dtype), x.reshape(count, -1), precision="highest")
    plain = lambda x: x.sum(tuple(range(x.ndim - 1)))
    return jax.lax.platform_dependent(x, cpu=product, default=plain) / count


def _over_positions(channels: Float[Array, "c"], shape: tuple[int, ...]) -> Float[Array, "*n c"]:
    """Broadcast to this shape; on a CPU a product with ones, since its transpose is then one, too."""
    ones = lambda: jnp.ones((math.prod(shape[:-1]), 1), channels.dtype)
    product = lambda channels: jnp.dot(ones(), channels[None], precision="highest").reshape(shape)
    return jax.lax.platform_dependent(channels, cpu=product, default=lambda channels: jnp.broadcast_to(channels, shape))
