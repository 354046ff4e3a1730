"""How far an estimate of AGOP is from a reference of random cotangents, layer by layer, without a k x k matrix."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from agop_jax.features.layer import LayerFeatures

Grams = dict[str, np.ndarray]  # S of each convolution, float64
Features = Mapping[str, LayerFeatures]


class Errors(NamedTuple):
    """{convolution: relative Frobenius error} of an estimate at a number of reverse passes, and the stated one."""

    passes: int
    measured: dict[str, float]
    stated: dict[str, float] | None = None


class Truth:
    """The mean of independent runs of `probe`, and distances from it."""

    def __init__(self, runs: Sequence[Features]) -> None:
        self.runs = runs
        self._grams = [grams_of(run) for run in runs]
        self.mean = {path: np.mean([grams[path] for grams in self._grams], axis=0) for path in self._grams[0]}
        matrices = {path: np.asarray(runs[0][path].matrix, np.float64) for path in self.mean}
        self._kernel_grams = {path: matrix.T @ matrix for path, matrix in matrices.items()}
        self.norm = {path: self.distance(path, gram) for path, gram in self.mean.items()}

    def distance(self, path: str, difference: np.ndarray) -> float:
        """|W D W^T|_F of a difference D, without a k x k matrix: the root of tr(D K D K), K = W^T W."""
        product = difference @ self._kernel_grams[path]
        return math.sqrt(np.sum(product * product.T))

    def deviation(self, path: str) -> float:
        """Standard deviation of one run, relative to AGOP, from the spread of all."""
        squares = [self.distance(path, grams[path] - self.mean[path]) ** 2 for grams in self._grams]
        return math.sqrt(sum(squares) / (len(squares) - 1)) / self.norm[path]

    def stated_error(self) -> dict[str, float]:
        """Of one run, relative, as the runs themselves state it (root mean square)."""
        stated = [self.stated(run) for run in self.runs]
        return {path: math.sqrt(np.mean([one[path] ** 2 for one in stated])) for path in self.mean}

    def own_error(self) -> dict[str, float]:
        """Of the mean, relative."""
        return {path: error / math.sqrt(len(self.runs)) for path, error in self.stated_error().items()}

    def errors(self, grams: Grams) -> dict[str, float]:
        """Relative; the reference's own error is taken out, and no error found is below a tenth of it."""
        own = self.own_error()
        measured = {path: self.distance(path, grams[path] - self.mean[path]) / self.norm[path] for path in self.mean}
        return {path: math.sqrt(max(measured[path] ** 2 - own[path] ** 2, own[path] ** 2 / 100)) for path in measured}

    def stated(self, features: Features) -> dict[str, float]:
        """The standard errors that `probe` states, relative."""
        return {path: float(features[path].standard_error) / self.norm[path] for path in self.mean}

    def spread(self, passes: int) -> Errors:
        """Of the runs themselves: found by their spread, and stated by them."""
        measured = {path: self.deviation(path) for path in self.mean}
        return Errors(passes, measured, self.stated_error())


def grams_of(features: Features) -> Grams:
    """S of every convolution."""
    return {
        path: np.asarray(layer.gradient_gram, np.float64)
        for path, layer in features.items()
        if path.startswith("Conv_")
    }
