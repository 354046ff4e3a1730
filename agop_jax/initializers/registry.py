"""The registry of initialisation methods by name, and the `kernel_init` closures made from them.

Names may carry options, which are the axes of the product space:

    matched_spectrum:he_agop    the control made for 'he_agop'
    he_nfm@mix=0.5@lsuv         options of any method, in any order
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from agop_jax.core.errors import UserError, unknown_name
from agop_jax.core.types import PRNGKey
from agop_jax.features.layer import LayerFeatures
from agop_jax.features.matrix import FeatureMatrix
from agop_jax.initializers.copies import RANKS, Copy
from agop_jax.initializers.methods import METHODS, Method
from agop_jax.initializers.sources import MATRICES, Covariance, KernelInit

CONTROLS = {
    "matched_isotropic": ("control: independent weights with the same E|w|^2 per layer as", "none"),
    "matched_spectrum": ("control: same eigenvalues, random eigenvectors, as", "random"),
}
CONTROLLED_BY_DEFAULT = "nfm"

# name -> what it is, one line each
INITIALIZERS: dict[str, str] = {name: method.description for name, method in METHODS.items()} | {
    name: f"{what} {CONTROLLED_BY_DEFAULT}" for name, (what, _) in CONTROLS.items()
}

# option -> what it does, in words, and how it changes a method; those with '=' take a value, the {} of the words
OPTIONS: dict[str, tuple[str, Callable[[Method, str], Method]]] = {
    "lsuv": (
        "each layer rescaled to output variance 1 on a batch",
        lambda method, _: dataclasses.replace(method, lsuv=True, standardised=False),
    ),
    "standardised": (
        "each channel's output at mean 0 and variance 1 on a batch",
        lambda method, _: dataclasses.replace(method, lsuv=False, standardised=True),
    ),
    "first": (
        "only the first layer; He et al. in the others, unless the method has another formula for them",
        lambda method, _: dataclasses.replace(method, first=True),
    ),
    "mix=": (
        "a part {} of its matrix, the rest isotropic",
        lambda m, value: _with_source(m, mix=float(value)),
    ),
    "matrix=": (
        "drawn from the matrix {}",
        lambda method, value: _with_source(_coupled(method), matrix=_one_of(value, MATRICES)),
    ),
    "mixed=": ("each filter mixes {} of the donor's", lambda method, value: _coupled(method, mixed=int(value))),
    "noise=": (
        "each filter is one of the donor's plus noise of {} times their norm",
        lambda method, value: _coupled(method, noise=float(value)),
    ),
    "K=": ("{} times as many candidates as filters", lambda method, value: _coupled(method, candidates=int(value))),
    "by=": ("channels ranked by {}", lambda method, value: _copied(method, "ranked", by=_one_of(value, RANKS))),
    "even": ("copies of a channel share its weights evenly", lambda method, _: _copied(method, "tiled", even=True)),
    "shared": ("one mixing for each residual stream", lambda method, _: _coupled(method, shared=True)),
    "independent": (
        "a mixing of its own for each layer of a residual stream",
        lambda method, _: _coupled(method, shared=False),
    ),
    "orthogonal": ("mixed by orthogonal columns", lambda method, _: _coupled(method, orthogonal=True)),
    "shuffled": (
        "control, fitted with the recipient's channels in random order",
        lambda method, _: _coupled(method, shuffled=True),
    ),
    "untrained": ("control, of the donor before its training", lambda method, _: _untrained(method)),
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
            method = _with_option(OPTIONS[key + equals][1], method, value)
        except ValueError as error:
            raise UserError(f"init {name!r}: option {option!r} does not fit: {error}") from None
    return dataclasses.replace(method, description="; ".join([method.description, *map(_option_words, options)]))


def description(name: str) -> str:
    """One line about a name, with its control and its options; '' where no such method is registered here."""
    try:
        return get_method(name).description
    except UserError:
        return ""


def donor_free(names: Iterable[str]) -> set[str]:
    """Those on which no donor has any influence; a method that is not registered here may have any."""
    free = set()
    for name in names:
        try:
            method = get_method(name)
        except UserError:
            continue
        if not method.uses_donor:
            free.add(name)
    return free


def _option_words(option: str) -> str:
    """Such as '@K=8: 8 times as many candidates as filters'."""
    key, equals, value = option.partition("=")
    return f"@{option}: {OPTIONS[key + equals][0].replace('{}', value)}"


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
    if changes.get("mixed", 1) < 1 or changes.get("candidates", 1) < 1:
        raise ValueError("wanted 1 or more")
    if not 0 <= changes.get("noise", 0) < float("inf"):
        raise ValueError("wanted a number from 0 on")
    return dataclasses.replace(method, **changes)


def _untrained(method: Method) -> Method:
    if not method.needs_donor:
        raise ValueError("it is for methods with a donor")
    return dataclasses.replace(method, untrained=True)


def _copied(method: Method, channels: str, **changes: Any) -> Method:
    if not isinstance(method.source, Copy) or method.source.channels != channels:
        raise ValueError(f"it is for 'copy_{channels}'")
    return dataclasses.replace(method, source=dataclasses.replace(method.source, **changes))


def _one_of(value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"wanted one of {', '.join(known)}")
    return value


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
