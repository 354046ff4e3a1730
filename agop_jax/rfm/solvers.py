"""Kernel ridge regression, (K + ridge I) weights = targets: exactly, or by conjugate gradients where K is too large.

What will be held is said before the run, and what does not fit is refused then.
"""

import math
import os
import time
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from absl import logging
from threadpoolctl import threadpool_limits

from agop_jax.core.compilation import GIB, TooLarge, free_bytes
from agop_jax.core.errors import UserError
from agop_jax.core.progress import bar
from agop_jax.core.types import Array, Float
from agop_jax.features.matrix import HIGHEST
from agop_jax.rfm.blocks import BLOCK_BYTES, TEMPORARIES, kernel_columns, kernel_products
from agop_jax.rfm.kernels import COLUMNS, Kernel
from agop_jax.rfm.pivots import Preconditioner, partial_cholesky, preconditioner

TILE = 1024  # rows and columns of the kernel matrix that are computed at a time
METHODS = ("auto", "cholesky", "cg")
SHARE = 0.8  # of the free memory that a run may take if no other number is given


class Solution(NamedTuple):
    """Weights of a predictor, and how well they solve their equation."""

    weights: Float[Array, "n m"]
    residual: float  # |(K + ridge I) weights - targets| / |targets|; of Cholesky not computed, NaN
    steps: int  # of conjugate gradients


@dataclass(frozen=True)
class Solver:
    """How the equation is solved.

    Attributes:
      method: 'cholesky' or 'cg', conjugate gradients preconditioned by a randomly pivoted partial Cholesky factor.
      rank: of that factor.
      tolerance: relative residual at which conjugate gradients end.
      steps: of conjugate gradients, at most.
      seed: of the pivots.
      progress: whether a bar is shown.
    """

    method: str
    rank: int
    tolerance: int | float
    steps: int
    seed: int = 0
    progress: bool = True

    def __call__(
        self, kernel: Kernel, points: Float[Array, "n positions r"], targets: Float[Array, "n m"], ridge: int | float
    ) -> Solution:
        """The weights for these mapped inputs.

        Raises:
          UserError: K + ridge I is not positive definite to rounding.
        """
        if self.method == "cholesky":
            return Solution(cholesky(kernel, points, targets, ridge), math.nan, 0)
        precondition = preconditioner(partial_cholesky(kernel, points, self.rank, self.seed), ridge)
        return conjugate_gradients(
            kernel, points, targets, ridge, precondition, self.tolerance, self.steps, self.progress
        )


def chosen_method(
    method: str, numbers: tuple[int, int, int], itemsize: int, memory: int | float | None, rank: int
) -> str:
    """'cholesky' where the kernel matrix fits, else 'cg'; logs what will be held.

    Args:
      method: 'auto' to choose by size.
      numbers: of inputs, of numbers that one mapped input has, and of outputs.
      itemsize: bytes of a number.
      memory: GiB that may be held; None for most of what is free.
      rank: of the preconditioner.

    Raises:
      TooLarge: the method does not fit.
    """
    room = SHARE * free_bytes() if memory is None else memory * GIB
    count, size, outputs = numbers
    points = (2 * size + max(size, COLUMNS) + 6 * outputs) * count * itemsize + TEMPORARIES * BLOCK_BYTES
    matrices = 1 if jax.default_backend() == "cpu" else 2  # a factor in the matrix's own place, or beside it
    needed = {
        "cholesky": points + matrices * count**2 * itemsize,
        "cg": points + rank * count * (itemsize + 24),  # the factor, and its singular vectors in float64
    }
    method = ("cholesky" if needed["cholesky"] <= room else "cg") if method == "auto" else method
    if needed[method] > room:
        remedy = "use solver='cg'" if method == "cholesky" else "lower rank, give fewer rows"
        raise TooLarge(
            f"{count} rows by solver {method!r} need {needed[method] / GIB:.2f} GiB of memory, {room / GIB:.2f} GiB "
            f"are free for it: {remedy}, or raise memory"
        )
    logging.info("%d rows by %s: %.2f of %.2f GiB of memory", count, method, needed[method] / GIB, room / GIB)
    return method


def cholesky(
    kernel: Kernel, points: Float[Array, "n positions r"], targets: Float[Array, "n m"], ridge: int | float
) -> Float[Array, "n m"]:
    """Weights by the Cholesky factor of the whole matrix: on a CPU in place on the host, else on the device."""
    weights = (_on_host if jax.default_backend() == "cpu" else _on_device)(kernel, points, targets, ridge)
    if not bool(jnp.isfinite(weights).all()):
        raise _indefinite(ridge, points.dtype)
    return weights


