"""The compiled steps of one network for batches of one shape: kept with the model, so that nothing compiles twice."""

import functools
import math
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from agop_jax.core import devices, hosts
from agop_jax.core.compilation import TooLarge, jit, within_memory
from agop_jax.core.errors import UserError
from agop_jax.core.networks import Cache, Network, signature, weakly
from agop_jax.core.types import Array
from agop_jax.features import grams
from agop_jax.features.batches import Batch
from agop_jax.features.coverage import uncovered
from agop_jax.features.tapped import Tapped
from agop_jax.features.taps import tap

MAX_UNROLLED = 16  # reverse passes in one compiled step: more only lengthen compilation
_STEPS = Cache()


def steps_of(network: Network, inputs: Any, outputs: Any, mesh: Mesh) -> "Steps":
    """The steps for batches like these inputs; those of an earlier call for the same model, shapes and outputs."""
    make = lambda: _checked(network, inputs, Steps(network, inputs, outputs, mesh))
    if (own := _key_of(outputs)) is None:
        return make()
    return _STEPS.get(network, (signature((network.params, network.others, inputs)), mesh, own), make)


def _key_of(outputs: Any) -> Hashable:
    """What tells these outputs from others; None of a function without weak references, such as an `itemgetter`."""
    if callable(outputs):
        try:
            return weakref.ref(outputs)
        except TypeError:
            return None
    return outputs if isinstance(outputs, str) else tuple(np.atleast_1d(outputs).tolist())


def _checked(network: Network, inputs: Any, steps: "Steps") -> "Steps":
    _require_independence(network, steps.output, inputs)
    if warning := uncovered(steps.tapped, network.params):
        logging.warning("%s", warning)
    return steps


class Steps:
    """What is compiled for a network, batches of one shape, and outputs. Shapes of variables and inputs are enough.

    A step takes (variables, inputs, labels, weights, ...) and gives {layer: sum over the batch}. Its `trace` takes
    shapes, to lower it for any kind of device.

    Attributes:
      tapped: the network.
      num_classes: of logits; None where the model returns something else.
      num_outputs: m, the number of reverse passes of exact extraction.
      output: (what the model returns, labels) -> (n, m), the outputs that are differentiated.
      kernels: (params, others) -> {layer: (kernel, bias or None, companions)}, as the layers use them.
      sums: the step of exact extraction; its last argument, (passes, m), chooses outputs by rows of the identity.

    Raises:
      UserError: outputs that are not of shape (n, m).
    """

    def __init__(self, network: Network, inputs: Any, outputs: Any, mesh: Mesh) -> None:
        self._mesh, self._unrolled = mesh, MAX_UNROLLED
        inputs = _of_all_processes(inputs)
        self.tapped = tapped = tap(network, inputs)
        function = weakly(outputs) if callable(outputs) else None
        self.output = output = grams.output_function((lambda x: function()(x)) if function else outputs)
        labels = np.zeros(jax.tree.leaves(inputs)[0].shape[0], int)
        self.num_outputs = jax.eval_shape(output, tapped.outputs, labels).shape[1]
        self.num_classes = tapped.outputs.shape[1] if getattr(tapped.outputs, "ndim", 0) == 2 else None
        self.kernels = jit(lambda params, others: _kernels(tapped, params, others))

        def sums(variables: Any, inputs: Any, labels: Array, weights: Array, rows: Array):
            cotangents = rows[:, None, :] * weights[None, :, None]
            return grams.gradient_grams(tapped, output, variables, inputs, labels, cotangents)

        self.sums = within_memory(sums, "one reverse pass of a batch", "lower batch_size", **_placed(mesh, 1))
        self._probes: dict[Hashable, Callable[..., Any]] = {}
        self._definitions: dict[str, Callable[..., Array]] = {}

    def chunks(self, unrolled: int = MAX_UNROLLED) -> list[np.ndarray]:
        """Last arguments of `sums` for all outputs, with at most so many reverse passes in one step."""
        return _identity_chunks(self.num_outputs, unrolled)

    def exact(self, variables: Any, batch: Batch) -> dict[str, Array]:
        """Gradient Gram matrices of a batch, summed over its examples; as many outputs at a time as memory allows."""
        arrays = devices.divide(batch, self._mesh)
        while True:
            chunks = self.chunks(self._unrolled)
            try:  # added up one by one: for 1000 outputs of a wide layer the parts would fill the memory
                return functools.reduce(add, (self.sums(variables, *arrays, rows) for rows in chunks))
            except TooLarge:
                if len(chunks[0]) == 1:
                    raise
                self._unrolled = len(chunks[0]) // 2

    def probe(self, variables: Any, batch: Batch, first: int, batch_size: int, keys: np.ndarray, implementation: Any):
        """Gradient Gram matrices of a batch by random cotangents, with a first axis of passes.

        Args:
          first: place of the batch's first example among all.
          batch_size: examples of each process in a batch, without padding.
          keys: raw data of a key for each pass.
          implementation: of these keys.
        """
        step = self.passes(batch_size, len(keys), implementation)
        return step(variables, *devices.divide(batch, self._mesh), np.int32(first), keys)

    def passes(self, batch_size: int, number: int, implementation: Any) -> Callable[..., dict[str, Array]]:
        """The step of `probe`; its last arguments are `first` and `keys`."""
        static = (batch_size, number, str(implementation))
        if static not in self._probes:
            passes = functools.partial(self._passes, batch_size, implementation)
            what, remedy = f"{number} reverse passes of a batch", "lower batch_size or num_probes"
            self._probes[static] = within_memory(passes, what, remedy, **_placed(self._mesh, 2))
        return self._probes[static]

    def _passes(self, batch_size, implementation, variables, inputs, labels, weights, first, keys):
        # the part of each process ends with its padding, which has no place of its own
        block, row = jnp.divmod(jnp.arange(len(labels)), len(labels) // hosts.part()[1])
        places = first + block * batch_size + row
        cotangents = jax.vmap(lambda key: grams.balanced_cotangents(key, places, self.num_outputs))
        signs = cotangents(jax.random.wrap_key_data(keys, impl=implementation)) * weights[None, :, None]
        return grams.gradient_grams(self.tapped, self.output, variables, inputs, labels, signs, keep_passes=True)

    def by_definition(self, network: Network, variables: Any, batch: Batch) -> dict[str, Array]:
        """AGOPs of a batch, summed over its examples, one layer after another."""
        arrays = devices.divide(batch, self._mesh)
        steps = self.definitions(network, batch[0])
        return {layer: step(variables, *arrays) for layer, step in steps.items()}

    def definitions(self, network: Network, inputs: Any) -> dict[str, Callable[..., Array]]:
        """The step of each layer by the definition, which gives its sum alone."""
        if not self._definitions:
            tapped = tap(network, jax.tree.map(_of_one, inputs))
            agop = functools.partial(grams.patch_agop, tapped, self.output)
            placed = _placed(self._mesh, 0)
            self._definitions |= {layer: jit(functools.partial(agop, layer=layer), **placed) for layer in tapped.layers}
        return self._definitions


def _of_one(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype)


def _of_all_processes(inputs: Any) -> Any:
    """Shapes of the batch that a step sees: the parts of all processes, one after another."""
    parts = hosts.part()[1]
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((parts * len(leaf), *leaf.shape[1:]), leaf.dtype), inputs)


