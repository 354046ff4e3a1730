"""Where a layer's filters come from: a formula, a donor's covariance, or its spatial part; `copies.py` has the copies.

Every source makes a Flax initialiser `(key, shape, dtype) -> kernel` for one layer; `methods.py` names them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agop_jax.core.errors import UserError
from agop_jax.core.types import Array, Float, Kernel, PRNGKey
from agop_jax.features.layer import LayerFeatures
from agop_jax.features.matrices import REFERENCE_IMAGES
from agop_jax.features.matrix import FeatureMatrix
from agop_jax.features.patches import matrix_to_kernel

KernelInit = Callable[..., Kernel]  # (key, shape, dtype) -> kernel, as Flax calls it

# The reference raises all eigenvalues of a singular matrix by this before it normalises; ours are singular if r < k.
REFERENCE_FLOOR = 1e-6
REFERENCE_AGOP_DIVISOR = 100
TRACES = {"unit_trace": 1.0, "he": 2.0}
MATRICES = ("nfm", "agop", "sqrt_agop")


@dataclass(frozen=True)
class Plain:
    """A formula that needs no donor."""

    init: KernelInit

    def kernel_init(self, layer: LayerFeatures | None) -> KernelInit:
        """The formula itself."""
        return self.init


@dataclass(frozen=True)
class Covariance:
    """Independent filters from N(0, Sigma).

    Attributes:
      matrix: 'nfm', 'agop' or 'sqrt_agop', the symmetric root of the AGOP.
      scale: 'unit_trace' (E|w|^2 = 1), 'he' (E|w|^2 = 2: what He et al. 2015 ask of a layer before a ReLU),
        'raw', or 'reference_kaiming' (Sigma * sqrt(2 / fan_in) as the reference has it: a factor meant for standard
        deviations, applied to a covariance).
      basis: 'donor', 'random' (same eigenvalues, Haar eigenvectors) or 'none' (isotropic of the same trace).
      mix: alpha in alpha * Sigma + (1 - alpha) * isotropic of the same trace.
      reference: use the reference's sum over images, floor and divisor.
    """

    matrix: str
    scale: str
    basis: str = "donor"
    mix: float = 1.0
    reference: bool = False

    def sigma(self, layer: LayerFeatures, key: PRNGKey | None = None) -> FeatureMatrix:
        """The covariance of one filter; `key` draws the eigenvectors of basis 'random'."""
        with jax.ensure_compile_time_eval():  # once, not inside a jitted `model.init`
            matrix = self._scaled(self._matrix(layer))
            require_life(layer, self.matrix, matrix.trace)
        if self.basis == "none":
            return FeatureMatrix.isotropic(matrix.size, matrix.trace, matrix.values.dtype)
        if self.basis == "random":
            if key is None:
                raise ValueError("basis 'random' needs a key")
            matrix = matrix.rotate(key)
        return matrix if self.mix == 1 else matrix.mix(self.mix)

    def kernel_init(self, layer: LayerFeatures) -> KernelInit:
        """Any number of filters; kernel size and input channels must be the donor's."""

        def init(key: PRNGKey, shape: Sequence[int], dtype=jnp.float32) -> Kernel:
            check_fit(layer, shape)
            basis_key, draw_key = jax.random.split(key)
            filters = self.sigma(layer, basis_key).sample(draw_key, shape[-1] // layer.groups)
            return draws_to_kernel(filters, layer, shape).astype(dtype)

        return init

    def _matrix(self, layer: LayerFeatures) -> FeatureMatrix:
        matrix = layer.nfm if self.matrix == "nfm" else layer.agop
        if self.reference and self.matrix != "nfm":
            matrix = matrix.scale(REFERENCE_IMAGES)
        if self.matrix == "sqrt_agop":
            matrix = matrix.power(0.5)
        singular = matrix.values.shape[-1] < matrix.size
        return matrix.add_floor(REFERENCE_FLOOR) if self.reference and singular else matrix

    def _scaled(self, matrix: FeatureMatrix) -> FeatureMatrix:
        if self.scale == "raw":
            return matrix
        if self.scale == "reference_kaiming":
            divisor = 1 if self.matrix == "nfm" else REFERENCE_AGOP_DIVISOR
            return matrix.scale(math.sqrt(2 / matrix.size) / divisor)
        return matrix.normalize(TRACES[self.scale])


def require_life(layer: LayerFeatures, name: str, trace: Any) -> None:
    """Refuses a matrix of zeros, from which only zeros could be drawn.

    The AGOP of a layer is zero where no output depends on it, its NFM where its weights are zero.
    """
    if isinstance(trace, jax.core.Tracer) or bool(np.all(trace > 0)):
        return
    cause, others = "as all its weights are", "'kaiming_normal'"
    if name != "nfm":
        cause = "as of a dead ReLU or a branch that a normalisation multiplies by zero"
        others = f"'he_nfm' or {others}"
    raise UserError(
        f"layer {layer.path!r}: its {name} is zero, {cause}: use a method without it there, such as {others}, or leave "
        "the layer out with layers=..."
    )


@dataclass(frozen=True)
class Spatial:
    """Filters whose kh*kw x kh*kw covariance is the donor's, averaged over channels; the channels are independent.

    Sigma = A (x) I with A the marginal of the NFM and E|w|^2 = 2. It names no channel, so any `cin` will do. It is the
    learned form of the structured initialisation of Trockman, Willmott & Kolter ("Understanding the covariance
    structure of convolutional filters", ICLR 2023): they transfer the covariance of a trained network's depthwise
    filters to another network. Nothing of their closed form is used here.
    """

    def sigma(self, layer: LayerFeatures) -> FeatureMatrix:
        """A, scaled so that the kh*kw weights of one channel have trace 1."""
        with jax.ensure_compile_time_eval():  # once, not inside a jitted `model.init`
            layer.require("nfm")
            taps = layer.kernel.reshape(-1, *layer.kernel.shape[-2:])  # positions in the kernel, cin, cout
            matrix = FeatureMatrix.from_factor(taps.reshape(len(taps), -1))
            require_life(layer, "nfm", matrix.trace)
            return matrix.normalize()

    def kernel_init(self, layer: LayerFeatures) -> KernelInit:
        """Any number of filters and of input channels; the kernel size must be the donor's."""
        if layer.stacked:
            raise UserError(f"layer {layer.path!r}: 'spatial' takes no scanned layer")

        def init(key: PRNGKey, shape: Sequence[int], dtype=jnp.float32) -> Kernel:
            check_fit(layer, (*shape[:-2], layer.kernel.shape[-2], shape[-1]))
            draws = self.sigma(layer).scale(2 / shape[-2]).sample(key, shape[-2] * shape[-1])
            return draws.T.reshape(shape).astype(dtype)

        return init


def draws_to_kernel(filters: Float[Array, "*stack num k"], layer: LayerFeatures, shape: Sequence[int]) -> Kernel:
    """Draws to a kernel of this shape; the inverse of `LayerFeatures.matrix`."""
    columns = jnp.swapaxes(filters, -1, -2)
    steps = columns.reshape(-1, *columns.shape[layer.stacked :])
    kernels = jax.vmap(lambda matrix: matrix_to_kernel(matrix, shape[layer.stacked :]))(steps)
    return kernels.reshape(shape)


def check_fit(layer: LayerFeatures, shape: Sequence[int]) -> None:
    """The number of filters is free, the rest of a kernel's shape must be the donor's."""
    donor_patch, patch = layer.kernel.shape[:-1], tuple(shape[:-1])
    if patch != donor_patch:
        raise UserError(
            f"layer {layer.path!r}: the donor's kernel is {layer.kernel.shape}, the recipient's {tuple(shape)}: this "
            "method needs the same kernel size and input channels, and takes any number of filters; 'selected' and the "
            "copies to another width take other channels; or leave the layer out with layers=..."
        )
    if shape[-1] % layer.groups:
        raise UserError(f"layer {layer.path!r}: wanted a multiple of {layer.groups} filters, got {shape[-1]}")


def mixing(
    key: PRNGKey, donor: int, recipient: int, mixed: int | None, orthogonal: bool
) -> Float[Array, "donor recipient"]:
    """xi: how each new filter mixes the donor's, with E|column|^2 = 1.

    Args:
      key: random.
      donor, recipient: numbers of filters.
      mixed: m, how many donor filters each new one mixes, with Gaussian weights; None for all. 1 copies them, each as
        often as any other, in random order.
      orthogonal: columns orthogonal within each run of `donor` columns, in place of independent Gaussian ones.
    """
    if orthogonal:
        blocks = jax.random.split(key, math.ceil(recipient / donor))
        return jnp.concatenate([jax.random.orthogonal(block, donor) for block in blocks], axis=1)[:, :recipient]
    gaussian_key, order_key = jax.random.split(key)
    m = donor if mixed is None else min(mixed, donor)
    weights = jax.random.normal(gaussian_key, (recipient, m)) / math.sqrt(m) if m > 1 else jnp.ones((recipient, 1))
    if m == donor:
        return weights.T
    rounds = jax.random.split(order_key, math.ceil(recipient * m / donor))
    order = jnp.concatenate([jax.random.permutation(one, donor) for one in rounds])[: recipient * m]
    columns = jnp.repeat(jnp.arange(recipient), m)
    return jnp.zeros((donor, recipient)).at[order, columns].add(weights.ravel())
