"""Gradients at the output of every layer of a model that nobody modified (Flax Linen; `taps_nnx.py` for NNX).

A tap adds a zero to the output of a Conv or Dense; the gradient with respect to that zero is the gradient there. Taps
live in variable collections, not in a Python dictionary: tracers would leak out of `nn.remat` and `nn.scan`, and a scan
would share one tap among all its steps. The number of calls of a module is told by the *names* in a collection, since
values inside lifted transformations are traced.
"""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import errors as flax_errors
from flax.linen.module import InterceptorContext

from agop_jax.core import trees
from agop_jax.core.errors import UserError
from agop_jax.core.types import Array, Images, Variables

PERTURBATIONS = "agop_perturbations"
RECORDS = "agop_records"
TAP_COLLECTIONS = (PERTURBATIONS, RECORDS)
LIFTING = (
    "the model uses nn.scan or nn.vmap without the tap collections: add "
    "variable_axes={'params': 0, **{c: 0 for c in agop_jax.TAP_COLLECTIONS}} to it"
)

Taps = dict[str, list[Any]]  # layer path -> one entry for each call of the layer, in order


@dataclass(frozen=True)
class LayerSpec:
    """The static side of a layer: what its kernel alone does not tell."""

    kernel_ndim: int
    groups: int = 1
    kernel_size: tuple[int, ...] = ()  # empty for Dense
    strides: tuple[int, ...] = ()
    padding: Any = "VALID"
    kernel_dilation: tuple[int, ...] = ()
    input_dilation: tuple[int, ...] = ()
    stacked: int = 0  # leading axes from nn.scan or nn.vmap


class Record(NamedTuple):
    """What one call of a layer saw and did."""

    inputs: Array
    outputs: Array
    kernel: Array
    bias: Array | None


@dataclass(frozen=True)
class TappedModel:
    """A model as a function of the perturbations at its layers' outputs.

    Attributes:
      apply: (variables, perturbations or None, images) -> (logits, {path: [Record of each call]}).
      specs: {path: LayerSpec}, in the order of the first call.
    """

    apply: Callable[[Variables, Taps | None, Images], tuple[Array, dict[str, list[Record]]]]
    specs: dict[str, LayerSpec]

    def zero_perturbations(self, variables: Variables, images: Images) -> Taps:
        """A zero at the output of every call of every layer, for this batch."""
        _, records = jax.eval_shape(lambda v, x: self.apply(v, None, x), variables, images)
        zeros = lambda call: jnp.zeros(call.outputs.shape, call.outputs.dtype)
        return {path: [zeros(call) for call in calls] for path, calls in records.items()}


def tap(
    model: nn.Module, variables: Variables, images: Images, *, batch_statistics: bool = False, **kwargs: Any
) -> TappedModel:
    """Taps every `nn.Conv` and `nn.Dense` of a Linen model.

    Args:
      model: an unbound module whose call takes (n, h, w, c) images and returns (n, classes) logits.
      variables: its parameters and statistics.
      images: a batch for tracing; only its shape and dtype matter.
      batch_statistics: run the network as in training, where outputs depend on other images: for its activations, not
        for features.
      **kwargs: for the model's call, on top of `inference_arguments`.

    Raises:
      UserError: no layer was found, BatchNorm would use batch statistics, or an `nn.scan` hides the tap collections.
    """
    switches = inference_arguments(type(model).__call__)
    kwargs = {**{name: value != batch_statistics for name, value in switches.items()}, **kwargs}
    mutable = [RECORDS, *(name for name in variables if name != "params" and batch_statistics)]
    rngs = {"dropout": jax.random.key(0)} if batch_statistics else None
    specs: dict[str, LayerSpec] = {}

    def apply(variables: Variables, perturbations: Taps | None, images: Images):
        given = {} if perturbations is None else {PERTURBATIONS: _nest(perturbations)}
        interceptor = functools.partial(_intercept, specs, perturbations is not None, batch_statistics)
        with nn.intercept_methods(interceptor), _explain_lifting():
            logits, state = model.apply({**variables, **given}, images, mutable=mutable, rngs=rngs, **kwargs)
        return logits, _by_call(state.get(RECORDS, {}))

    _, records = jax.eval_shape(lambda v, x: apply(v, None, x), variables, images)
    if not specs:
        raise UserError("found no nn.Conv or nn.Dense to tap: weights used by hand (self.param) cannot be seen")
    return TappedModel(apply, with_stack_depth(specs, records))


def with_stack_depth(specs: dict[str, LayerSpec], records: dict[str, list[Record]]) -> dict[str, LayerSpec]:
    """A kernel with more axes than its layer knows of was stacked by an `nn.scan` or `nn.vmap`."""
    depth = {path: calls[0].kernel.ndim - specs[path].kernel_ndim for path, calls in records.items()}
    return {path: dataclasses.replace(spec, stacked=depth[path]) for path, spec in specs.items()}


