"""Wrong arguments of `initialize`, each told in one line before anything is computed."""

import numbers
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from agop_jax.core.errors import UserError
from agop_jax.core.types import PRNGKey
from agop_jax.features.layer import LayerFeatures
from agop_jax.initializers.copies import Copy
from agop_jax.initializers.methods import Method
from agop_jax.initializers.passes import Donor
from agop_jax.initializers.registry import get_method


def method_of(method: Any) -> tuple[str, Method]:
    """The name of a method and what it stands for."""
    if isinstance(method, Method):
        return method.description, method
    if not isinstance(method, str):
        raise UserError(f"method: needed a name such as 'he_nfm' or a Method, got {type(method).__name__}")
    return method, get_method(method)


def key_of(key: Any) -> PRNGKey:
    """A key, or the key of a seed."""
    if isinstance(key, numbers.Integral):
        return jax.random.key(int(key))
    shape = key.shape if isinstance(key, jax.Array) else None
    typed = shape == () and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed and (shape is None or len(shape) != 1 or key.dtype != jnp.uint32):
        raise UserError(f"key: needed one key of jax.random or a whole number, got {_described(key)}")
    return key


def require_donor(name: str, method: Method, features: Any, donor: Any, inputs: Any) -> None:
    """Refuses a method that lacks the features, the network or the examples that it needs."""
    if method.needs_donor and features is None:
        raise UserError(f"init {name!r} needs the features of a donor, got features=None")
    if features is not None and not isinstance(features, Mapping):
        raise UserError(
            f"features: needed those of layers by path, as `extract` returns them, got {_described(features)}"
        )
    require_filters(method, features or {})
    if not method.needs_network:
        return
    if donor is None:
        raise UserError(f"init {name!r} needs the donor as a network: initialize(..., donor=Donor(...))")
    if not isinstance(donor, Donor):
        raise UserError(f"donor: needed Donor(model, variables, inputs), got {_described(donor)}")
    own, theirs = (len(jax.tree.leaves(batch)[0]) for batch in (inputs, donor.inputs))
    if own != theirs:
        raise UserError(
            f"donor: needed the same examples in Donor and in initialize, got {theirs} and {own}: pass the same batch "
            "to both, each in the normalisation that its network expects"
        )


def require_filters(method: Method, features: Mapping[str, LayerFeatures]) -> None:
    """Refuses features that are known as matrices alone, for a method that uses the donor's own filters."""
    if isinstance(method.source, Copy) or method.needs_network:
        for layer in features.values():
            layer.require("filters")


def _described(value: Any) -> str:
    shape = f" of shape {value.shape}" if isinstance(value, jax.Array) else ""
    return type(value).__name__ + shape
