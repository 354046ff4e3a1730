"""Carrying a donor's basis from layer to layer.

The covariance of a layer after the first refers to input channels by index, and re-drawing the layer before exchanges
these channels. So the basis is carried along. Let F be a factor of the donor's matrix, F F^T = NFM (F = W) or AGOP
(F = W S^(1/2)), and xi a random mixing of its columns. The recipient's layer is

    W' = (I (x) B) F xi,       B: cin' x cin, the least-squares map with   donor's input  ~  recipient's input . B

over the images and positions of a batch, fitted after all layers before have been drawn; of a grouped convolution for
each group. For NFM and a perfect fit the recipient's pre-activations are `xi^T` times the donor's, a Gaussian mixture
of its features. Where the recipient's layer can hold it, the fit has an intercept c, `donor's ~ recipient's . B + c`,
and the layer gets the bias `xi^T (sum_p F_p^T c + b)`, with b the donor's bias and p the positions in the kernel.

With `noise=s` the new filters are the donor's own, each as often as any other, plus s times Gaussian noise of the
matrix's covariance and of the filters' mean squared norm: s = 0 copies, large s draws from the covariance. With
candidates, K times the filters are drawn and `selection.py` keeps the best of them. Rainbow networks (Guth, Menard,
Rochette & Mallat, JMLR 25(350), 2024) are the prior work: `W' = (I (x) A) C^(1/2) xi` with C the NFM and A the polar
factor of the cross-covariance of the two networks' inputs (Procrustes), one xi a layer, channels standardised.

In a residual network several layers write into one stream, `h = z_1 + z_2 + ...`. Mixed each with a xi of its own, the
recipient's stream `xi_1^T z_1 + xi_2^T z_2 + ...` would not determine h. Layers that write into one stream therefore
share one xi and one scale: then the recipient's stream is a multiple of `xi^T h`, and B exists as in a chain.
`streams.py` finds these layers. With BatchNorm between z and h this holds up to the normalisers of single channels, and
the fit says how well. With `@independent` every layer has a xi of its own there too, as Rainbow networks have it, and
with `rainbow@shared` a Rainbow network shares them.

The evidence is that of a regression of the donor's activations: partly a noisy transfer of its weights.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agop_jax.core.errors import UserError
from agop_jax.core.types import Array, Float, PRNGKey
from agop_jax.features.decompositions import thin_svd
from agop_jax.features.layer import LayerFeatures
from agop_jax.features.matrix import HIGHEST, FeatureMatrix
from agop_jax.initializers.methods import Method
from agop_jax.initializers.sources import mixing, require_life

RIDGE = 1e-3  # penalty, in units of the mean power of the recipient's channels
POOR_FIT = 0.2  # explained variance below which a coupled layer is hardly better than an independent one


class Moments(NamedTuple):
    """Sums over examples and positions; the recipient's inputs end with a channel of ones, for the intercept."""

    power: Any  # (group, cin2, cin2): recipient's input, second moments
    cross: Any  # (group, cin2, cin): recipient's input times donor's
    donor_square: Any  # (group,)


class Fit(NamedTuple):
    """The donor's input from the recipient's: `theirs ~ ours . basis + intercept`, for each group."""

    basis: np.ndarray  # (group, cin2, cin)
    intercept: np.ndarray  # (group, cin); zeros without one
    explained: float  # share of the donor's variance, on examples that the fit has not seen


class Mixture(NamedTuple):
    """New filters as mixtures of a donor's, for each group.

    Attributes:
      factor: (group, k, filters) what is mixed, in the donor's basis.
      bias: (group, filters) of what is mixed.
      xi: (group, filters, new).
    """

    factor: np.ndarray
    bias: np.ndarray
    xi: np.ndarray

    def blocks(self, number: int) -> list["Mixture"]:
        """So many mixtures, which divide the new filters among them."""
        return [self._replace(xi=xi) for xi in np.split(self.xi, number, axis=2)]

    def kept(self, columns: np.ndarray) -> "Mixture":
        """The mixture with these of its new filters: (group, number)."""
        return self._replace(xi=np.take_along_axis(self.xi, columns[:, None, :], axis=2))

    def kernel(self, fit: Fit) -> tuple[Array, Array]:
        """(I (x) B) F xi and xi^T (sum_p F_p^T c + b) in the recipient's basis: (k', new), (new,), groups in a row."""
        factor, shift, xi = (np.asarray(part, np.float64) for part in self)
        groups, _, cin = fit.basis.shape
        parts = factor.reshape(groups, -1, cin, factor.shape[-1])
        moved = np.einsum("gac,gpcf->gpaf", fit.basis, parts, optimize=True).reshape(groups, -1, factor.shape[-1])
        filters = np.moveaxis(moved @ xi, 0, 1)
        shift = shift + np.einsum("gpcf,gc->gf", parts, fit.intercept)
        bias = np.einsum("gf,gfn->gn", shift, xi)
        single = lambda array: jnp.asarray(array, jnp.float32)
        return single(filters.reshape(len(filters), -1)), single(bias.reshape(-1))


