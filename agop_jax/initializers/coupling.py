"""Carrying a donor's basis from layer to layer.

The covariance of a layer after the first refers to input channels by index, and re-drawing the layer before exchanges
these channels. So the basis is carried along. Let F be a factor of the donor's matrix, F F^T = NFM (F = W) or AGOP
(F = W S^(1/2)), and xi a random mixing of its columns. The recipient's layer is

    W' = (I (x) B) F xi,       B: cin' x cin, the least-squares map with   donor's input  ~  recipient's input . B

over the images and positions of a batch, fitted after all layers before have been drawn. For NFM and a perfect fit the
recipient's pre-activations are `xi^T` times the donor's, a Gaussian mixture of its features.

In a residual network several layers write into one stream, `h = z_1 + z_2 + ...`. Mixed each with a xi of its own, the
recipient's stream `xi_1^T z_1 + xi_2^T z_2 + ...` would not determine h. Layers that write into one stream therefore
share one xi and one scale: then the recipient's stream is a multiple of `xi^T h`, and B exists as in a chain.
`streams.py` finds these layers. With BatchNorm between z and h this holds up to the normalisers of single channels, and
the fit says how well.

The evidence is that of a regression of the donor's activations: partly a noisy transfer of its weights.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agop_jax.core.compilation import jit
from agop_jax.core.errors import UserError
from agop_jax.core.networks import Cache, Network
from agop_jax.core.types import Array, Float, PRNGKey
from agop_jax.features.decompositions import thin_svd
from agop_jax.features.layer import LayerFeatures
from agop_jax.features.matrix import HIGHEST, FeatureMatrix
from agop_jax.features.sites import Site
from agop_jax.features.taps import Record, Tapped, tap
from agop_jax.initializers.registry import Method
from agop_jax.initializers.sources import carried_filters, mixing, require_life

RIDGE = 1e-3  # penalty, in units of the mean power of the recipient's channels
POOR_FIT = 0.2  # explained variance below which a coupled layer is hardly better than an independent one
CHUNK = 64  # examples in one forward pass
HELD_OUT = 4  # one example in so many is kept from the fit and tells how good it is
_STEPS = Cache()


class Donor(NamedTuple):
    """The donor as a network.

    Attributes:
      model: with the recipient's layer names and strides; any kind of model that `extract` takes.
      variables: as for `extract`.
      inputs: the recipient's batch of inputs, normalised as the donor expects.
    """

    model: Any
    variables: Any
    inputs: Any


class Moments(NamedTuple):
    """Sums over examples and positions at one layer; cin2 is the recipient's, cin the donor's number of channels."""

    power: Float[Array, "cin2 cin2"]  # recipient's input, second moments
    cross: Float[Array, "cin2 cin"]  # recipient's input times donor's
    donor_sum: Float[Array, "cin"]
    donor_square: Float[Array, ""]
    rows: Float[Array, ""]


class Spread(NamedTuple):
    """Sums of a layer's products over examples, positions and channels, for each step of a scan."""

    total: Float[Array, "*steps"]
    square: Float[Array, "*steps"]
    count: Float[Array, "*steps"]

    @property
    def deviation(self) -> Float[Array, "*steps"]:
        """Standard deviation; the bias is not in it, so that it is proportional to the kernel."""
        mean = self.total / self.count
        return jnp.sqrt(jnp.maximum(self.square / self.count - mean**2, 0))