def inference_arguments(call: Callable[..., Any]) -> dict[str, bool]:
    """The usual names of the train/inference switch, set to inference, for those that the model's call takes."""
    switches = {
        "train": False,
        "training": False,
        "is_training": False,
        "deterministic": True,
        "use_running_average": True,
    }
    taken = inspect.signature(call).parameters
    return {name: value for name, value in switches.items() if name in taken}


def _intercept(
    specs: dict[str, LayerSpec],
    perturbed: bool,
    batch_statistics: bool,
    next_fun: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: InterceptorContext,
) -> Any:
    module = context.module
    if context.method_name != "__call__":
        return next_fun(*args, **kwargs)
    if isinstance(module, nn.BatchNorm) and not batch_statistics:
        _refuse_batch_statistics(module, *args, **kwargs)
    if isinstance(module, nn.WeightNorm):
        return _weight_norm(module, *args, **kwargs)
    outputs = next_fun(*args, **kwargs)
    if not isinstance(module, nn.Conv | nn.Dense):
        return outputs
    specs.setdefault("/".join(module.path), layer_spec(module))
    return _tap_call(module, perturbed, args[0] if args else kwargs["inputs"], outputs)


def _tap_call(module: nn.Module, perturbed: bool, inputs: Array, outputs: Array) -> Array:
    """Records the call and adds this call's perturbation, if the model is given any."""
    index = 0
    while module.has_variable(RECORDS, f"call_{index}"):
        index += 1
    name = f"call_{index}"
    kernel, mask = module.get_variable("params", "kernel"), getattr(module, "mask", None)
    kernel = kernel if mask is None else kernel * mask
    module.put_variable(RECORDS, name, Record(inputs, outputs, kernel, module.get_variable("params", "bias")))
    if not perturbed:
        return outputs
    if not module.has_variable(PERTURBATIONS, name):  # a scan that lists only the records drops it in silence
        raise UserError(LIFTING)
    return outputs + module.get_variable(PERTURBATIONS, name)


def _weight_norm(module: nn.WeightNorm, *args: Any, **kwargs: Any) -> Any:
    """What `nn.WeightNorm` does, for the parameters alone: it maps every collection, and mapped ones are read-only."""
    normalize = functools.partial(jax.tree_util.tree_map_with_path, module._l2_normalize)
    return nn.map_variables(lambda layer: layer(*args, **kwargs), "params", normalize)(module.layer_instance)


def layer_spec(module: Any) -> LayerSpec:
    """Reads a Conv or Dense of Linen or NNX, whose fields have the same names."""
    if not hasattr(module, "kernel_size"):
        return LayerSpec(kernel_ndim=2)
    sizes = (module.kernel_size,) if isinstance(module.kernel_size, int) else tuple(module.kernel_size)

    def broadcast(value: int | tuple[int, ...] | None) -> tuple[int, ...]:
        return (value or 1,) * len(sizes) if value is None or isinstance(value, int) else tuple(value)

    padding = module.padding
    if isinstance(padding, int):
        padding = (padding,) * len(sizes)
    if not isinstance(padding, str):
        padding = tuple((p, p) if isinstance(p, int) else tuple(p) for p in padding)
    return LayerSpec(
        kernel_ndim=len(sizes) + 2,
        groups=module.feature_group_count,
        kernel_size=sizes,
        strides=broadcast(module.strides),
        padding=padding,
        kernel_dilation=broadcast(module.kernel_dilation),
        input_dilation=broadcast(module.input_dilation),
    )


def _refuse_batch_statistics(module: nn.BatchNorm, *args: Any, **kwargs: Any) -> None:
    chosen = kwargs.get("use_running_average", args[1] if len(args) > 1 else None)
    if not (module.use_running_average if chosen is None else chosen):
        path = "/".join(module.path)
        raise UserError(
            f"BatchNorm {path!r} uses batch statistics, so that an output depends on other images: "
            "pass the model's own switch for inference, e.g. extract(..., apply_kwargs={'train': False})"
        )


@contextlib.contextmanager
def _explain_lifting() -> Iterator[None]:
    """Says what to do about an `nn.scan` or `nn.vmap` that does not carry the tap collections."""
    try:
        yield
    except flax_errors.ModifyScopeVariableError as error:
        raise UserError(LIFTING) from error


def _nest(taps: Taps) -> dict[str, Any]:
    return trees.unflatten(
        {trees.join(path, f"call_{i}"): x for path, calls in taps.items() for i, x in enumerate(calls)}
    )


def _by_call(collection: dict[str, Any]) -> Taps:
    flat = trees.flatten(collection)
    taps: Taps = {}
    for name in sorted(flat, key=lambda name: int(name.rpartition("call_")[2])):
        taps.setdefault(name.rpartition("call_")[0].rstrip("/"), []).append(flat[name])
    return taps
