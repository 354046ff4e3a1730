"""Filters that whiten what a layer sees, from unlabelled examples alone.

With mean mu and covariance C = U diag(lambda) U^T of the patches that a layer sees, the filters are

    v_j = u_j / sqrt(lambda_j + eps)        for the largest eigenvalues,

and their negatives, with the bias -mu . v_j. After a ReLU a filter and its negative keep both signs of a direction, so
that nothing is lost. Sources: for the first layer Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (airbench,
arXiv 2404.00498). For whitening layer by layer Coates & Ng, "Learning feature representations with k-means" (2012), and
Krahenbuhl et al. (ICLR 2016: principal components of patches, each layer scaled to unit variance); PCANet (Chan et al.,
IEEE TIP 2015) takes principal components of patches layer by layer, without whitening and without a ReLU.

Layers that write into one residual stream, m of them, get the variance 1 / m each in place of 1, so that the stream,
a sum of m terms, has variance 1 if the terms are uncorrelated, however deep the network (the scale of Hayou et al.,
"Stable ResNet", 2021). What reads the stream whitens it, so that no other rule is needed.

Needs: examples; no donor, no labels. Costs: one eigendecomposition of min(k, positions) rows for each layer, and the
covariance of at most `ROWS` patches a chunk.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from agop_jax.core.errors import UserError
from agop_jax.core.types import Array, PRNGKey
from agop_jax.features.evaluation import Record
from agop_jax.features.layer import LayerFeatures
from agop_jax.features.patches import matrix_to_kernel
from agop_jax.features.sites import Site
from agop_jax.initializers.passes import Passes

EPS = 5e-4  # added to the eigenvalues, in units of their mean: airbench's, whose images have unit variance
ROWS = 2**13  # patches of a chunk of examples that enter a covariance, at most
AT_ONCE = 2**26  # numbers in explicit patches: those of all examples of a chunk may fill the memory
ROUNDING = 1e-6  # of the largest eigenvalue: smaller ones are float32's errors


@dataclass(frozen=True)
class Whitened:
    """The source of these filters, which are drawn for a layer of a whole model only."""

    def kernel_init(self, layer: LayerFeatures | None) -> Any:
        """Refused: it looks at what the layer sees."""
        raise UserError("'whitened' looks at the examples that a layer sees: use agop_jax.initialize")


class Spectrum(NamedTuple):
    """Mean (k,), leading eigenvectors (k, q) and their eigenvalues (q,), largest first, of patches of one matrix."""

    mean: np.ndarray
    vectors: np.ndarray
    values: np.ndarray
    scale: float  # mean of all k eigenvalues


def patches(site: Site, inputs: Array) -> Array:
    """(matrices, positions, k): of each group or head; the same positions at every call."""
    if not site.is_convolution:
        rows = site.patches(inputs)
        return _some(rows.reshape(-1, *rows.shape[-2:]), ROWS)
    examples = site.params["dimension_numbers"].lhs_spec[0]
    inputs = jnp.moveaxis(inputs, examples, 0)
    each = max(1, ROWS // len(inputs))

    def one(example: Array) -> Array:
        rows = site.patches(jnp.expand_dims(example, examples))
        return _some(rows[None] if site.groups == 1 else jnp.moveaxis(rows, 1, 0), each)

    size = math.prod(jax.eval_shape(lambda example: site.patches(jnp.expand_dims(example, examples)), inputs[0]).shape)
    per_example = jax.lax.map(one, inputs, batch_size=max(1, AT_ONCE // size))
    return jnp.moveaxis(per_example, 0, 1).reshape(per_example.shape[1], -1, per_example.shape[-1])


def all_patches(site: Site, record: Record) -> Array:
    """The patches of one chunk."""
    return patches(site, record.inputs)


def _some(rows: Array, number: int) -> Array:
    """So many of the positions, chosen at random once and for all: regular steps would be columns of an image."""
    total = rows.shape[1]
    if total <= number:
        return rows
    return rows[:, np.sort(np.random.default_rng(0).choice(total, number, replace=False))]


def moments(site: Site, record: Record) -> tuple[Array, Array, Array]:
    """Count, mean (matrices, k) and centred second moments (matrices, k, k) of the patches of one chunk."""
    rows = patches(site, record.inputs)
    mean = rows.mean(1)
    centred = rows - mean[:, None]
    second = jnp.einsum("gpa,gpb->gab", centred, centred, precision=jax.lax.Precision.HIGHEST)
    return jnp.full((), rows.shape[1], rows.dtype), mean, second


def spectra(parts: Sequence[tuple[Any, Any, Any]], number: int) -> list[Spectrum]:
    """The spectrum of each matrix, with `number` leading eigenvectors, from the moments of all chunks."""
    counts, means, seconds = (np.asarray(part, np.float64) for part in map(np.stack, zip(*parts, strict=True)))
    weights = counts / counts.sum()
    mean = np.einsum("n,ngk->gk", weights, means)
    gaps = means - mean
    covariance = seconds.sum(0) / counts.sum() + np.einsum("n,nga,ngb->gab", weights, gaps, gaps)
    return [_spectrum(one, matrix, number) for one, matrix in zip(mean, covariance, strict=True)]


def _spectrum(mean: np.ndarray, covariance: np.ndarray, number: int) -> Spectrum:
    k = len(covariance)
    if number < k // 2:  # of the last layers of VGG11 a twentieth is asked for
        values, vectors = scipy.linalg.eigh(covariance, subset_by_index=[k - number, k - 1])
    else:
        values, vectors = np.linalg.eigh(covariance)
    return Spectrum(mean, vectors[:, ::-1], values[::-1], float(np.trace(covariance)) / k)


def spectra_of_few(parts: Sequence[Any]) -> list[Spectrum]:
    """The spectrum of each matrix from the singular values of its patches, of which there are fewer than k."""
    return [_spectrum_of_few(rows) for rows in np.concatenate(jax.device_get(list(parts)), axis=1).astype(np.float64)]


def _spectrum_of_few(rows: np.ndarray) -> Spectrum:
    mean = rows.mean(0)
    centred = (rows - mean) / math.sqrt(len(rows))
    _, singular, right = np.linalg.svd(centred, full_matrices=False)
    return Spectrum(mean, right.T, singular**2, float((singular**2).sum()) / rows.shape[1])


def layer(
    passes: Passes, path: str, variables: Any, site: Site, shape: tuple[int, ...], key: PRNGKey
) -> tuple[Array, Array]:
    """A layer's kernel of this shape and its bias (*stack, filters); of each group or head by itself.

    Args:
      passes: standing before the layer.
      path, site: of the layer.
      variables: of the recipient.
      shape: of the kernel.
      key: of random rotations.
    """
    number, size = shape[-1] // site.groups, math.prod(shape[site.stacked : -1])
    if sum(walk.shape_of(patches).shape[1] for walk in passes.walks) > size:
        decompositions = spectra(passes.measure(path, moments, variables), min(size, math.ceil(number / 2)))
    else:
        decompositions = spectra_of_few(passes.measure(path, all_patches, variables))
    keys = jax.random.split(key, len(decompositions))
    pairs = [filters(spectrum, number, key) for spectrum, key in zip(decompositions, keys, strict=True)]
    kernels, biases = zip(*pairs, strict=True)
    kernel, bias = (jnp.asarray(np.stack(part), jnp.float32) for part in (kernels, biases))
    if site.groups > 1:
        return matrix_to_kernel(kernel, shape), bias.reshape(-1)
    return kernel.reshape(shape), bias.reshape(*shape[: site.stacked], -1)


def filters(spectrum: Spectrum, number: int, key: PRNGKey) -> tuple[np.ndarray, np.ndarray]:
    """(k, number) filters and their biases (number,).

    The leading directions and their negatives; where there are no more directions, random rotations of all of them and
    their negatives. All rotations of white data are white.

    Args:
      spectrum: of the patches.
      number: of filters.
      key: of the rotations.
    """
    alive = spectrum.values > ROUNDING * max(spectrum.values[0], np.finfo(float).tiny)
    vectors, values = spectrum.vectors[:, alive], spectrum.values[alive]
    if not vectors.size:
        raise UserError("its inputs do not vary on these examples, so that there is nothing to whiten")
    white = vectors / np.sqrt(values + EPS * spectrum.scale)
    pairs = min(math.ceil(number / 2), white.shape[1])
    blocks = [white[:, :pairs], -white[:, :pairs]]
    for block in range(math.ceil(number / (2 * pairs)) - 1):
        rotation = np.asarray(jax.random.orthogonal(jax.random.fold_in(key, block), white.shape[1]), np.float64)
        blocks += [white @ rotation, -white @ rotation]
    drawn = np.concatenate(blocks, axis=1)[:, :number]
    return drawn, -spectrum.mean @ drawn
