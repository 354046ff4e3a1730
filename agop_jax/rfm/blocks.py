"""Sums over the rows of a kernel matrix that is never whole: block by block, the rows divided over devices."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from agop_jax.core import devices
from agop_jax.core.types import Array, Float
from agop_jax.rfm.kernels import Kernel, gradient_block, kernel_block

BLOCK_BYTES = 32 * 2**20  # of one block of kernel values
TEMPORARIES = 4  # arrays of that size in flight at once, at most


def block_rows(columns: int, itemsize: int) -> int:
    """Rows of a block, so that its memory does not grow with the number of points."""
    return max(1, BLOCK_BYTES // (columns * itemsize))


def kernel_products(
    kernel: Kernel,
    rows: Float[Array, "n positions r"],
    columns: Float[Array, "c positions r"],
    weights: Float[Array, "c m"],
) -> Float[Array, "n m"]:
    """K(rows, columns) times weights."""
    over = devices.mesh()
    shape = _shape(len(rows), len(columns), rows.dtype, over)
    padded = _padded(rows, shape)
    kernel, columns, weights = devices.place((kernel, columns, weights), over)
    return devices.collect(_products(over, shape, padded, kernel, columns, weights)[: len(rows)], over)


def gradient_moments(
    kernel: Kernel,
    rows: Float[Array, "n positions r"],
    columns: Float[Array, "c positions r"],
    weights: Float[Array, "c m"],
) -> tuple[Float[Array, "r r"], Float[Array, "m r"]]:
    """What `gradient_block` sums, over all rows."""
    over = devices.mesh()
    shape = _shape(len(rows), len(columns), rows.dtype, over)
    padded, valid = _padded(rows, shape), _padded(jnp.ones(len(rows), rows.dtype), shape)
    kernel, columns, weights = devices.place((kernel, columns, weights), over)
    return devices.collect(_moments(over, shape, padded, valid, kernel, columns, weights), over)


kernel_columns = jax.jit(kernel_block)  # of few columns, or of few rows and columns


def _shape(rows: int, columns: int, dtype: Any, over: Mesh) -> tuple[int, int]:
    """Number and length of the blocks of one device; blocks of one length, so that few rows are padding."""
    own = math.ceil(rows / over.size)
    number = math.ceil(own / block_rows(columns, np.dtype(dtype).itemsize))
    return number, math.ceil(own / number)


def _padded(array: Array, shape: tuple[int, int]) -> Array:
    over = devices.mesh()
    missing = over.size * math.prod(shape) - len(array)
    padded = jnp.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) if missing else array
    return jax.device_put(padded, devices.divided(over))


def _divided(over: Mesh, function: Callable[..., Any], divided: int, arguments: tuple[Any, ...], result: Any) -> Any:
    """The function on each device's own part of the first arguments."""
    rows, whole = PartitionSpec(devices.AXIS), PartitionSpec()
    specs = tuple(rows if place < divided else whole for place in range(len(arguments)))
    return jax.shard_map(function, mesh=over, in_specs=specs, out_specs=result, check_vma=False)(*arguments)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _products(over: Mesh, shape: tuple[int, int], rows: Array, kernel: Kernel, columns: Array, weights: Array) -> Array:
    def own(rows: Array, kernel: Kernel, columns: Array, weights: Array) -> Array:
        one = lambda block: jnp.dot(kernel_block(kernel, block, columns), weights, precision="highest")
        return jax.lax.map(one, _blocks(rows, shape)).reshape(-1, weights.shape[1])

    return _divided(over, own, 1, (rows, kernel, columns, weights), PartitionSpec(devices.AXIS))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _moments(
    over: Mesh, shape: tuple[int, int], rows: Array, valid: Array, kernel: Kernel, columns: Array, weights: Array
) -> tuple[Array, Array]:
    def own(rows: Array, valid: Array, kernel: Kernel, columns: Array, weights: Array) -> tuple[Array, Array]:
        size = columns.shape[-1]
        start = jnp.zeros((size, size), rows.dtype), jnp.zeros((weights.shape[1], size), rows.dtype)

        def add(total: Any, block: Any) -> tuple[Any, None]:
            rows, valid = block
            return jax.tree.map(jnp.add, total, gradient_block(kernel, rows, valid, columns, weights)), None

        total, _ = jax.lax.scan(add, start, (_blocks(rows, shape), _blocks(valid, shape)))
        return jax.lax.psum(total, devices.AXIS)

    return _divided(over, own, 2, (rows, valid, kernel, columns, weights), (PartitionSpec(), PartitionSpec()))


def _blocks(rows: Array, shape: tuple[int, int]) -> Array:
    return rows.reshape(*shape, *rows.shape[1:])
