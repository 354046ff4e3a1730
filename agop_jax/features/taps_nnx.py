"""Taps for Flax NNX: the same `TappedModel` as `taps.py`, so that everything after it is shared.

The model is split into its graph and its state and merged again inside the trace, where each Conv and Linear gets a
subclass whose call records and perturbs. The modules live only as long as the trace, so the caller's model is not
touched and nothing leaks; `nnx.scan`, `nnx.vmap` and `nnx.remat` trace their own copies, which this cannot see into.
"""

from typing import Any

import jax
from flax import nnx
from flax.errors import TraceContextError
from flax.nnx.tracers import TraceState

from agop_jax.core.errors import UserError
from agop_jax.core.types import Array, Images, Variables
from agop_jax.features.taps import LayerSpec, Record, TappedModel, Taps, layer_spec, with_stack_depth

LAYERS = (nnx.Conv, nnx.Linear)


def tap(model: nnx.Module, variables: Variables | None, images: Images, **kwargs: Any) -> tuple[Variables, TappedModel]:
    """Taps every `nnx.Conv` and `nnx.Linear`; the path of a layer is that of its attributes, joined by '/'.

    Args:
      model: its call takes (n, h, w, c) images and returns (n, classes) logits; put in `eval()` mode on a copy.
      variables: an `nnx.State` to use in place of the model's own, or None.
      images: a batch for tracing.
      **kwargs: for the model's call.

    Returns:
      The state as one tree, for `TappedModel.apply`, and the tapped model.
    """
    graph, state = nnx.split(model)
    state = state if variables is None else variables
    specs: dict[str, LayerSpec] = {}

    def apply(variables: nnx.State, perturbations: Taps | None, images: Images):
        clone = nnx.merge(graph, variables)
        clone.eval()
        records: dict[str, list[Record]] = {}
        for path, module in _layers(clone):
            specs.setdefault(path, layer_spec(module))
            _tap_module(module, path, perturbations, records)
        try:
            return clone(images, **kwargs), records
        except TraceContextError as error:
            raise UserError("the model changes its state in a call: does a BatchNorm use batch statistics?") from error

    _, records = jax.eval_shape(lambda v, x: apply(v, None, x), state, images)
    if not records:
        raise UserError("found no nnx.Conv or nnx.Linear that the model calls outside nnx.scan, nnx.vmap and nnx.remat")
    called = {path: specs[path] for path in records}
    return state, TappedModel(apply, with_stack_depth(called, records))


def _layers(model: nnx.Module) -> list[tuple[str, nnx.Module]]:
    found = [(path, module) for path, module in nnx.iter_modules(model) if isinstance(module, LAYERS)]
    return [("/".join(map(str, path)), module) for path, module in found]


def _tap_module(module: nnx.Module, path: str, perturbations: Taps | None, records: dict[str, list[Record]]) -> None:
    layer, trace = type(module), TraceState()

    def __call__(self: Any, inputs: Array) -> Array:  # noqa: N807
        if not trace.is_valid():  # its record would leak out of the inner trace
            raise UserError(
                f"layer {path!r} is called inside nnx.jit, nnx.remat, nnx.scan or nnx.vmap: no tap sees in there"
            )
        outputs = layer.__call__(self, inputs)
        calls = records.setdefault(path, [])
        kernel = self.kernel[...] if getattr(self, "mask", None) is None else self.kernel[...] * self.mask
        calls.append(Record(inputs, outputs, kernel, None if self.bias is None else self.bias[...]))
        return outputs if perturbations is None else outputs + perturbations[path][len(calls) - 1]

    module.__class__ = type(f"Tapped{layer.__name__}", (layer,), {"__call__": __call__})
