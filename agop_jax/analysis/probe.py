"""What a network's last features tell of the classes before it is trained: a linear probe.

The last features are the inputs of the last layer, in the order of the computation. Ridge regression maps them to the
classes, one-hot; the penalty is the one of the best validation accuracy, and the test set is read once. Probes of
representations: Alain & Bengio 2017, arXiv 1610.01644.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agop_jax.core.blas import few_threads
from agop_jax.core.compilation import jit
from agop_jax.core.networks import Cache, Network, signature
from agop_jax.core.types import Array
from agop_jax.features.sites import Site
from agop_jax.features.taps import tap

PENALTIES = tuple(10.0**power for power in range(-6, 4))  # in units of the features' mean power

_FEATURES = Cache()
Labelled = tuple[np.ndarray, np.ndarray]  # features (n, k) and labels (n,)


@dataclass(frozen=True)
class Probe:
    """A fitted probe.

    Attributes:
      penalty: chosen of `PENALTIES`.
      validation_accuracy: which chose it.
      test_accuracy: fractions, as all accuracies; nan where features are not finite.
    """

    penalty: float
    validation_accuracy: float
    test_accuracy: float


def linear_probe(train: Labelled, validation: Labelled, test: Labelled, num_classes: int) -> Probe:
    """Ridge regression from features to one-hot classes, with an intercept that is not penalised.

    Args:
      train: to fit on.
      validation: to choose the penalty by; among equals the larger.
      test: read once.
      num_classes: labels are 0 to `num_classes - 1`.
    """
    if not all(np.isfinite(features).all() for features, _ in (train, validation, test)):
        return Probe(np.nan, np.nan, np.nan)
    with few_threads(min(train[0].shape)):
        return _fitted(train, validation, test, num_classes)


def _fitted(train: Labelled, validation: Labelled, test: Labelled, num_classes: int) -> Probe:
    features, labels = train
    mean, targets = features.mean(0, dtype=np.float64), np.eye(num_classes)[labels]
    centred, frequencies = features - mean, targets.mean(0)
    weights = dict(zip(PENALTIES, ridge(centred, targets - frequencies, PENALTIES), strict=True))

    def accuracy(split: Labelled, penalty: float) -> float:
        scores = (split[0] - mean) @ weights[penalty] + frequencies
        return float(np.mean(scores.argmax(-1) == split[1]))

    on_validation = {penalty: accuracy(validation, penalty) for penalty in PENALTIES}
    best = max(PENALTIES, key=lambda penalty: (on_validation[penalty], penalty))
    return Probe(best, on_validation[best], accuracy(test, best))


def ridge(features: np.ndarray, targets: np.ndarray, penalties: Iterable[float]) -> list[np.ndarray]:
    """argmin |X w - Y|^2 + n p s |w|^2 for every penalty p, with s the mean power of the features.

    Args:
      features: X (n, k), centred.
      targets: Y (n, m), centred.
      penalties: above 0.

    Returns:
      w (k, m) for each, from one eigendecomposition of X^T X or, with fewer examples than features, of X X^T.
    """
    x = np.asarray(features, np.float64)
    scale = np.mean(x**2) or 1.0
    wide = x.shape[1] > x.shape[0]
    values, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    right = vectors.T @ (targets if wide else x.T @ targets)
    solved = (vectors @ (right / (np.maximum(values, 0) + len(x) * p * scale)[:, None]) for p in penalties)
    return [x.T @ weights if wide else weights for weights in solved]


def last_features(network: Network, inputs: Any) -> Callable[[Any, Any, Any], Array]:
    """(params, others, batch) -> (n, k), what the last layer sees of each example; compiled once.

    Of a layer that is applied at many positions (a convolution, tokens) it is the mean over them, of a layer in a scan
    what its last step sees.

    Args:
      network: opened; with `training=True` a normalisation uses the statistics of the batch.
      inputs: of the shapes and types of the batches.
    """
    return _FEATURES.get(network, signature((network.params, network.others, inputs)), lambda: _last(network, inputs))


def _last(network: Network, inputs: Any) -> Callable[[Any, Any, Any], Array]:
    tapped = tap(network, inputs)
    place = list(tapped.sites)[-1]
    site, apply = tapped.sites[place], tapped.apply

    def features(params: Any, others: Any, batch: Any) -> Array:
        seen = apply(params, others, {}, batch)[1][place].inputs
        return _pooled(site, seen, len(jax.tree.leaves(batch)[0]))

    return jit(features)


def _pooled(site: Site, seen: Array, examples: int) -> Array:
    for _ in range(site.depth):
        seen = seen[-1]
    rows = site.channels_last(seen)
    if not site.is_convolution:
        rows = jnp.moveaxis(rows, -2, 0).reshape(examples, -1, rows.shape[-1] * int(np.prod(rows.shape[:-2])))
    return rows.mean(tuple(range(1, rows.ndim - 1)))
