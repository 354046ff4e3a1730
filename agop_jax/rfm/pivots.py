"""Randomly pivoted partial Cholesky factors of a kernel matrix, and the preconditioner made of one.

Chen, Epperly, Tropp, Webber, arXiv 2207.06503 (the factor, in blocks of pivots), and Diaz, Epperly, Frangella, Tropp,
Webber, arXiv 2304.12465 (as a preconditioner for kernel ridge regression).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agop_jax.core.types import Array, Float
from agop_jax.features.decompositions import thin_svd
from agop_jax.features.matrix import HIGHEST
from agop_jax.rfm.blocks import kernel_columns
from agop_jax.rfm.kernels import Kernel

PIVOTS = 100  # drawn at a time
NEGLIGIBLE = 1e-5  # share of the trace of a block's residual below which its directions are rounding, in float32
# Units of the type's rounding by which the vectors may fail to be orthonormal: shrunk further, a direction may turn
# negative.
ROUNDING = 100


class PartialCholesky(NamedTuple):
    """K ~ factor factor^T, exact in the rows and columns of the pivots."""

    factor: Float[Array, "n rank"]
    residual: float  # trace of K - factor factor^T


class Preconditioner(NamedTuple):
    """The inverse of factor factor^T + shift I, times the shift, by the factor's singular vectors."""

    vectors: Float[Array, "n rank"]
    shrinkage: Float[Array, "rank"]  # 1 - shift / (value + shift)

    def __call__(self, residuals: Float[Array, "n m"]) -> Float[Array, "n m"]:
        """The preconditioner applied to every column."""
        return _shrunk(self.vectors, self.shrinkage, residuals)


def partial_cholesky(
    kernel: Kernel, points: Float[Array, "n positions r"], rank: int, seed: int = 0
) -> PartialCholesky:
    """Columns are drawn with probabilities proportional to what is left of the diagonal.

    Args:
      kernel: of the matrix.
      points: mapped inputs.
      rank: columns of the factor; fewer where nothing is left before.
      seed: of the draws.
    """
    random, left = np.random.default_rng(seed), np.array(kernel.diagonal(points).sum(1), np.float64)
    factor = jnp.zeros((len(points), rank), points.dtype)
    start, whole = 0, left.sum()
    while start < rank and left.sum() > NEGLIGIBLE * whole:
        number = min(PIVOTS, rank - start, np.count_nonzero(left))
        chosen = random.choice(len(left), number, replace=False, p=left / left.sum())
        columns = kernel_columns(kernel, points, points[chosen]) - _explained(factor, factor[chosen])
        block = _independent(np.asarray(columns[chosen], np.float64))
        new = jnp.dot(columns, jnp.asarray(block, columns.dtype), precision=HIGHEST)
        factor = jax.lax.dynamic_update_slice(factor, new, (0, start))
        left = np.maximum(left - np.asarray((new**2).sum(1), np.float64), 0)
        left[chosen] = 0
        start += block.shape[1]
    return PartialCholesky(factor[:, :start], float(left.sum()))


def preconditioner(approximation: PartialCholesky, ridge: int | float) -> Preconditioner:
    """The preconditioner of K + ridge I.

    Its shift is the ridge and the mean of what the factor leaves of the diagonal.
    """
    vectors, singular, _ = thin_svd(approximation.factor)
    shift = ridge + approximation.residual / len(vectors)
    share = shift / (singular**2 + shift)
    return Preconditioner(vectors, 1 - jnp.maximum(share, ROUNDING * jnp.finfo(vectors.dtype).eps))


def _independent(block: Float[np.ndarray, "b b"]) -> Float[np.ndarray, "b rank"]:
    """R with R^T block R = I, over the directions of the block that are more than rounding."""
    values, vectors = np.linalg.eigh((block + block.T) / 2)
    kept = values > NEGLIGIBLE * max(values.sum(), np.finfo(float).tiny)
    return vectors[:, kept] / np.sqrt(values[kept])


@jax.jit
def _explained(factor: Array, rows: Array) -> Array:
    return jnp.dot(factor, rows.T, precision=HIGHEST)


@jax.jit
def _shrunk(vectors: Array, shrinkage: Array, residuals: Array) -> Array:
    inside = jnp.dot(vectors.T, residuals, precision=HIGHEST)
    return residuals - jnp.dot(vectors, shrinkage[:, None] * inside, precision=HIGHEST)
