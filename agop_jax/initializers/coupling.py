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
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from agop_jax.core.compilation import jit
from agop_jax.core.errors import UserError
from agop_jax.core.types import Array, Float, PRNGKey, Variables
from agop_jax.features import taps
from agop_jax.features.decompositions import thin_svd
from agop_jax.features.layer import LayerFeatures
from agop_jax.features.matrix import HIGHEST, FeatureMatrix
from agop_jax.initializers.registry import Method
from agop_jax.initializers.sources import carried_filters, mixing

RIDGE = 1e-3  # penalty, in units of the mean power of the recipient's channels
POOR_FIT = 0.2  # explained variance below which a coupled layer is hardly better than an independent one
CHUNK = 64  # images in one forward pass


class Donor(NamedTuple):
    """The donor as a network.

    Attributes:
      model: a Linen module with the recipient's layer names and strides.
      variables: its parameters and statistics.
      images: (n, h, w, c), the recipient's batch of images, normalised as the donor expects.
    """

    model: nn.Module
    variables: Variables
    images: Array


class Moments(NamedTuple):
    """Sums over images and positions at one layer; cin2 is the recipient's, cin the donor's number of channels."""

    power: Float[Array, "cin2 cin2"]  # recipient's input, second moments
    cross: Float[Array, "cin2 cin"]  # recipient's input times donor's
    donor_sum: Float[Array, "cin"]
    donor_square: Float[Array, ""]
    rows: Float[Array, ""]
    output_sum: Float[Array, ""]  # recipient's output, over channels too
    output_square: Float[Array, ""]
    output_count: Float[Array, ""]


def moments(
    model: nn.Module, variables: Variables, images: Array, donor: Donor | None, layers: tuple[str, ...]
) -> dict[str, Moments]:
    """Of every layer in `layers`, over all images, in chunks. Without a donor its terms are those of the recipient."""
    donor_model, donor_variables, donor_images = donor or (None, None, images)
    # a kernel that is drawn may be bound to its device where the one before was not, and jit would trace anew for that
    device = next(iter(jnp.asarray(images).devices()))
    variables, images, donor_variables, donor_images = jax.device_put(
        (variables, images, donor_variables, donor_images), device
    )
    step = _moments_step(model, donor_model, layers)
    size = math.ceil(len(images) / math.ceil(len(images) / CHUNK))  # of each chunk but the last, if that can be
    chunks = [slice(start, start + size) for start in range(0, len(images), size)]
    parts = (step(variables, images[chunk], donor_variables, donor_images[chunk]) for chunk in chunks)
    return functools.reduce(functools.partial(jax.tree.map, jnp.add), parts)


@functools.lru_cache(maxsize=16)
def _moments_step(model: nn.Module, donor_model: nn.Module | None, layers: tuple[str, ...]) -> Any:
    """Compiled once for a pair of networks, whatever their weights."""

    @jit
    def step(variables: Variables, images: Array, donor_variables: Variables | None, donor_images: Array):
        records = _records(model, variables, images, batch_statistics=True)  # as the recipient will be trained
        others = records if donor_model is None else _records(donor_model, donor_variables, donor_images)
        return {path: _layer_moments(path, records[path][0], others[path][0]) for path in layers}

    return step


def _records(
    model: nn.Module, variables: Variables, images: Array, *, batch_statistics: bool = False
) -> dict[str, list[taps.Record]]:
    with jax.default_matmul_precision("highest"):
        tapped = taps.tap(model, variables, images, batch_statistics=batch_statistics)
        return tapped.apply(variables, None, images)[1]


def _layer_moments(path: str, recipient: taps.Record, donor: taps.Record) -> Moments:
    if recipient.inputs.shape[:-1] != donor.inputs.shape[:-1]:
        found = f"{recipient.inputs.shape[1:-1]}, the donor's {donor.inputs.shape[1:-1]}"
        raise UserError(f"layer {path!r}: a coupled recipient needs the donor's positions, its input has {found}")
    ours = recipient.inputs.reshape(-1, recipient.inputs.shape[-1])
    theirs = donor.inputs.reshape(-1, donor.inputs.shape[-1])
    return Moments(
        power=jnp.dot(ours.T, ours, precision=HIGHEST),
        cross=jnp.dot(ours.T, theirs, precision=HIGHEST),
        donor_sum=theirs.sum(0),
        donor_square=(theirs**2).sum(),
        rows=jnp.float32(len(theirs)),
        output_sum=recipient.outputs.sum(),
        output_square=(recipient.outputs**2).sum(),
        output_count=jnp.float32(recipient.outputs.size),
    )


def fit_basis(at_layer: Moments) -> tuple[Float[Array, "cin2 cin"], Float[Array, ""]]:
    """B by ridge regression without intercept, and the share of the donor's variance that it explains (R^2)."""
    size = at_layer.power.shape[0]
    ridge = RIDGE * jnp.trace(at_layer.power) / size
    basis = jax.scipy.linalg.solve(at_layer.power + ridge * jnp.eye(size), at_layer.cross, assume_a="pos")
    explained = 2 * jnp.vdot(basis, at_layer.cross) - jnp.vdot(basis, jnp.dot(at_layer.power, basis, precision=HIGHEST))
    variance = at_layer.donor_square - (at_layer.donor_sum**2).sum() / at_layer.rows
    return basis, 1 - (at_layer.donor_square - explained) / variance


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
    if layer.groups > 1 or layer.stacked or layer.kernel.ndim < 3:
        raise UserError(f"layer {layer.path!r}: coupled methods take convolutions without groups, outside nn.scan")
    shuffle_key, basis_key = jax.random.split(key)
    if method.shuffled:
        basis = jax.random.permutation(shuffle_key, basis)
    factor = layer.factor(method.source.matrix)
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


def output_deviation(at_layer: Moments) -> Float[Array, ""]:
    """Standard deviation of a layer's output over images, positions and channels."""
    mean = at_layer.output_sum / at_layer.output_count
    return jnp.sqrt(jnp.maximum(at_layer.output_square / at_layer.output_count - mean**2, 0))