def require_kernel_size(path: str, donor: tuple[int, ...], recipient: tuple[int, ...]) -> None:
    """Refuses kernels that differ in more than their channels: a basis maps channels, not positions in a kernel."""
    if donor[:-2] != recipient[:-2]:
        raise UserError(
            f"layer {path!r}: the donor's kernel is {donor}, the recipient's {recipient}: coupled methods need the "
            "same kernel size, and take any number of channels; leave the layer out with layers=..."
        )


def moments(ours: Array, theirs: Array, layer: str, groups: int) -> Moments:
    """The moments of one chunk, from the recipient's and the donor's input of a layer, channels last.

    Raises:
      UserError: inputs of other positions.
    """
    if ours.shape[:-1] != theirs.shape[:-1]:
        raise UserError(
            f"layer {layer!r}: a coupled recipient needs the donor's positions, its input has {ours.shape[:-1]}, "
            f"the donor's {theirs.shape[:-1]}"
        )
    return _MOMENTS(_grouped(ours, groups), _grouped(theirs, groups))


def group_moments(ours: Array, theirs: Array) -> Moments:
    """The moments of rows (positions, groups, channels)."""
    ours = jnp.concatenate([ours, jnp.ones((*ours.shape[:-1], 1), ours.dtype)], axis=-1)
    product = lambda a, b: jnp.einsum("pga,pgb->gab", a, b, precision=HIGHEST)
    return Moments(product(ours, ours), product(ours, theirs), (theirs**2).sum((0, 2)))


_MOMENTS = jax.jit(group_moments)


