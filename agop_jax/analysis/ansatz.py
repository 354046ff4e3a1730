"""The neural feature ansatz, measured: is the NFM of a layer proportional to a power of its AGOP, beyond the trivial?

The ansatz (Radhakrishnan et al., Science 2024: NFM proportional to a power of the AGOP; for convolutions Beaglehole et
al. 2023, arXiv 2309.00570) compares W W^T with W S W^T. Both hold W, so their correlation is high for any W as long as
S is near a multiple of the identity. Three things tell what training added:

- the null: S turned by a random rotation Q, W (Q S Q^T) W^T, which keeps W and the eigenvalues of S;
- the untrained network;
- the centred comparison, with Delta = W - W0: Delta Delta^T against the AGOP, and against Delta S Delta^T, which is
  the centred correlation of Beaglehole, Mitliagkas & Agarwala 2024 (arXiv 2402.05271).

Everything is computed on the host in float64 from the factors W (k, f) and S (f, f); nothing is k x k.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from agop_jax.core import trees
from agop_jax.core.blas import few_threads
from agop_jax.core.errors import UserError
from agop_jax.core.files import Row
from agop_jax.core.networks import switches_of
from agop_jax.features.extraction import Extractor, merge
from agop_jax.features.layer import LayerFeatures

POWERS = (0.5, 1.0)
CANDIDATES = np.geomspace(1 / 16, 4, 418)  # for the best-fitting power: steps of 1 %
EXTRACTION = ("outputs", "labels", "apply_kwargs")
ROUNDING = np.finfo(np.float32).eps  # of S, relative to its largest eigenvalue


class Side(NamedTuple):
    """The AGOP's side of a comparison: W S W^T, for each of m groups or steps of a layer."""

    matrix: np.ndarray  # W, (m, k, f)
    gram: np.ndarray  # S, (m, f, f)


class Course(NamedTuple):
    """Similarity as a function of the power of the AGOP, (powers,)."""

    pearson: np.ndarray
    cosine: np.ndarray


def ansatz_report(
    model: Any,
    variables: Any,
    images: Any,
    init_variables: Any = None,
    *,
    powers: Sequence[float] = POWERS,
    layers: str = ".*",
    draws: int = 100,
    resamples: int = 100,
    batch_size: int = 32,
    seed: int = 0,
    **extraction: Any,
) -> list[Row]:
    """NFM against powers of the AGOP for every layer, with what is needed to judge the numbers.

    Args:
      model, variables: the trained network, as for `extract`.
      images: (n, h, w, c), normalised.
      init_variables: those that training started from, of NNX and Equinox a module. Without them a fresh draw of a
        Linen model's own initialisers is the untrained network, and the rows that need W0 are left out.
      powers: of the AGOP.
      layers: regular expression on layer paths.
      draws: random rotations of S for the null.
      resamples: bootstrap samples of batches for the interval of the best-fitting power.
      batch_size: images in a batch, the unit of the bootstrap; with fewer than 3 batches there is no interval.
      seed: of rotations, bootstrap and the fresh draw.
      **extraction: outputs, labels, apply_kwargs of `extract`.

    Returns:
      Rows of `results.ANSATZ_COLUMNS`, for `pandas.DataFrame` or `results.write_rows`. `comparison` is one of

        trained        W W^T against (W S W^T)^power
        untrained      the same for the untrained network
        centred        Delta Delta^T against (W S W^T)^power, Delta = W - W0
        centred_both   Delta Delta^T against (Delta S Delta^T)^power
        initial        W0 W0^T against W W^T

      `fitted` is 1 where `power` is the one of 1/16 to 4 with the highest Pearson correlation, with its 95 % interval.
      The null of such a row takes its best power in each draw, too. A layer of several matrices (groups of a
      convolution, steps of a scan) has the mean over them; power, null and interval are those of that mean.

    Raises:
      UserError: as `extract`; a power that is not above 0; a regular expression that matches no layer.
    """
    _check_arguments(powers, extraction)
    extractor = Extractor(model, variables, images, batch_size=batch_size, **extraction)
    paths = trees.select(extractor.layers, layers)
    parts = extractor.batches(variables)
    start = _untrained(model, images, seed, extraction) if init_variables is None else init_variables
    first = None if start is None else extractor.batches(start)
    rows = []
    for index, path in enumerate(paths):
        rng = np.random.default_rng((seed, index))
        study = Study(powers, draws, resamples, rng)
        with few_threads():  # many small decompositions
            rows += study.layer(path, parts, first, known=init_variables is not None)
    return rows


