"""Recursive feature machines on vectors, in scikit-learn's manners."""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from agop_jax.core import devices
from agop_jax.core.types import Array, Float
from agop_jax.features.matrix import FeatureMatrix
from agop_jax.rfm import checks
from agop_jax.rfm.kernels import Kernel, Radial
from agop_jax.rfm.rounds import Machine, Recursion, feature_matrix
from agop_jax.rfm.solvers import Solver, chosen_method

Pair = tuple[Any, Any]


class RecursiveMachine(BaseEstimator):
    """What machines on vectors and on images, regressors and classifiers, have in common.

    A subclass says what its targets are (`_targets`) and how a round is judged on validation data (`_score`).
    """

    def __init__(
        self,
        bandwidth: int | float = 10.0,
        exponent: int | float = 1.0,
        ridge: int | float = 1e-3,
        iterations: int = 5,
        diagonal: bool = False,
        centred: bool = False,
        solver: str = "auto",
        rank: int = 1000,
        tolerance: int | float = 1e-3,
        steps: int = 200,
        memory: int | float | None = None,
        dtype: str = "float32",
        random_state: int = 0,
        progress: bool = True,
    ) -> None:
        self.bandwidth = bandwidth
        self.exponent = exponent
        self.ridge = ridge
        self.iterations = iterations
        self.diagonal = diagonal
        self.centred = centred
        self.solver = solver
        self.rank = rank
        self.tolerance = tolerance
        self.steps = steps
        self.memory = memory
        self.dtype = dtype
        self.random_state = random_state
        self.progress = progress

    @devices.on_purpose
    def fit(self, X: Any, y: Any, validation: Pair | None = None) -> Any:
        """Fits `iterations + 1` kernel machines, each with the AGOP of the one before.

        Args:
          X: inputs, (n, d) or images (n, h, w, c).
          y: targets, (n,) or (n, m); of a classifier labels, (n,).
          validation: inputs and targets; with them the round that does best there is kept, else the last.

        Raises:
          UserError: a parameter out of range, numbers that are not finite, fewer than two rows, targets that are all
            the same, a ridge of zero with repeated rows, a kernel matrix that does not fit.
        """
        checks.require_parameters(self.get_params())
        checks.require_targets(type(self).__name__, y)
        inputs, targets = self._inputs(X, reset=True), np.asarray(y)
        checks.require_rows(len(inputs))
        checks.require_same_length(inputs, targets)
        targets = self._targets(targets)
        checks.require_distinct(inputs, self.ridge)
        with self._precision():
            patches, score = self._patches(inputs), self._judge(validation)
            self.target_mean_ = targets.mean(0)
            centred = jnp.asarray(targets - self.target_mean_, self.dtype)
            recursion = self._recursion(patches.shape, targets.shape[1])
            self.machine_, self.history_ = recursion.run(patches, centred, score)
        self.M_: FeatureMatrix = feature_matrix(self.machine_)
        scores = [row["score"] for row in self.history_]
        self.best_round_ = int(np.nanargmax(scores)) if validation else self.iterations
        return self

    @devices.on_purpose
    def _outputs(self, X: Any) -> Float[np.ndarray, "n m"]:
        check_is_fitted(self)
        inputs = self._inputs(X, reset=False)
        with self._precision():
            return np.asarray(self.machine_(self._patches(inputs))) + self.target_mean_

    def _recursion(self, shape: tuple[int, ...], outputs: int) -> Recursion:
        count, positions, size = shape
        numbers, itemsize = (count, positions * size, outputs), np.dtype(self.dtype).itemsize
        rank = min(self.rank, count)
        method = chosen_method(self.solver, numbers, itemsize, self.memory, rank)
        solver = Solver(method, rank, self.tolerance, self.steps, self.random_state, self.progress)
        return Recursion(self._kernel(), solver, self.ridge, self.iterations, self.diagonal, self.centred)

    def _judge(self, validation: Pair | None) -> Callable[[Machine], float]:
        if validation is None:
            return lambda machine: math.nan
        inputs, truth = self._inputs(validation[0], reset=False), np.asarray(validation[1])
        checks.require_same_length(inputs, truth)
        patches = self._patches(inputs)
        return lambda machine: self._score(truth, np.asarray(machine(patches)) + self.target_mean_)

    def _precision(self) -> contextlib.AbstractContextManager:
        return jax.enable_x64(True) if self.dtype == "float64" else contextlib.nullcontext()

    def _inputs(self, X: Any, reset: bool) -> np.ndarray:
        inputs = np.asarray(validate_data(self, X, reset=reset, dtype=self.dtype, ensure_all_finite=False))
        checks.require_finite("X", inputs)
        if reset:
            self.mean_ = inputs.mean(0, dtype=np.float64).astype(self.dtype)
        return inputs

    def _patches(self, inputs: np.ndarray) -> Float[Array, "n positions k"]:
        """Around their mean, which no distance notices, but its rounding."""
        return jnp.asarray((inputs - self.mean_)[:, None])

    def _kernel(self) -> Kernel:
        return Radial(jnp.asarray(self.bandwidth, self.dtype), float(self.exponent))

    def _targets(self, targets: np.ndarray) -> Float[np.ndarray, "n m"]:
        raise NotImplementedError

    def _score(self, truth: np.ndarray, outputs: Float[np.ndarray, "n m"]) -> float:
        raise NotImplementedError


