"""The recursion: fit a kernel machine, take the AGOP of what it predicts for the M of its next kernel, and again.

Radhakrishnan, Beaglehole, Pandit, Belkin, Science 2024, algorithm 1. Here every M has the trace of the identity, k. So
the bandwidth keeps its meaning whatever the units of the targets: with the AGOP itself, targets a hundred times as
large would make the kernel a hundred times as narrow.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from agop_jax.core.blas import few_threads
from agop_jax.core.errors import UserError
from agop_jax.core.types import Array, Float
from agop_jax.features.matrix import HIGHEST, FeatureMatrix
from agop_jax.rfm.blocks import gradient_moments, kernel_products
from agop_jax.rfm.kernels import Kernel
from agop_jax.rfm.solvers import Solution, Solver


class Machine(NamedTuple):
    """A predictor, x -> K_M(x, points) weights.

    Attributes:
      kernel: of mapped patches.
      factor: F of M = F F^T; of a diagonal M a vector, the roots of the diagonal.
      points: training inputs as stacks of patches, mapped by F.
      weights: one column an output.
    """

    kernel: Kernel
    factor: Float[Array, "k r"] | Float[Array, "k"]
    points: Float[Array, "n positions r"]
    weights: Float[Array, "n m"]

    def __call__(self, patches: Float[Array, "n positions k"]) -> Float[Array, "n m"]:
        """Outputs."""
        return kernel_products(self.kernel, mapped(patches, self.factor), self.points, self.weights)

    def agop(self, centred: bool = False) -> Float[Array, "k k"] | Float[Array, "k"]:
        """Average over the training inputs, summed over positions and outputs; the diagonal alone of a diagonal M.

        Centred: of the gradients less each output's mean over inputs and positions.
        """
        gram, sums = gradient_moments(self.kernel, self.points, self.points, self.weights)
        count, positions, _ = self.points.shape
        if centred:
            gram = gram - jnp.dot(sums.T, sums, precision=HIGHEST) / (count * positions)
        if self.factor.ndim == 1:
            return self.factor**2 * jnp.diagonal(gram) / count
        left = jnp.dot(self.factor, gram, precision=HIGHEST)
        return jnp.dot(left, self.factor.T, precision=HIGHEST) / count


@dataclass(frozen=True)
class Recursion:
    """How rounds are made.

    Attributes:
      kernel: of mapped patches.
      solver: of each round's equation.
      ridge: of each round, in units of the mean of the kernel matrix's diagonal.
      iterations: rounds after the first fit, which has M = I.
      diagonal: whether M is the diagonal of the AGOP.
      centred: whether gradients are centred.
    """

    kernel: Kernel
    solver: Solver
    ridge: int | float
    iterations: int
    diagonal: bool
    centred: bool

    def run(
        self, patches: Float[Array, "n positions k"], targets: Float[Array, "n m"], score: Callable[[Machine], float]
    ) -> tuple[Machine, list[dict[str, Any]]]:
        """The machine of the round with the highest score, of equal ones the earliest, or the last where none has one.

        Args:
          patches: training inputs.
          targets: one column an output.
          score: of a machine, NaN without validation.

        Returns:
          The machine, and a row for each round: 'round', 'score', 'residual', 'steps', 'seconds'.
        """
        factor: Array = jnp.ones(patches.shape[-1], patches.dtype)  # the identity, as a diagonal
        kept: list[tuple[float, Machine]] = []
        rows = []
        for number in range(self.iterations + 1):
            start = time.perf_counter()
            machine, solution = self._fit(patches, targets, factor)
            reached = score(machine)
            if not kept or not reached <= kept[0][0]:
                kept = [(reached, machine)]
            if number < self.iterations:
                factor = self._next(machine)
            seconds = time.perf_counter() - start
            solved = {"residual": solution.residual, "steps": solution.steps}
            rows.append({"round": number, "score": reached, **solved, "seconds": seconds})
        return kept[0][1], rows

    def _fit(self, patches: Array, targets: Array, factor: Array) -> tuple[Machine, Solution]:
        points = mapped(patches, factor)
        ridge = self.ridge * float(self.kernel.diagonal(points).sum(1).mean())
        solution = self.solver(self.kernel, points, targets, ridge)
        return Machine(self.kernel, factor, points, solution.weights), solution

    def _next(self, machine: Machine) -> Array:
        if not self.diagonal and machine.factor.ndim == 1:
            machine = machine._replace(factor=jnp.diag(machine.factor))
        agop = machine.agop(self.centred)
        trace = jnp.trace(agop) if agop.ndim == 2 else agop.sum()
        if not bool(trace > 0):
            raise UserError("the AGOP is zero, as of a constant predictor: lower ridge, or look at the targets")
        agop = agop * len(agop) / trace
        return jnp.sqrt(jnp.maximum(agop, 0)) if self.diagonal else _root(agop)


def mapped(
    patches: Float[Array, "n positions k"], factor: Float[Array, "k r"] | Float[Array, "k"]
) -> Float[Array, "n positions r"]:
    """Every patch times F."""
    return patches * factor if factor.ndim == 1 else jnp.einsum("npk,kr->npr", patches, factor, precision=HIGHEST)


def _root(matrix: Float[Array, "k k"]) -> Float[Array, "k k"]:
    """F with F F^T = matrix, in float64."""
    with few_threads(len(matrix)):
        values, vectors = np.linalg.eigh(np.asarray(matrix, np.float64))
    return jnp.asarray(vectors * np.sqrt(np.maximum(values, 0)), matrix.dtype)


def feature_matrix(machine: Machine) -> FeatureMatrix:
    """M = F F^T, in float64 where the session has it."""
    factor = jnp.asarray(np.asarray(machine.factor))
    return FeatureMatrix.from_factor(jnp.diag(factor) if factor.ndim == 1 else factor)