def _check_arguments(powers: Sequence[float], extraction: Mapping[str, Any]) -> None:
    if not powers or min(powers) <= 0:
        raise UserError(f"powers: wanted one or more above 0, got {tuple(powers)}")
    if unknown := extraction.keys() - EXTRACTION:
        raise UserError(
            f"ansatz_report: takes {', '.join(EXTRACTION)} for extraction, which is exact, got {', '.join(unknown)}"
        )


def _untrained(model: Any, images: Any, seed: int, extraction: Mapping[str, Any]) -> Any:
    """A fresh draw of a Linen model's own initialisers; other kinds of model do not tell how they were drawn."""
    if not isinstance(model, nn.Module):
        return None
    arguments = {**switches_of(type(model).__call__), **(extraction.get("apply_kwargs") or {})}
    return jax.jit(lambda key, x: model.init(key, x, **arguments))(jax.random.key(seed), images[:1])


class Study(NamedTuple):
    """How layers are compared; see `ansatz_report`."""

    powers: Sequence[float]
    draws: int
    resamples: int
    rng: np.random.Generator

    def layer(
        self,
        path: str,
        trained: Sequence[Mapping[str, LayerFeatures]],
        untrained: Sequence[Mapping[str, LayerFeatures]] | None,
        known: bool,
    ) -> list[Row]:
        """The rows of one layer, from the features of each batch; `known`: training started from the untrained one."""
        now = [part[path] for part in trained]
        matrix, gram = _matrix(now[0]), _mean_gram(now)
        if untrained is None:
            return self._compare(path, {"trained": matrix}, Side(matrix, gram), now)
        before = [part[path] for part in untrained]
        start = _matrix(before[0])
        centred = {"centred": matrix - start} if known else {}
        rows = self._compare(path, {"trained": matrix, **centred}, Side(matrix, gram), now)
        rows += self._compare(path, {"untrained": start}, Side(start, _mean_gram(before)), before)
        if known:
            rows += self._compare(path, {"centred_both": matrix - start}, Side(matrix - start, gram), now)
            identity = np.broadcast_to(np.eye(start.shape[-1]), gram.shape)
            course = similarity(matrix, Spectrum.of(Side(start, identity)), np.ones(1))
            rows.append(_row(path, "initial", 1.0, course, 0))
        return rows

    def _compare(
        self, path: str, factors: Mapping[str, np.ndarray], side: Side, batches: Sequence[LayerFeatures]
    ) -> list[Row]:
        """Each F F^T against the powers of one W S W^T, whose null and bootstrap they share."""
        powers, fixed = np.r_[np.asarray(self.powers, float), CANDIDATES], len(self.powers)
        true = Spectrum.of(side)
        turned = [Spectrum.of(rotated(side, self.rng)) for _ in range(self.draws)]
        resampled = [Spectrum.of(side._replace(gram=gram)) for gram in self._resampled(batches)]
        rows = []
        for name, factor in factors.items():
            course, null = similarity(factor, true, powers), [similarity(factor, x, powers) for x in turned]
            rows += [_row(path, name, power, course, i, null) for i, power in enumerate(self.powers)]
            best = fixed + _best(course, fixed)
            row = _row(path, name, powers[best], course, best, [_at_best(x, fixed) for x in null])
            each = [CANDIDATES[_best(similarity(factor, x, CANDIDATES))] for x in resampled]
            low, high = np.percentile(each, [2.5, 97.5]) if each else (np.nan, np.nan)
            rows.append(row | {"fitted": 1, "power_low": float(low), "power_high": float(high)})
        return rows

    def _resampled(self, batches: Sequence[LayerFeatures]) -> list[np.ndarray]:
        """S over as many batches, drawn with replacement; none where there are too few batches."""
        if len(batches) < 3:
            return []
        grams = np.stack([_gram(batch) for batch in batches])
        counts = np.array([batch.count for batch in batches], float)
        drawn = self.rng.multinomial(len(batches), np.full(len(batches), 1 / len(batches)), self.resamples) * counts
        return [np.tensordot(weights / weights.sum(), grams, 1) for weights in drawn]


class Spectrum(NamedTuple):
    """W S W^T in its eigenvectors: with W = Q R and R S R^T = V D V^T they are Q V."""

    directions: np.ndarray  # Q V, (m, k, r) with r = min(k, f)
    values: np.ndarray  # (m, r), smallest first

    @classmethod
    def of(cls, side: Side) -> "Spectrum":
        """An eigendecomposition of size r."""
        basis, upper = np.linalg.qr(side.matrix)
        values, vectors = np.linalg.eigh(upper @ side.gram @ _t(upper))
        return cls(basis @ vectors, values)