class Regression(RegressorMixin):
    """Targets are numbers."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def predict(self, X: Any) -> np.ndarray:
        """Numbers of the shape of the targets of `fit`."""
        outputs = self._outputs(X)
        return outputs if self.wide_ else outputs[:, 0]

    def _targets(self, targets: np.ndarray) -> np.ndarray:
        targets = np.asarray(targets, np.float64)
        checks.require_finite("y", targets)
        checks.require_variation(targets)
        self.wide_ = targets.ndim == 2
        return targets.reshape(len(targets), -1)

    def _score(self, truth: np.ndarray, outputs: np.ndarray) -> float:
        return -float(((outputs - truth.reshape(len(truth), -1)) ** 2).mean())


class Classification(ClassifierMixin):
    """Targets are labels: one output a class, one alone of two classes, fitted to 1 for the class and 0 for others."""

    def predict(self, X: Any) -> np.ndarray:
        """The label of the largest output."""
        outputs = self._by_class(self._outputs(X))
        return self.classes_[outputs.argmax(1)]

    def predict_proba(self, X: Any) -> Float[np.ndarray, "n classes"]:
        """Outputs cut to the range of 0 to 1 and divided by their sum: least squares gives no true probabilities."""
        outputs = np.clip(self._by_class(self._outputs(X)), 1e-6, 1)
        return outputs / outputs.sum(1, keepdims=True)

    def _targets(self, targets: np.ndarray) -> np.ndarray:
        if targets.dtype.kind == "f":
            checks.require_finite("y", targets)
        check_classification_targets(targets)
        targets = column_or_1d(targets, warn=True)
        self.classes_, places = np.unique(targets, return_inverse=True)
        checks.require_classes(self.classes_)
        chosen = np.arange(len(self.classes_)) if len(self.classes_) > 2 else np.array([1])
        return (places[:, None] == chosen).astype(np.float64)

    def _by_class(self, outputs: np.ndarray) -> np.ndarray:
        return np.concatenate([1 - outputs, outputs], 1) if outputs.shape[1] == 1 else outputs

    def _score(self, truth: np.ndarray, outputs: np.ndarray) -> float:
        return float((self.classes_[self._by_class(outputs).argmax(1)] == truth).mean())


class RFM(Regression, RecursiveMachine):
    """A recursive feature machine for regression: kernel ridge regression that learns the metric of its kernel.

    The kernel is `exp(-(|x - z|_M / bandwidth)^exponent)` with `|x|_M^2 = x^T M x`. M is the identity at first, and
    after each fit the AGOP of the fitted predictor f, `(1 / n) sum_i sum_l grad f_l(x_i) grad f_l(x_i)^T`, scaled to
    the trace of the identity. Radhakrishnan, Beaglehole, Pandit, Belkin, Science 2024 (arXiv 2212.13881), algorithm 1.

    Inputs are taken as they are: scale them, as with `StandardScaler`, where their units differ. Targets are fitted
    around their mean.

    Args:
      bandwidth: L, in units of the inputs.
      exponent: 1 is the Laplace kernel, 2 the Gaussian of standard deviation `bandwidth / sqrt(2)`.
      ridge: added to the diagonal of the kernel matrix, in units of that diagonal's mean, 1.
      iterations: fits after the first.
      diagonal: M is the diagonal of the AGOP.
      centred: gradients less their mean over the inputs, as a covariance has them.
      solver: 'cholesky', 'cg' (conjugate gradients preconditioned by a randomly pivoted partial Cholesky factor), or
        'auto': 'cholesky' while the kernel matrix fits into the memory.
      rank: of that factor.
      tolerance: relative residual at which conjugate gradients end.
      steps: of conjugate gradients, at most.
      memory: GiB that a fit may hold; None for four fifths of what is free.
      dtype: 'float32' or 'float64'.
      random_state: of the pivots.
      progress: whether conjugate gradients show a bar.

    Attributes:
      M_: of the round that was kept, a `FeatureMatrix` of trace d.
      machine_: the predictor of that round.
      history_: one dictionary a round: 'round', 'score' (on validation data: minus the mean squared error, or the
        accuracy), 'residual' and 'steps' of conjugate gradients, 'seconds'.
      best_round_: which round was kept; 0 is the one with the identity.
      n_features_in_: d.
    """


class RFMClassifier(Classification, RecursiveMachine):
    """`RFM` for labels: see there. `predict_proba` gives probabilities, `score` the accuracy.

    Attributes:
      classes_: labels, in the order of the columns of `predict_proba`.
    """
