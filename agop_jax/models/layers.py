"""Operations that XLA's CPU backend is slow at, written so that it is not. Same values, on every backend.

Measured on 2 cores: a 3x3 convolution 512 -> 512 of a 64 x 2 x 2 batch took 1.07 s, as a product over patches 0.013 s;
the gradient of `nn.max_pool` is a select-and-scatter, that of a maximum over a reshaped axis a comparison.
"""

import functools
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
    h, w = x.shape[1:3]
    if strides == window:
        return _window_maxima(x[:, : h // window * window, : w // window * window], window)
    for axis in (1, 2):  # a maximum over a square is one over rows of maxima over columns
        last = x.shape[axis] - window + 1
        slices = [jax.lax.slice_in_dim(x, i, last + i, strides, axis) for i in range(window)]
        x = functools.reduce(jnp.maximum, slices)
    return x


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _window_maxima(x: Float[Array, "n h w c"], window: int) -> Float[Array, "n h2 w2 c"]:
    return functools.reduce(jnp.maximum, _places(x, window))


@_window_maxima.defjvp
def _window_maxima_jvp(window: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """Where a window holds its maximum k times, each of these places has a share of 1 / k."""
    (x,), (tangent,) = primals, tangents
    n, h, w, c = x.shape
    maxima = _window_maxima(x, window)
    equal = sum((place == maxima).astype(x.dtype) for place in _places(x, window))
    windows = lambda array: array.reshape(n, h // window, window, w // window, window, c)
    chosen = jnp.where(windows(x) == maxima[:, :, None, :, None], windows(tangent), 0)
    return maxima, chosen.sum((2, 4)) / equal


def _places(x: Float[Array, "n h w c"], window: int) -> list[Float[Array, "n h2 w2 c"]]:
    """One array for each place of a window."""
    return [x[:, i::window, j::window] for i in range(window) for j in range(window)]


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
BatchNorm = partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)  # PyTorch's defaults; its momentum counts the other way