def _indefinite(ridge: int | float, dtype: object) -> UserError:
    return UserError(
        f"the kernel matrix plus a ridge of {ridge:g} is not positive definite in {dtype}: raise ridge, or use float64"
    )


def _on_host(kernel: Kernel, points: Array, targets: Array, ridge: int | float) -> Array:
    """LAPACK's own routine, which works in place; XLA would copy the matrix. Only a half of it is computed."""
    count = len(points)
    matrix = np.zeros((count, count), points.dtype)
    side = math.ceil(count / math.ceil(count / TILE))
    for row in range(0, count, side):
        for column in range(0, row + 1, side):
            tile = kernel_columns(kernel, points[row : row + side], points[column : column + side])
            matrix[row : row + side, column : column + side] = tile
    matrix[np.diag_indices(count)] += ridge
    factorise, solve = scipy.linalg.get_lapack_funcs(("potrf", "potrs"), (matrix,))
    with threadpool_limits(_threads(), user_api="blas"):
        factor, failed = factorise(matrix.T, lower=0, overwrite_a=True, clean=False)
        if failed:
            raise _indefinite(ridge, points.dtype)
        weights, _ = solve(factor, np.asarray(targets), lower=0)
    return jnp.asarray(weights)


def _threads() -> int:
    """Threads of LAPACK: half the cores.

    Its threads wait busily, and the pool of XLA has threads of its own. With as many as cores, the factor of 4,000
    points took 3.6 s on 2 cores that others used too; with one thread it took 1.1 s.
    """
    return max(1, (os.cpu_count() or 1) // 2)


@jax.jit
def _on_device(kernel: Kernel, points: Array, targets: Array, ridge: int | float) -> Array:
    matrix = kernel_columns(kernel, points, points) + ridge * jnp.eye(len(points), dtype=points.dtype)
    factor = jax.lax.linalg.cholesky(matrix, symmetrize_input=False)
    return jax.scipy.linalg.cho_solve((factor, True), targets)


def conjugate_gradients(
    kernel: Kernel,
    points: Float[Array, "n positions r"],
    targets: Float[Array, "n m"],
    ridge: int | float,
    precondition: Preconditioner,
    tolerance: int | float,
    steps: int,
    progress: bool = True,
) -> Solution:
    """Weights of all outputs at once. Each step computes one product with the kernel matrix, block by block.

    Logs a warning if the residual is above the tolerance after the last step.
    """
    size = jnp.maximum(jnp.linalg.norm(targets, axis=0), jnp.finfo(targets.dtype).tiny)
    weights, residuals = jnp.zeros_like(targets), targets
    shown = precondition(residuals)
    directions, product = shown, (residuals * shown).sum(0)
    start, left, step = time.perf_counter(), 1.0, 0
    with bar(desc="conjugate gradients", total=steps, show=progress, brief=False) as shown_bar:
        while left > tolerance and step < steps:
            moved = kernel_products(kernel, points, points, directions) + ridge * directions
            weights, residuals = _advance(weights, residuals, directions, moved, product)
            shown = precondition(residuals)
            directions, product = _turn(directions, residuals, shown, product)
            left, step = float((jnp.linalg.norm(residuals, axis=0) / size).max()), step + 1
            shown_bar.update()
            shown_bar.set_postfix(residual=f"{left:.1e}")
    remaining = kernel_products(kernel, points, points, weights) + ridge * weights - targets
    left = float((jnp.linalg.norm(remaining, axis=0) / size).max())  # the recursion's own drifts from it
    say = logging.warning if left > 2 * tolerance else logging.info
    say("conjugate gradients: residual %.1e after %d steps, %.1f s", left, step, time.perf_counter() - start)
    return Solution(weights, left, step)


@jax.jit
def _advance(weights: Array, residuals: Array, directions: Array, moved: Array, product: Array) -> tuple[Array, Array]:
    length = _ratio(product, (directions * moved).sum(0))
    return weights + length * directions, residuals - length * moved


@jax.jit
def _turn(directions: Array, residuals: Array, shown: Array, product: Array) -> tuple[Array, Array]:
    following = jnp.einsum("nm,nm->m", residuals, shown, precision=HIGHEST)
    return shown + _ratio(following, product) * directions, following


def _ratio(above: Array, below: Array) -> Array:
    """Zero for an output that is solved already."""
    return jnp.where(below > 0, above / jnp.where(below > 0, below, 1), 0)
