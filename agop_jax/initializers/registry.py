"""The registry of initialisation methods, and the `kernel_init` closures made from them.

A method is a source of filters and what is done with it in a whole model. Names may carry options, which are the axes
of the product space:

    matched_spectrum:he_agop    the control made for 'he_agop'
    he_nfm@mix=0.5@lsuv         options of any method, in any order
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers as jinit

from agop_jax.core.errors import UserError, unknown_name
from agop_jax.core.types import Kernel, PRNGKey
from agop_jax.features.layer import LayerFeatures
from agop_jax.features.matrix import FeatureMatrix
from agop_jax.initializers.sources import Copy, Covariance, KernelInit, Plain, Spatial


@dataclass(frozen=True)
class Method:
    """What a name stands for.

    Attributes:
      description: one line.
      source: of one layer's filters.
      lsuv: rescale each layer to unit output variance on a batch (Mishkin & Matas 2016).
      first: only the first selected layer; the others start as 'kaiming_normal'.
      coupled: carry the donor's basis from layer to layer (see `coupling.py`).
      mixed: m, the number of donor filters each new one mixes when coupled; None for all.
      orthogonal: mix with orthogonal columns when coupled.
      shuffled: control: the fit of the basis with the recipient's channels in random order.
      untrained: control: the donor before its training.
      matched: control: the method whose filters' norms it has, layer by layer.
    """

    description: str
    source: Any
    lsuv: bool = False
    first: bool = False
    coupled: bool = False
    mixed: int | None = None
    orthogonal: bool = False
    shuffled: bool = False
    untrained: bool = False
    matched: "Method | None" = None

    @property
    def needs_donor(self) -> bool:
        """Whether it draws on features at all."""
        return not isinstance(self.source, Plain)

    @property
    def needs_network(self) -> bool:
        """Whether it, or what it is the control of, runs the donor."""
        return self.coupled or (self.matched is not None and self.matched.coupled)

    @property
    def layerwise(self) -> bool:
        """Whether one layer can be drawn without the others, as `kernel_init` does."""
        return not (self.lsuv or self.first or self.coupled)


def _uniform(key: PRNGKey, shape: Sequence[int], dtype=jnp.float32) -> Kernel:
    return jax.random.uniform(key, shape, dtype, -0.005, 0.005)


def _delta_orthogonal(key: PRNGKey, shape: Sequence[int], dtype=jnp.float32) -> Kernel:
    if len(shape) == 2:  # a Dense layer has no centre to put the delta at
        return jinit.orthogonal(math.sqrt(2))(key, shape, dtype)
    if shape[-2] > shape[-1]:
        raise UserError(
            f"delta_orthogonal: wanted at least as many filters as input channels, got kernel {tuple(shape)}"
        )
    return jinit.delta_orthogonal(math.sqrt(2))(key, shape, dtype)


ORTHOGONAL = Plain(jinit.orthogonal(math.sqrt(2), column_axis=-1))
KAIMING_NORMAL = Plain(jinit.variance_scaling(2.0, "fan_in", "normal"))
HE_NFM = Covariance("nfm", "he")
HE_AGOP = Covariance("agop", "he")
HE_SQRT_AGOP = Covariance("sqrt_agop", "he")

METHODS: dict[str, Method] = {
    "default": Method(
        "PyTorch's default for a convolution: uniform, |w_i| < 1 / sqrt(fan_in)",
        Plain(jinit.variance_scaling(1 / 3, "fan_in", "uniform")),
    ),
    "zeros": Method("all weights zero", Plain(jinit.zeros)),
    "normal": Method("Gaussian with standard deviation 0.01", Plain(jinit.normal(0.01))),
    "uniform": Method("uniform of total width 0.01", Plain(_uniform)),
    "xavier_normal": Method(
        "Glorot & Bengio 2010 with gain sqrt(2): Gaussian, variance 4 / (fan_in + fan_out)",
        Plain(jinit.variance_scaling(2.0, "fan_avg", "normal")),
    ),
    "kaiming_uniform": Method(
        "He et al. 2015: uniform, variance 2 / fan_in", Plain(jinit.variance_scaling(2.0, "fan_in", "uniform"))
    ),
    "kaiming_normal": Method("He et al. 2015: Gaussian, variance 2 / fan_in (E|w|^2 = 2)", KAIMING_NORMAL),
    "nfm": Method("reference: NFM with unit trace", Covariance("nfm", "unit_trace", reference=True)),
    "agop": Method("reference: AGOP^(1/2) with unit trace", Covariance("sqrt_agop", "unit_trace", reference=True)),
    "kaiming_nfm": Method(
        "reference: NFM * sqrt(2 / fan_in), a scale that differs by layer",
        Covariance("nfm", "reference_kaiming", reference=True),
    ),
    "kaiming_agop": Method(
        "reference: AGOP^(1/2) / 100 * sqrt(2 / fan_in)", Covariance("sqrt_agop", "reference_kaiming", reference=True)
    ),
    "he_nfm": Method("NFM at He scale (E|w|^2 = 2)", HE_NFM),
    "he_agop": Method("AGOP at He scale (E|w|^2 = 2)", HE_AGOP),
    "he_sqrt_agop": Method("AGOP^(1/2) at He scale (E|w|^2 = 2)", HE_SQRT_AGOP),
    "first_layer_nfm": Method("NFM at He scale in the first layer, He et al. in the others", HE_NFM, first=True),
    "spatial": Method("the NFM's kh*kw x kh*kw marginal at He scale, channels independent", Spatial()),
    "orthogonal": Method("Saxe et al. 2014: orthogonal filters with gain sqrt(2)", ORTHOGONAL),
    "delta_orthogonal": Method(
        "Xiao et al. 2018: an orthogonal matrix at the kernel's centre, gain sqrt(2)", Plain(_delta_orthogonal)
    ),
    "lsuv": Method(
        "Mishkin & Matas 2016: orthogonal filters, each layer's output variance 1 on a batch", ORTHOGONAL, lsuv=True
    ),
    "coupled_nfm": Method("NFM, the donor's basis carried from layer to layer, lsuv", HE_NFM, lsuv=True, coupled=True),
    "coupled_agop": Method(
        "AGOP, the donor's basis carried from layer to layer, lsuv", HE_AGOP, lsuv=True, coupled=True
    ),
    "coupled_sqrt_agop": Method(
        "AGOP^(1/2), the donor's basis carried from layer to layer, lsuv", HE_SQRT_AGOP, lsuv=True, coupled=True
    ),
    "copy": Method("the donor's filters and biases", Copy()),
    "copy_spaced": Method(
        "uniformly spaced channels of the donor (Xu et al. 2024), for narrower recipients", Copy("spaced")
    ),
    "copy_tiled": Method(
        "the donor's channels repeated (Net2WiderNet, Chen et al. 2016), for wider ones", Copy("tiled")
    ),
}

CONTROLS = {
    "matched_isotropic": ("control: independent weights with the same E|w|^2 per layer as", "none"),
    "matched_spectrum": ("control: same eigenvalues, random eigenvectors, as", "random"),
}
CONTROLLED_BY_DEFAULT = "nfm"

# name -> what it is, one line each
INITIALIZERS: dict[str, str] = {name: method.description for name, method in METHODS.items()} | {
    name: f"{what} {CONTROLLED_BY_DEFAULT}" for name, (what, _) in CONTROLS.items()
}

# option -> how it changes a method; those with '=' take a value
OPTIONS: dict[str, Callable[[Method, str], Method]] = {
    "lsuv": lambda method, _: dataclasses.replace(method, lsuv=True),
    "first": lambda method, _: dataclasses.replace(method, first=True),
    "mix=": lambda method, value: _with_source(method, mix=float(value)),
    "mixed=": lambda method, value: _coupled(method, mixed=int(value)),
    "orthogonal": lambda method, _: _coupled(method, orthogonal=True),
    "shuffled": lambda method, _: _coupled(method, shuffled=True),
    "untrained": lambda method, _: _untrained(method),
}


def get_method(name: str) -> Method:
    """The method of this name, with its control and its options.

    Raises:
      UserError: lists the known names, or says which option does not fit.
    """
    base, *options = name.split("@")
    method = _controlled(base) if base.partition(":")[0] in CONTROLS else METHODS.get(base)
    if method is None:
        raise unknown_name("init", base, INITIALIZERS)
    for option in options:
        key, equals, value = option.partition("=")
        if key + equals not in OPTIONS:
            raise unknown_name(f"option of init {name!r}:", option, OPTIONS)
        try:
            method = _with_option(OPTIONS[key + equals], method, value)
        except ValueError as error:
            raise UserError(f"init {name!r}: option {option!r} does not fit: {error}") from None
    suffix = f" ({', '.join(options)})" if options else ""
    return dataclasses.replace(method, description=method.description + suffix)


def _with_option(option: Callable[[Method, str], Method], method: Method, value: str) -> Method:
    """A control has the options of what it controls."""
    if method.matched is None:
        return option(method, value)
    return dataclasses.replace(option(method, value), matched=option(method.matched, value))


def register_method(name: str, method: Method) -> None:
    """Adds a method of one's own, by which it can then be called in configs and by `initialize`.

    Args:
      name: without ':' and '@', which are for controls and options.
      method: such as `Method('my scale', Covariance('nfm', 'unit_trace'))`; a source of one's own is an object with
        `kernel_init(layer) -> (key, shape, dtype) -> kernel`.

    Raises:
      UserError: a name that is taken or has ':' or '@' in it.
    """
    if name in INITIALIZERS or {":", "@"} & set(name):
        raise UserError(f"method name {name!r}: needed a new one without ':' and '@'; known: {', '.join(INITIALIZERS)}")
    METHODS[name] = method
    INITIALIZERS[name] = method.description


def _controlled(name: str) -> Method:
    control, _, base = name.partition(":")
    method = METHODS.get(base or CONTROLLED_BY_DEFAULT)
    if method is None or not isinstance(method.source, Covariance):
        known = [known for known, method in METHODS.items() if isinstance(method.source, Covariance)]
        raise unknown_name(f"method to control in {name!r}:", base, known)
    what, basis = CONTROLS[control]
    controlled = _with_source(method, basis=basis)
    # without eigenvectors there is no basis to carry
    coupled = method.coupled and basis != "none"
    description = f"{what} {base or CONTROLLED_BY_DEFAULT}"
    return dataclasses.replace(controlled, description=description, coupled=coupled, matched=method)


def _with_source(method: Method, **changes: Any) -> Method:
    if not isinstance(method.source, Covariance):
        raise ValueError("it is for methods that draw from a covariance")
    if not 0 <= changes.get("mix", 0) <= 1:
        raise ValueError("wanted a number from 0 to 1")
    if "mix" in changes and method.coupled:
        raise ValueError("it is for methods that are not coupled")
    return dataclasses.replace(method, source=dataclasses.replace(method.source, **changes))


def _coupled(method: Method, **changes: Any) -> Method:
    if not method.coupled:
        raise ValueError("it is for coupled methods")
    if changes.get("mixed", 1) < 1:
        raise ValueError("wanted 1 or more")
    return dataclasses.replace(method, **changes)


def _untrained(method: Method) -> Method:
    if not method.needs_donor:
        raise ValueError("it is for methods with a donor")
    return dataclasses.replace(method, untrained=True)


def covariance(layer: LayerFeatures, method: str | Method, key: PRNGKey | None = None) -> FeatureMatrix:
    """Sigma, the covariance of one filter under `method`: its trace is E|w|^2.

    Args:
      layer: of the donor.
      method: a name or a `Method` that draws filters independently from a covariance.
      key: draws the eigenvectors of 'matched_spectrum'.
    """
    method_object = get_method(method) if isinstance(method, str) else method
    if not isinstance(method_object.source, Covariance) or not method_object.layerwise:
        raise UserError(f"init {method!r} does not draw a layer from its feature matrix alone")
    return method_object.source.sigma(layer, key)


def kernel_init(layer: Any, method: str | Method) -> KernelInit:
    """A Flax initialiser `(key, shape, dtype) -> kernel` for `nn.Conv(..., kernel_init=...)`.

    Args:
      layer: features of the donor's layer, such as `features['Conv_0']`; None will do for methods without a donor.
      method: a name in `INITIALIZERS`, or a `Method`, that draws one layer at a time.

    Returns:
      The initialiser. It takes any number of filters; the kernel's other axes must be the donor's, else `UserError`.
    """
    method_object = get_method(method) if isinstance(method, str) else method
    if not method_object.layerwise:
        raise UserError(f"init {method!r} looks at the whole model: use agop_jax.initialize")
    if layer is None and method_object.needs_donor:
        raise UserError(f"init {method!r} needs the features of a donor")
    if layer is not None and not isinstance(layer, LayerFeatures):
        raise UserError(
            f"kernel_init: needed the features of one layer, such as features['Conv_0'], got {type(layer).__name__}"
        )
    return method_object.source.kernel_init(layer)