class Passes(NamedTuple):
    """One forward pass after another of a recipient, and beside it of its donor."""

    network: Network
    inputs: Any
    layers: tuple[str, ...]
    donor: Network | None = None
    donor_inputs: Any = None

    def moments(self, variables: Any, held_out: bool) -> dict[str, Moments]:
        """Of every layer, over the examples that the fit is made from, or over those that are held out."""
        places = np.arange(_count(self.inputs))
        held = places % HELD_OUT == HELD_OUT - 1
        chosen = places[held if held_out else ~held] if held.any() else places
        return self._sum("moments", variables, chosen)

    def spreads(self, variables: Any) -> dict[str, Spread]:
        """Of every layer's products."""
        return self._sum("spreads", variables, np.arange(_count(self.inputs)))

    def _sum(self, measure: str, variables: Any, chosen: np.ndarray) -> Any:
        size = math.ceil(len(chosen) / math.ceil(len(chosen) / CHUNK))  # of each chunk but the last, if that can be
        chunks = [chosen[start : start + size] for start in range(0, len(chosen), size)]
        parts = (self._chunk(measure, variables, chunk) for chunk in chunks)
        return functools.reduce(functools.partial(jax.tree.map, jnp.add), parts)

    def _chunk(self, measure: str, variables: Any, chunk: np.ndarray) -> Any:
        take = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf[chunk]), tree)
        inputs, theirs = take(self.inputs), None if self.donor is None else take(self.donor_inputs)
        donor_variables = None if self.donor is None else (self.donor.params, self.donor.others)
        # a kernel that is drawn may be bound to its device where the one before was not: jit would compile anew for it
        device = next(iter(jax.tree.leaves(inputs)[0].devices()))
        arguments = jax.device_put((variables, inputs, donor_variables, theirs), device)
        return self.step(measure, inputs, theirs)(*arguments)

    def step(self, measure: str, inputs: Any, donor_inputs: Any = None) -> Any:
        """What is compiled for batches of these shapes: (variables, inputs, donor's variables and inputs) -> sums.

        Args:
          measure: a key of `MEASURES`.
          inputs, donor_inputs: of one chunk.
        """
        tapped = tap(self.network, inputs)
        other = None if self.donor is None else tap(self.donor, donor_inputs)
        make = lambda: _step(tapped, other, self.layers, MEASURES[measure])
        return _STEPS.get(self.network, (measure, self.layers, id(tapped), id(other)), make)


def _count(inputs: Any) -> int:
    return len(jax.tree.leaves(inputs)[0])


