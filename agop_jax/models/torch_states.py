"""From a PyTorch state dict to a model with its variables, and back: one mapping of names and layouts, both ways."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from agop_jax.core import trees
from agop_jax.core.errors import UserError
from agop_jax.core.types import Variables
from agop_jax.models.registry import MODELS, create
from agop_jax.models.torch_names import FAMILIES, Family, Place, State, canonical, places

# of PyTorch's BatchNorm and of its averaged models, which nothing here needs
COUNTERS = ("num_batches_tracked", "n_averaged")


def to_state_dict(model: nn.Module, variables: Variables) -> dict[str, np.ndarray]:
    """A PyTorch state dict with the variables of a network; the inverse of `from_state_dict`.

    It lacks BatchNorm's `num_batches_tracked`, which PyTorch's `load_state_dict` fills in.
    """
    flat = trees.flatten(variables)
    return {
        tensor: place.to_torch(np.asarray(jax.device_get(flat[place.path])))
        for tensor, place in places(model, variables).items()
    }


def from_state_dict(
    name: str, state: State, where: str, model: nn.Module | None = None, **fields: Any
) -> tuple[nn.Module, Variables]:
    """A network with the weights of a PyTorch state dict.

    Args:
      name: of the network in `MODELS`.
      state: tensors by PyTorch's names.
      where: the state dict came from, for messages.
      model: the network, where it is known; else it is made of the fields and of what the state dict tells.
      **fields: of the network; what the state dict tells by itself (classes, kind of head or stem) comes from there.

    Raises:
      UserError: a tensor is missing, is not of this network, is quantised, or has another shape.
    """
    blank = model or create(name, 1, **fields)  # says what is wrong with the name or the fields
    family = FAMILIES[MODELS[name].func]
    first_layer, *_ = family.names(blank).values()
    files_name = _by_our_names(state, family, f"{first_layer}.weight", where)
    state = {tensor: np.asarray(state[file]) for tensor, file in files_name.items()}
    fields = {**fields, **family.fields(state)}
    *_, head = names = list(family.names(model or create(name, 1, **fields)).values())
    _require([f"{names[0]}.weight", f"{head}.weight"], state, name, where)
    model = model or create(name, len(np.atleast_1d(state[f"{head}.weight"])), **fields)
    size, first = family.size(state), state[f"{names[0]}.weight"]
    channels = first.shape[1] if first.ndim > 1 else 1
    leaves = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, channels)))
    layout = places(model, leaves)
    _check(state, layout, files_name, name, where)
    flat = {place.path: jnp.asarray(place.to_flax(state[tensor]), jnp.float32) for tensor, place in layout.items()}
    return model, trees.unflatten(flat)


def _check(state: State, layout: Mapping[str, Place], files_name: Mapping[str, str], name: str, where: str) -> None:
    """All tensors of a model are there, and no others, with numbers and shapes as it wants them."""
    _require(layout, state, name, where)
    for tensor in layout:
        dtype = state[tensor].dtype
        if not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize < 2:
            raise not_floating(where, files_name[tensor], str(dtype))
    if extra := [files_name[tensor] for tensor in state if tensor not in layout]:
        raise UserError(f"{where} holds the tensor {_some(extra)}, which model {name!r} does not have")
    for tensor, place in layout.items():
        if (got := state[tensor].shape) not in place.shapes:
            raise UserError(
                f"{where}: tensor {files_name[tensor]!r}: model {name!r} wants {place.shapes[0]}, got {got}"
            )


def not_floating(where: str, tensor: str, dtype: str) -> UserError:
    """Quantised weights mean nothing without their scales."""
    return UserError(
        f"{where}: tensor {tensor!r} is of type {dtype}, wanted floating point of 16 bits or more: store its "
        "unquantised values"
    )


def _by_our_names(state: State, family: Family, first: str, where: str) -> dict[str, str]:
    """Our name of each tensor -> the file's; a prefix that all of the file's share is left out.

    DataParallel puts 'module.' there, torch.compile '_orig_mod.', Lightning and others the name of a field.
    """
    tensors = [tensor for tensor in state if not tensor.endswith(COUNTERS)]
    known = any(canonical(tensor, family) == first for tensor in tensors)
    layers = [tensor.split(".")[:-1] for tensor in tensors]
    shared = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*layers, strict=False))
    prefix = "" if known else "".join(f"{parts[0]}." for parts in shared)
    names: dict[str, str] = {}
    for tensor in tensors:
        name = canonical(tensor.removeprefix(prefix), family)
        if name in names:
            raise UserError(f"{where} holds {names[name]!r} and {tensor!r}, which are one tensor of the model")
        names[name] = tensor
    return names


def _require(tensors: Iterable[str], state: State, name: str, where: str) -> None:
    if missing := [tensor for tensor in tensors if tensor not in state]:
        raise UserError(f"{where} lacks the tensor {_some(missing)} of model {name!r}")


def _some(tensors: list[str]) -> str:
    more = f" (and {len(tensors) - 1} more)" if len(tensors) > 1 else ""
    return f"{tensors[0]!r}{more}"
