"""One door for every JAX model: a function of its parameters, its other variables and a batch of inputs.

model                                  variables                  what `rebuild` gives
Linen module                           {"params": ..., ...}       such a dictionary
NNX module                             None, or its nnx.State     a module of the same class
Equinox module, of one example         None                       such a module
f(params, inputs), of a batch          its parameters, a pytree   such a pytree
"""

import inspect
import sys
import weakref
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from flax.errors import ModifyScopeVariableError

from agop_jax.core.errors import UserError

SWITCHES = {  # usual names of the train/inference switch, and what they are at inference
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "use_running_average": True,
}


class Network(NamedTuple):
    """A model, opened.

    Attributes:
      apply: (params, others, inputs) -> outputs; pure, and traced as often as need be.
      params: what is trained, a pytree of arrays.
      others: statistics, random states and the like, a pytree of arrays.
      rebuild: (params, others) -> what the caller's kind of model keeps them in.
      owner: the object that compiled functions of this network belong to.
      key: what tells two networks of one owner apart, or None if that cannot be told.
    """

    apply: Callable[[Any, Any, Any], Any]
    params: Any
    others: Any
    rebuild: Callable[[Any, Any], Any]
    owner: Any
    key: Hashable

    @property
    def paths(self) -> list[str]:
        """Of the leaves of `params`, parts joined by '/'."""
        return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(self.params)]

    @property
    def other_paths(self) -> list[str]:
        """Of the leaves of `others`."""
        return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(self.others)]

    def with_variables(self, variables: Any) -> tuple[Any, Any]:
        """Parameters and others of other variables of this model, in the types of its own."""
        module = isinstance(self.owner, nnx.Module | nn.Module) or hasattr(self.owner, "__dataclass_fields__")
        if module and isinstance(variables, type(self.owner)):  # an NNX or Equinox module holds its own
            opened = open_network(variables)
        else:
            opened = open_network(self.owner, variables)
        typed = lambda new, own: new if new.dtype == own.dtype else jnp.asarray(new, own.dtype)
        return jax.tree.map(typed, opened.params, self.params), jax.tree.map(typed, opened.others, self.others)


def open_network(
    model: Any, variables: Any = None, *, training: bool = False, apply_kwargs: Mapping[str, Any] | None = None
) -> Network:
    """Opens any model.

    Args:
      model: a row of the table above.
      variables: as the table says.
      training: run it as in training, where BatchNorm uses the batch's statistics. Of Equinox modules and functions
        nothing is known that could be switched.
      apply_kwargs: further arguments of the model's call.

    Raises:
      UserError: no model, or variables that are not of its kind.
    """
    kwargs = dict(apply_kwargs or {})
    key = _hashable(training, kwargs)
    if isinstance(model, nn.Module):
        return _linen(model, variables, training, kwargs, key)
    if isinstance(model, nnx.Module):
        return _nnx(model, variables, training, kwargs, key)
    if (equinox := sys.modules.get("equinox")) and isinstance(model, equinox.Module):
        return _equinox(equinox, model, variables, kwargs, key)
    if not callable(model):
        raise UserError(
            f"model: needed a Linen, NNX or Equinox module or a function f(params, inputs), got {type(model).__name__}"
        )
    if variables is None:
        raise UserError("model: a function f(params, inputs) needs its parameters as the second argument, got None")
    owned = weakly(model)
    return Network(
        lambda params, _, inputs: owned()(params, inputs, **kwargs),
        variables,
        (),
        lambda params, _: params,
        model,
        key,
    )


def _linen(model: nn.Module, variables: Any, training: bool, kwargs: dict[str, Any], key: Hashable) -> Network:
    if not isinstance(variables, Mapping) or "params" not in variables:
        got = f"the keys {', '.join(map(str, variables))}" if isinstance(variables, Mapping) else f"{variables!r:.60}"
        raise UserError(f"variables: a Linen model needs {{'params': ...}}, as its init returns, got {got}")
    others = {name: value for name, value in variables.items() if name != "params"}
    own = model.clone()  # so that what is compiled does not keep the caller's object alive
    switches = {name: value != training for name, value in switches_of(type(model).__call__).items()}
    options: dict[str, Any] = {**switches, **kwargs}

    def apply(params: Any, others: Any, inputs: Any) -> Any:
        state = {"params": params, **others}
        if not training:
            try:
                return own.apply(state, inputs, **options)
            except ModifyScopeVariableError as error:
                raise UserError(
                    "the model changes its statistics in a call, as BatchNorm does in training: pass the model's own "
                    "switch for inference, e.g. apply_kwargs={'train': False}"
                ) from error
        return own.apply(state, inputs, mutable=list(others), rngs={"dropout": jax.random.key(0)}, **options)[0]

    rebuild = lambda params, others: {**variables, **others, "params": params}
    return Network(apply, variables["params"], others, rebuild, model, key)