def _step(tapped: Tapped, other: Tapped | None, layers: Sequence[str], measure: Any) -> Any:
    def step(variables: tuple[Any, Any], inputs: Any, donor_variables: Any, donor_inputs: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            records = tapped.records(variables, inputs)
            theirs = None if other is None else other.records(donor_variables, donor_inputs)
            return {layer: measure(layer, (tapped, records), (other, theirs)) for layer in layers}

    return jit(step)


def _first(layer: str, side: tuple[Tapped, Mapping[str, Record]]) -> tuple[Site, Record]:
    tapped, records = side
    if layer not in tapped.layers:
        raise UserError(f"layer {layer!r}: the donor has no such layer. It has: {', '.join(tapped.layers)}.")
    return tapped.first(layer), records[tapped.layers[layer][0]]


def _layer_moments(layer: str, recipient: Any, donor: Any) -> Moments:
    (site, record), (donor_site, donor_record) = _first(layer, recipient), _first(layer, donor)
    if site.depth or donor_site.depth or site.heads or site.groups > 1:
        raise UserError(f"layer {layer!r}: coupled methods take layers of one matrix: no groups, heads or scans")
    ours, theirs = site.channel_rows(record.inputs), donor_site.channel_rows(donor_record.inputs)
    if ours.shape[:-1] != theirs.shape[:-1]:
        positions = f"{ours.shape[:-1]}, the donor's {theirs.shape[:-1]}"
        raise UserError(f"layer {layer!r}: a coupled recipient needs the donor's positions, its input has {positions}")
    ours, theirs = ours.reshape(-1, ours.shape[-1]), theirs.reshape(-1, theirs.shape[-1])
    return Moments(
        power=jnp.dot(ours.T, ours, precision=HIGHEST),
        cross=jnp.dot(ours.T, theirs, precision=HIGHEST),
        donor_sum=theirs.sum(0),
        donor_square=(theirs**2).sum(),
        rows=jnp.asarray(len(theirs), theirs.dtype),
    )


def _layer_spread(layer: str, recipient: Any, donor: Any) -> Spread:
    site, record = _first(layer, recipient)
    outputs = record.outputs.astype(jnp.promote_types(record.outputs.dtype, jnp.float32))
    axes = tuple(axis for axis in range(outputs.ndim) if axis not in site.stack)
    count = jnp.full((), math.prod(outputs.shape[axis] for axis in axes), outputs.dtype)
    return Spread(outputs.sum(axes), (outputs**2).sum(axes), jnp.broadcast_to(count, outputs.sum(axes).shape))


MEASURES = {"moments": _layer_moments, "spreads": _layer_spread}


def require_signal(layer: str, fit: Moments) -> None:
    """Between inputs of zeros there is no map to be fitted.

    Raises:
      UserError: names the layer, and whether its inputs are zero in the donor or in the recipient.
    """
    for whose, power in (("donor", fit.donor_square), ("recipient", jnp.trace(fit.power))):
        if not bool(power > 0):
            raise UserError(
                f"layer {layer!r}: its inputs are zero in the {whose} for all examples, as behind a dead ReLU, so that "
                "no basis can be carried there: use 'he_nfm' or 'kaiming_normal' there, or leave the layer out with "
                "layers=..."
            )


def fit_basis(fit: Moments, held_out: Moments | None = None) -> tuple[Float[Array, "cin2 cin"], Float[Array, ""]]:
    """B by ridge regression without intercept, and the share of the donor's variance that it explains (R^2).

    R^2 is that of examples which the fit has not seen: on its own, noise would seem to be explained.
    """
    size = fit.power.shape[0]
    ridge = RIDGE * jnp.trace(fit.power) / size
    basis = jax.scipy.linalg.solve(fit.power + ridge * jnp.eye(size, dtype=fit.power.dtype), fit.cross, assume_a="pos")
    score = held_out or fit
    explained = 2 * jnp.vdot(basis, score.cross) - jnp.vdot(basis, jnp.dot(score.power, basis, precision=HIGHEST))
    variance = score.donor_square - (score.donor_sum**2).sum() / score.rows
    return basis, 1 - (score.donor_square - explained) / variance


def coupled_kernel(
    key: PRNGKey, mixing_key: PRNGKey, method: Method, layer: LayerFeatures, basis: Float[Array, "cin2 cin"], shape: Any
) -> Array:
    """(I (x) B) F xi as a kernel of this shape; its scale is that of the fit and still to be set.

    Args:
      key: for what is random in this layer alone: the controls.
      mixing_key: for xi; layers that write into one residual stream share it.
      method: a coupled method.
      layer: of the donor.
      basis: B, from `fit_basis`.
      shape: (kh, kw, cin', cout').
    """
    if layer.groups > 1 or layer.stacked:
        raise UserError(f"layer {layer.path!r}: coupled methods take layers of one matrix: no groups, heads or scans")
    shuffle_key, basis_key = jax.random.split(key)
    if method.shuffled:
        basis = jax.random.permutation(shuffle_key, basis)
    factor = layer.factor(method.source.matrix)
    require_life(layer, method.source.matrix, (factor**2).sum())
    if method.source.basis == "random":
        factor = _random_eigenvectors(basis_key, factor)
    xi = mixing(mixing_key, factor.shape[-1], shape[-1], method.mixed, method.orthogonal)
    return carried_filters(factor, basis, xi).reshape(shape)


def he_scale(kernel: Array) -> Array:
    """The factor that gives a kernel's filters |w|^2 = 2 in the mean."""
    return jnp.sqrt(2 * kernel.shape[-1] / jnp.maximum((kernel**2).sum(), np.finfo(np.float32).tiny))


def _random_eigenvectors(key: PRNGKey, factor: Float[Array, "k filters"]) -> Float[Array, "k filters"]:
    left, singular, right = thin_svd(factor)
    random = FeatureMatrix(left, singular).rotate(key).vectors
    return jnp.einsum("kr,r,rc->kc", random, singular, right, precision=HIGHEST)