def _grouped(rows: Array, groups: int) -> Array:
    return rows.reshape(-1, groups, rows.shape[-1] // groups)


def require_signal(layer: str, parts: Sequence[Moments]) -> None:
    """Between inputs of zeros there is no map to be fitted.

    Raises:
      UserError: names the layer, and whether its inputs are zero in the donor or in the recipient.
    """
    fit = _total(parts)
    own = np.einsum("gaa->", fit.power[:, :-1, :-1])  # without the channel of ones
    for whose, power in (("donor", fit.donor_square.sum()), ("recipient", own)):
        if not power > 0:
            raise UserError(
                f"layer {layer!r}: its inputs are zero in the {whose} for all examples, as behind a dead ReLU, so that "
                "no basis can be carried there: use 'he_nfm' or 'kaiming_normal' there, or leave the layer out with "
                "layers=..."
            )


def fit_basis(parts: Sequence[Moments], held_out: Sequence[Moments], kind: str, intercept: bool) -> Fit:
    """B and the intercept, in float64, and R^2 on the parts held out: on its own, noise would seem to be explained.

    Args:
      parts: to fit.
      held_out: to judge the fit by.
      kind: 'ridge' regression, whose penalty leaves the intercept alone; or 'procrustes', the partial isometry that
        is nearest to the donor's input: the polar factor of the cross moments.
      intercept: whether there is one.
    """
    fit, score = _total(parts), _total(held_out)
    own, solve = slice(None) if intercept else slice(-1), {"ridge": _ridge, "procrustes": _procrustes}[kind]
    power, cross = fit.power[:, own, own], fit.cross[:, own]
    solution = np.stack([solve(*one, intercept) for one in zip(power, cross, strict=True)])
    explained = 2 * np.vdot(solution, score.cross[:, own])
    explained -= np.einsum("gac,gab,gbc->", solution, score.power[:, own, own], solution)
    rows, square = score.power[0, -1, -1], score.donor_square.sum()
    variance = square - (score.cross[:, -1] ** 2).sum() / rows
    quality = 1 - float((square - explained) / variance) if variance > 0 else 0.0
    zeros = np.zeros_like(cross[:, 0])
    return Fit(solution[:, :-1], solution[:, -1], quality) if intercept else Fit(solution, zeros, quality)


def _total(parts: Sequence[Moments]) -> Moments:
    return Moments(*(np.asarray(sum(map(_double, part))) for part in zip(*parts, strict=True)))


def _double(array: Array) -> np.ndarray:
    return np.asarray(jax.device_get(array), np.float64)


def _ridge(power: np.ndarray, cross: np.ndarray, intercept: bool) -> np.ndarray:
    channels = len(power) - intercept
    penalty = np.zeros(len(power))
    penalty[:channels] = RIDGE * np.trace(power[:channels, :channels]) / channels
    return np.linalg.solve(power + np.diag(penalty), cross)


def _procrustes(power: np.ndarray, cross: np.ndarray, intercept: bool) -> np.ndarray:
    left, _, right = np.linalg.svd(cross, full_matrices=False)
    return left @ right


def mixture(key: PRNGKey, mixing_key: PRNGKey, method: Method, layer: LayerFeatures, number: int) -> Mixture:
    """What a coupled method draws for a layer: so many new filters, before they are moved to the recipient's basis.

    Args:
      key: for what is random in this layer alone: the controls.
      mixing_key: for xi; layers that write into one residual stream share it.
      method: a coupled method.
      layer: of the donor.
      number: of new filters, all groups together.
    """
    if layer.stacked:
        raise UserError(
            f"layer {layer.path!r}: coupled methods take layers of one matrix or of groups: no heads or scans"
        )
    matrix, lead = method.source.matrix, (layer.groups, -1, layer.kernel.shape[-1] // layer.groups)
    # numpy on the host, which compiles nothing for each shape
    weights, factor = (np.asarray(part).reshape(lead) for part in (layer.matrix, layer.factor(matrix)))
    root = np.asarray(layer.factor_root(matrix)).reshape(layer.groups, *factor.shape[-1:] * 2)
    bias = np.zeros(layer.kernel.shape[-1]) if layer.bias is None else np.asarray(layer.bias)
    require_life(layer, matrix, (factor**2).sum())
    xi = _xi(mixing_key, method, layer.groups, factor.shape[-1], number // layer.groups)
    if method.noise is not None:  # in terms of the donor's own filters, of which each new one is near
        ratio = np.sqrt((weights**2).sum() / (factor**2).sum())
        noise = np.asarray(jax.random.normal(jax.random.fold_in(mixing_key, 1), xi.shape)) / math.sqrt(xi.shape[1])
        xi = xi + method.noise * ratio * (root @ noise)
        factor, root = weights, np.broadcast_to(np.eye(xi.shape[1]), root.shape)
    if method.source.basis == "random":
        keys = [key] if layer.groups == 1 else jax.random.split(key, layer.groups)
        factor = np.stack(
            [_random_eigenvectors(one, jnp.asarray(part)) for one, part in zip(keys, factor, strict=True)]
        )
    return Mixture(factor, np.einsum("gd,gde->ge", bias.reshape(layer.groups, -1), root), xi)


def _xi(key: PRNGKey, method: Method, groups: int, donor: int, number: int) -> np.ndarray:
    mixed = 1 if method.noise is not None and method.mixed is None else method.mixed
    keys = [key] if groups == 1 else jax.random.split(key, groups)
    return np.stack([np.asarray(mixing(one, donor, number, mixed, method.orthogonal)) for one in keys])


def shuffled(fit: Fit, key: PRNGKey) -> Fit:
    """Control: the fit with the recipient's channels in random order."""
    order = np.asarray(jax.random.permutation(key, fit.basis.shape[1]))
    return fit._replace(basis=fit.basis[:, order])


def _random_eigenvectors(key: PRNGKey, factor: Float[Array, "k filters"]) -> Float[Array, "k filters"]:
    left, singular, right = thin_svd(factor)
    random = FeatureMatrix(left, singular).rotate(key).vectors
    return jnp.einsum("kr,r,rc->kc", random, singular, right, precision=HIGHEST)