def _kernels(tapped: Tapped, params: Any, others: Any) -> dict[str, tuple[Array, Array | None, dict[str, Array]]]:
    kernels = tapped.kernels(params, others)
    biases = tapped.biases(params, kernels)
    leaves = {"params": jax.tree.leaves(params), "others": jax.tree.leaves(others)}

    def companions(layer: str) -> dict[str, Array]:
        places = tapped.companions(layer)
        arrays = {name: jnp.asarray(leaves[kind][index]) for name, (kind, index) in places.items()}
        return {name: array.reshape(-1) for name, array in arrays.items() if array.size == kernels[layer].shape[-1]}

    return {layer: (kernel, biases[layer], companions(layer)) for layer, kernel in kernels.items()}


def _require_independence(network: Network, output: Callable[..., Array], inputs: Any) -> None:
    """Another example in the first place must not change the outputs of the second."""
    forward = jit(lambda params, others, pair: output(network.apply(params, others, pair), jnp.zeros(2, int)))
    pair = jax.tree.map(lambda leaf: np.stack([leaf[0], leaf[0]]), inputs)
    other = jax.tree.map(_mirrored_first, pair)
    one, two = (forward(network.params, network.others, examples) for examples in (pair, other))
    a, b = (np.asarray(outputs[1], np.float64) for outputs in (one, two))
    if not np.allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(a).max(initial=0), equal_nan=True):
        raise UserError(
            "the network's outputs for one example depend on the other examples of a batch, as those of BatchNorm "
            "do in training: pass the model's own switch for inference, e.g. apply_kwargs={'train': False}; "
            f"or inputs of shape {jax.tree.map(np.shape, inputs)} lack the leading axis of examples"
        )


def _mirrored_first(pair: np.ndarray) -> np.ndarray:
    """The first of two examples with its values mirrored in their range; whole numbers stay within it."""
    if pair.dtype == bool:
        return np.stack([~pair[0], pair[1]])
    first = pair[0].max() + pair[0].min() - pair[0]
    shift = pair[0].max() == pair[0].min() and not np.issubdtype(pair.dtype, np.integer)
    return np.stack([(first + shift).astype(pair.dtype), pair[1]])


def _placed(mesh: Mesh, further: int) -> dict[str, Any]:
    """Where the arguments of a step lie, (variables, inputs, labels, weights, *further), and its results."""
    whole, divided = devices.whole(mesh), devices.divided(mesh)
    return {"in_shardings": (whole, *(3 * [divided]), *(further * [whole])), "out_shardings": whole}


def _identity_chunks(num_outputs: int, unrolled: int) -> list[np.ndarray]:
    """Rows of the identity in equal parts; rows of zeros fill the last, so that one compiled step serves all."""
    parts = math.ceil(num_outputs / unrolled)
    rows = math.ceil(num_outputs / parts)
    return np.split(np.eye(rows * parts, num_outputs, dtype=np.float32), parts)


def add(total: Any, part: Any) -> Any:
    """Sums of two parts of the examples; None is nothing."""
    return part if total is None else _sum(total, part)


@jax.jit
def _sum(total: Any, part: Any) -> Any:
    return jax.tree.map(jnp.add, total, part)
