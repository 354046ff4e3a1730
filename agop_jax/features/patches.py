"""The one place that knows the order of a patch: rows, then columns, then channels (HWI), as in a Flax kernel."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from agop_jax.core.errors import UserError
from agop_jax.core.types import Array, Float, Kernel

Padding = str | Sequence[tuple[int, int]]


def kernel_to_matrix(kernel: Kernel, groups: int = 1) -> Float[Array, "*group k filters"]:
    """One filter a column. Grouped: (groups, k, cout / groups): group g owns the g-th run of filters."""
    matrix = kernel.reshape(-1, kernel.shape[-1])
    if groups == 1:
        return matrix
    return jnp.moveaxis(matrix.reshape(len(matrix), groups, -1), 1, 0)


def matrix_to_kernel(matrix: Float[Array, "*group k filters"], shape: Sequence[int]) -> Kernel:
    """Inverse of `kernel_to_matrix`."""
    if matrix.ndim == 3:
        matrix = jnp.moveaxis(matrix, 0, 1)
    return matrix.reshape(shape)


def extract_patches(
    inputs: Float[Array, "n *spatial cin"],
    kernel_size: Sequence[int],
    strides: Sequence[int],
    padding: Padding,
    kernel_dilation: Sequence[int],
    input_dilation: Sequence[int],
    groups: int = 1,
) -> Float[Array, "n *positions groups k"]:
    """What each output position of a convolution sees, one flat patch per group: slices of the padded input."""
    if isinstance(padding, str) and padding.upper() not in ("SAME", "VALID"):
        raise UserError(f"explicit patches need padding 'SAME', 'VALID' or numbers, got {padding!r}: use method='gram'")
    n, *sizes, cin = inputs.shape
    extent = [(size - 1) * dilation + 1 for size, dilation in zip(kernel_size, kernel_dilation, strict=True)]
    if isinstance(padding, str):
        dilated = [(size - 1) * dilation + 1 for size, dilation in zip(sizes, input_dilation, strict=True)]
        padding = jax.lax.padtype_to_pads(dilated, extent, strides, padding.upper())
    borders = [(low, high, inner - 1) for (low, high), inner in zip(padding, input_dilation, strict=True)]
    padded = jax.lax.pad(inputs, jnp.zeros((), inputs.dtype), [(0, 0, 0), *borders, (0, 0, 0)])
    room = zip(padded.shape[1:-1], extent, strides, strict=True)
    last = [(size - reach) // stride * stride + 1 for size, reach, stride in room]

    def seen(offset: tuple[int, ...]) -> Array:
        start = [place * dilation for place, dilation in zip(offset, kernel_dilation, strict=True)]
        stop = [first + reach for first, reach in zip(start, last, strict=True)]
        return jax.lax.slice(padded, (0, *start, 0), (n, *stop, cin), (1, *strides, 1))

    window = jnp.stack([seen(offset) for offset in np.ndindex(*kernel_size)], axis=-2)
    patches = window.reshape(*window.shape[:-1], groups, cin // groups)
    patches = jnp.moveaxis(patches, -2, -3)  # n, positions, groups, window, cin / groups
    return patches.reshape(*patches.shape[:-2], -1)