def _nnx(model: nnx.Module, variables: Any, training: bool, kwargs: dict[str, Any], key: Hashable) -> Network:
    graph, params, others = nnx.split(model, nnx.Param, ...)
    if variables is not None:
        if not isinstance(variables, nnx.State):
            raise UserError(f"variables: an NNX model takes None or an nnx.State, got {type(variables).__name__}")
        params, others = nnx.split_state(variables, nnx.Param, ...)
    switches = {name: value != training for name, value in switches_of(type(model).__call__).items()}
    options = {**switches, **kwargs}

    def apply(params: Any, others: Any, inputs: Any) -> Any:
        own = nnx.merge(graph, params, others)
        own.train() if training else own.eval()
        return own(inputs, **options)

    key = None if key is None else _joined(key, graph)
    return Network(apply, params, others, lambda params, others: nnx.merge(graph, params, others), model, key)


def _equinox(equinox: Any, model: Any, variables: Any, kwargs: dict[str, Any], key: Hashable) -> Network:
    if variables is not None:
        raise UserError("variables: an Equinox model holds its own, pass None")
    arrays, static = equinox.partition(equinox.nn.inference_mode(model), equinox.is_array)
    params, others = equinox.partition(arrays, equinox.is_inexact_array)

    def apply(params: Any, others: Any, inputs: Any) -> Any:
        own = equinox.combine(params, others, static)
        return jax.vmap(lambda example: own(example, **kwargs))(inputs)

    return Network(apply, params, others, lambda params, others: equinox.combine(params, others, model), model, key)


def switches_of(call: Callable[..., Any]) -> dict[str, bool]:
    """The train/inference switches that a model's call takes, set to inference."""
    names = inspect.signature(call).parameters
    return {name: value for name, value in SWITCHES.items() if name in names}


def weakly(function: Any) -> Callable[[], Any]:
    """A reference that does not keep a function alive, where such a reference can be had."""
    if inspect.ismethod(function):
        return weakref.WeakMethod(function)
    try:
        return weakref.ref(function)
    except TypeError:
        return lambda: function


def _hashable(training: bool, kwargs: Mapping[str, Any]) -> Hashable:
    key = (training, tuple(sorted(kwargs.items())))
    return _joined(key)


def _joined(*parts: Hashable) -> Hashable:
    try:
        hash(parts)
    except TypeError:
        return None
    return parts


def path_name(path: tuple[Any, ...]) -> str:
    """A leaf's path with its parts joined by '/'; the box around a parameter of NNX or Linen is no part of it."""
    boxed = isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value" if path else False
    return jax.tree_util.keystr(path[:-1] if boxed else path, simple=True, separator="/")


def signature(tree: Any) -> Hashable:
    """Structure, shapes and types: what a compiled function depends on besides its model."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((jnp.shape(leaf), str(leaf.dtype)) for leaf in leaves)


class Cache:
    """Values that belong to a model and live as long as it does; equal Linen modules are one model."""

    def __init__(self) -> None:
        self._by_value: weakref.WeakKeyDictionary[Any, dict[Hashable, Any]] = weakref.WeakKeyDictionary()
        self._by_identity: dict[int, dict[Hashable, Any]] = {}

    def get(self, network: Network, key: Hashable, make: Callable[[], Any]) -> Any:
        """The value of this key, made if need be. Nothing of it may hold on to the model."""
        owner, method = network.owner, None
        if inspect.ismethod(owner):  # an object of its own at every access
            owner, method = owner.__self__, owner.__func__
        store, key = self._store(owner), _joined(network.key, id(method), key)
        if store is None or network.key is None or key is None:
            return make()
        if key not in store:
            store[key] = make()
        return store[key]

    def _store(self, owner: Any) -> dict[Hashable, Any] | None:
        try:
            return self._by_value.setdefault(owner, {})
        except TypeError:  # it holds arrays and cannot be hashed, or it cannot be referred to weakly
            pass
        try:
            if id(owner) not in self._by_identity:
                weakref.finalize(owner, self._by_identity.pop, id(owner), None)
            return self._by_identity.setdefault(id(owner), {})
        except TypeError:
            return None