def similarity(factor: np.ndarray, spectrum: Spectrum, powers: np.ndarray) -> Course:
    """F F^T against (W S W^T)^p over all k x k entries, at every power p at once; the mean over the m matrices.

    With eigenvectors u_i, <F F^T, (W S W^T)^p> is the sum of D_i^p |F^T u_i|^2, and the sum of all entries, which
    Pearson's centring needs, that of D_i^p (1^T u_i)^2.
    """
    directions = spectrum.directions
    raised = _raised(spectrum.values, powers)  # (m, powers, r)
    along = lambda x: np.einsum("mpr,mr->mp", raised, x)
    inner = along(((_t(factor) @ directions) ** 2).sum(-2)), (raised**2).sum(-1)
    own = ((_t(factor) @ factor) ** 2).sum((-2, -1))[:, None]
    size = factor.shape[-2]
    means = (factor.sum(-2) ** 2).sum(-1)[:, None] / size, along(directions.sum(-2) ** 2) / size
    pearson = _ratio(inner[0] - means[0] * means[1], own - means[0] ** 2, inner[1] - means[1] ** 2)
    return Course(pearson.mean(0), _ratio(inner[0], own, inner[1]).mean(0))


def rotated(side: Side, rng: np.random.Generator) -> Side:
    """The null: Q S Q^T with Q of Haar measure on the f x f orthogonal matrices; W and the eigenvalues of S stay."""
    q, upper = np.linalg.qr(rng.normal(size=side.gram.shape))
    q = q * np.sign(np.diagonal(upper, axis1=-2, axis2=-1))[..., None, :]
    return side._replace(gram=q @ side.gram @ _t(q))


def _raised(values: np.ndarray, powers: np.ndarray) -> np.ndarray:
    """Eigenvalues over the largest, raised; what only rounding of S kept from zero is zero, or a small power lifts it.

    The scale does not matter to a correlation.
    """
    largest = values[..., -1:]
    shares = np.where(largest > 0, values / np.where(largest > 0, largest, 1), 0)
    shares = np.where(shares > ROUNDING * values.shape[-1], shares, 0)
    return shares[..., None, :] ** np.asarray(powers)[:, None]


def _ratio(ab: np.ndarray, aa: np.ndarray, bb: np.ndarray) -> np.ndarray:
    """ab / sqrt(aa bb); 0 where a matrix has no variation to correlate."""
    scale = np.sqrt(np.maximum(aa, 0) * np.maximum(bb, 0))
    return np.where(scale > 0, ab / np.where(scale > 0, scale, 1), 0.0)


def _best(course: Course, skip: int = 0) -> int:
    return int(np.argmax(course.pearson[skip:]))


def _at_best(course: Course, skip: int) -> Course:
    """The values at a draw's own best power, repeated at every index, whichever `_row` reads."""
    best = skip + _best(course, skip)
    return Course(*(np.full_like(values, values[best]) for values in course))


def _row(
    path: str, comparison: str, power: float, course: Course, index: int, null: Sequence[Course] | None = None
) -> Row:
    row: Row = {"layer": path, "comparison": comparison, "power": float(power), "fitted": 0}
    row |= {"power_low": np.nan, "power_high": np.nan}
    for name in Course._fields:
        row[name] = float(getattr(course, name)[index])
        drawn = [getattr(draw, name)[index] for draw in null or ()]
        row[f"null_{name}_mean"] = float(np.mean(drawn)) if drawn else np.nan
        row[f"null_{name}_95"] = float(np.percentile(drawn, 95)) if drawn else np.nan
    return row


def _matrix(layer: LayerFeatures) -> np.ndarray:
    matrix = np.asarray(layer.matrix, np.float64)
    return matrix.reshape(-1, *matrix.shape[-2:])


def _gram(layer: LayerFeatures) -> np.ndarray:
    gram = np.asarray(layer.gradient_gram, np.float64)
    return gram.reshape(-1, *gram.shape[-2:])


def _mean_gram(batches: Sequence[LayerFeatures]) -> np.ndarray:
    path = batches[0].path
    return _gram(merge([{path: batch} for batch in batches])[path])


def _t(array: np.ndarray) -> np.ndarray:
    return np.swapaxes(array, -1, -2)
