"""The one place that knows the order of a patch: rows, then columns, then channels (HWI), as in a Flax kernel."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

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
    """What each output position of a convolution sees, one flat patch per group.

    `jax.lax.conv_general_dilated_patches` puts channels first; highest precision, since it is itself a convolution.
    """
    spatial = len(kernel_size)
    if isinstance(padding, str) and padding.upper() not in ("SAME", "VALID"):
        raise UserError(f"explicit patches need padding 'SAME', 'VALID' or numbers, got {padding!r}: use method='gram'")
    layout = (0, spatial + 1, *range(1, spatial + 1))  # NHWC -> NCHW, which is also the layout of the answer
    patches = jax.lax.conv_general_dilated_patches(
        inputs.transpose(layout),
        kernel_size,
        strides,
        padding,
        lhs_dilation=input_dilation,
        rhs_dilation=kernel_dilation,
        precision=jax.lax.Precision.HIGHEST,
    )
    n, _, *positions = patches.shape
    window = math.prod(kernel_size)
    patches = patches.reshape(n, groups, inputs.shape[-1] // groups, window, *positions)
    patches = jnp.moveaxis(patches, (1, 3, 2), (-3, -2, -1))  # n, positions, groups, window, cin / groups
    return patches.reshape(n, *positions, groups, -1)
