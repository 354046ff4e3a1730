"""The registry of initialisation methods and the `kernel_init` closures made from them.

A method draws every filter (column of W) of one layer independently. `Plain` methods know only the kernel's shape; the
others draw from N(0, Sigma) with Sigma a point in the product of four axes: covariance, scale, basis and mix.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.nn import initializers as jinit

from agop_jax.errors import UserError, unknown_name
from agop_jax.feature_matrix import FeatureMatrix
from agop_jax.layer_features import LayerFeatures
from agop_jax.patches import matrix_to_kernel
from agop_jax.types import Kernel, PRNGKey

KernelInit = Callable[..., Kernel]  # (key, shape, dtype) -> kernel, as Flax calls it

# The reference raises all eigenvalues of a singular matrix by this before it normalises; ours are singular if r < k.
REFERENCE_FLOOR = 1e-6
REFERENCE_IMAGES = 11  # its AGOP is a sum over this many images; ours is a mean
REFERENCE_AGOP_DIVISOR = 100


@dataclass(frozen=True)
class Plain:
    """Needs no donor."""

    description: str
    kernel_init: KernelInit


@dataclass(frozen=True)
class Covariance:
    """Filters from N(0, Sigma).

    Attributes:
      description: one line.
      matrix: 'nfm', 'agop' or 'sqrt_agop', the symmetric root of the AGOP.
      scale: 'unit_trace' (E|w|^2 = 1), 'he' (E|w|^2 = 2: what He et al. 2015 ask of a layer before a ReLU),
        'raw', or 'reference_kaiming' (Sigma * sqrt(2 / fan_in) as the reference has it: a factor meant for standard
        deviations, applied to a covariance).
      basis: 'donor', 'random' (same eigenvalues, Haar eigenvectors) or 'none' (isotropic of the same trace).
      mix: alpha in alpha * Sigma + (1 - alpha) * isotropic of the same trace.
      reference: use the reference's sum over images, floor and divisor.
    """

    description: str
    matrix: str
    scale: str
    basis: str = "donor"
    mix: float = 1.0
    reference: bool = False

    def sigma(self, layer: LayerFeatures, key: PRNGKey | None = None) -> FeatureMatrix:
        """The covariance of one filter; `key` draws the eigenvectors of basis 'random'."""
        with jax.ensure_compile_time_eval():  # once, not inside a jitted `model.init`
            matrix = self._scaled(self._matrix(layer))
        if self.basis == "none":
            return FeatureMatrix.isotropic(matrix.size, matrix.trace, matrix.values.dtype)
        if self.basis == "random":
            if key is None:
                raise ValueError("basis 'random' needs a key")
            matrix = matrix.rotate(key)
        return matrix if self.mix == 1 else matrix.mix(self.mix)

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
        return matrix.normalize({"unit_trace": 1.0, "he": 2.0}[self.scale])


def _uniform(key: PRNGKey, shape: Sequence[int], dtype=jnp.float32) -> Kernel:
    return jax.random.uniform(key, shape, dtype, -0.005, 0.005)


def _delta_orthogonal(key: PRNGKey, shape: Sequence[int], dtype=jnp.float32) -> Kernel:
    if len(shape) == 2:  # a Dense layer has no centre to put the delta at
        return jinit.orthogonal(math.sqrt(2))(key, shape, dtype)
    if shape[-2] > shape[-1]:
        raise UserError(f"delta_orthogonal: wanted at least as many filters as input channels, got kernel {tuple(shape)}")
    return jinit.delta_orthogonal(math.sqrt(2))(key, shape, dtype)


METHODS: dict[str, Plain | Covariance] = {
    "default": Plain(
        "PyTorch's default for a convolution: uniform, |w_i| < 1 / sqrt(fan_in)",
        jinit.variance_scaling(1 / 3, "fan_in", "uniform"),
    ),
    "zeros": Plain("all weights zero", jinit.zeros),
    "normal": Plain("Gaussian with standard deviation 0.01", jinit.normal(0.01)),
    "uniform": Plain("uniform of total width 0.01", _uniform),
    "xavier_normal": Plain(
        "Glorot & Bengio 2010 with gain sqrt(2): Gaussian, variance 4 / (fan_in + fan_out)",
        jinit.variance_scaling(2.0, "fan_avg", "normal"),
    ),
    "kaiming_uniform": Plain(
        "He et al. 2015: uniform, variance 2 / fan_in", jinit.variance_scaling(2.0, "fan_in", "uniform")
    ),
    "kaiming_normal": Plain(
        "He et al. 2015: Gaussian, variance 2 / fan_in (E|w|^2 = 2)", jinit.variance_scaling(2.0, "fan_in", "normal")
    ),
    "nfm": Covariance("reference: NFM with unit trace", "nfm", "unit_trace", reference=True),
    "agop": Covariance("reference: AGOP^(1/2) with unit trace", "sqrt_agop", "unit_trace", reference=True),
    "kaiming_nfm": Covariance(
        "reference: NFM * sqrt(2 / fan_in), a scale that differs by layer", "nfm", "reference_kaiming", reference=True
    ),
    "kaiming_agop": Covariance(
        "reference: AGOP^(1/2) / 100 * sqrt(2 / fan_in)", "sqrt_agop", "reference_kaiming", reference=True
    ),
    "he_nfm": Covariance("NFM at He scale (E|w|^2 = 2)", "nfm", "he"),
    "he_agop": Covariance("AGOP at He scale (E|w|^2 = 2)", "agop", "he"),
    "he_sqrt_agop": Covariance("AGOP^(1/2) at He scale (E|w|^2 = 2)", "sqrt_agop", "he"),
    "orthogonal": Plain(
        "Saxe et al. 2014: orthogonal filters with gain sqrt(2)", jinit.orthogonal(math.sqrt(2), column_axis=-1)
    ),
    "delta_orthogonal": Plain(
        "Xiao et al. 2018: an orthogonal matrix at the kernel's centre, gain sqrt(2)", _delta_orthogonal
    ),
}

CONTROLS = {
    "matched_isotropic": ("control: independent weights with the same E|w|^2 per layer as", "none"),
    "matched_spectrum": ("control: same eigenvalues, random eigenvectors, as", "random"),
}
CONTROLLED_BY_DEFAULT = "nfm"

# name -> what it is, one line each. A control may name what it controls: 'matched_spectrum:he_agop'.
INITIALIZERS: dict[str, str] = {name: method.description for name, method in METHODS.items()} | {
    name: f"{what} {CONTROLLED_BY_DEFAULT}" for name, (what, _) in CONTROLS.items()
}


def get_method(name: str) -> Plain | Covariance:
    """The method of this name; 'matched_isotropic:he_agop' is the control made for 'he_agop'."""
    control, _, base = name.partition(":")
    if control not in CONTROLS:
        if name not in METHODS:
            raise unknown_name("init", name, INITIALIZERS)
        return METHODS[name]
    method = METHODS.get(base or CONTROLLED_BY_DEFAULT)
    if not isinstance(method, Covariance):
        known = [known for known, method in METHODS.items() if isinstance(method, Covariance)]
        raise unknown_name(f"method to control in {name!r}:", base, known)
    what, basis = CONTROLS[control]
    return Covariance(f"{what} {base}", method.matrix, method.scale, basis, method.mix, method.reference)


def covariance(layer: LayerFeatures, method: str, key: PRNGKey | None = None) -> FeatureMatrix:
    """Sigma, the covariance of one filter under `method`: its trace is E|w|^2.

    Raises:
      UserError: the method is unknown or draws from no donor.
    """
    found = get_method(method)
    if isinstance(found, Plain):
        raise UserError(f"init {method!r} draws from no feature matrix")
    return found.sigma(layer, key)


def kernel_init(layer: LayerFeatures | None, method: str) -> KernelInit:
    """A Flax initialiser `(key, shape, dtype) -> kernel` for `nn.Conv(..., kernel_init=...)`.

    Args:
      layer: features of the donor's layer, such as `features['Conv_0']`; None will do for methods without a donor.
      method: a name in `INITIALIZERS`.

    Returns:
      The initialiser. It takes any number of filters; the kernel's other axes must be the donor's, else `UserError`.
    """
    found = get_method(method)
    if isinstance(found, Plain):
        return found.kernel_init
    if layer is None:
        raise UserError(f"init {method!r} needs the features of a donor")

    def init(key: PRNGKey, shape: Sequence[int], dtype=jnp.float32) -> Kernel:
        check_fit(layer, shape)
        basis_key, draw_key = jax.random.split(key)
        sigma = found.sigma(layer, basis_key)
        filters = sigma.sample(draw_key, shape[-1] // layer.groups)
        return draws_to_kernel(filters, layer, shape).astype(dtype)

    return init


def draws_to_kernel(filters: jax.Array, layer: LayerFeatures, shape: Sequence[int]) -> Kernel:
    """(*stack, group, num, k) draws to a kernel of this shape; the inverse of `LayerFeatures.matrix`."""
    columns = jnp.swapaxes(filters, -1, -2)
    steps = columns.reshape(-1, *columns.shape[layer.stacked :])
    kernels = jax.vmap(lambda matrix: matrix_to_kernel(matrix, shape[layer.stacked :]))(steps)
    return kernels.reshape(shape)


def check_fit(layer: LayerFeatures, shape: Sequence[int]) -> None:
    """The number of filters is free, the rest of a kernel's shape must be the donor's."""
    wanted, found = layer.kernel.shape[:-1], tuple(shape[:-1])
    if found != wanted:
        raise UserError(
            f"layer {layer.path!r}: the donor's kernel is {layer.kernel.shape}, so the recipient's must be "
            f"{(*wanted, 'any')}, got {tuple(shape)}: match its kernel size and input channels, or leave the layer out"
        )
    if shape[-1] % layer.groups:
        raise UserError(f"layer {layer.path!r}: wanted a multiple of {layer.groups} filters, got {shape[-1]}")
