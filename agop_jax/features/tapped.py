"""A network whose products can be added to: its layers, their kernels, and parameters for other kernels."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from agop_jax.core.errors import UserError
from agop_jax.core.types import Array
from agop_jax.features.dataflow import Dataflow
from agop_jax.features.evaluation import Record, Taps
from agop_jax.features.program import Program
from agop_jax.features.sites import Site


@dataclass(frozen=True)
class Tapped:
    """A network as a function of what is added to the products of its layers.

    Attributes:
      apply: (params, others, taps, inputs) -> (outputs, {place: Record}).
      operands: (params, others) -> {place: kernel operand}, which computes nothing of the network.
      program: the computation as a flat list, for evaluating it once while its layers are drawn.
      sites: {place: Site}, in the order of the computation.
      dataflow: all that is known of the computation.
      paths: of the leaves of the parameters.
      other_paths: of the leaves of the other variables.
      outputs: shapes and types of what the network returns.
    """

    apply: Callable[[Any, Any, Taps, Any], tuple[Any, dict[str, Record]]]
    operands: Callable[[Any, Any], dict[str, Array]]
    program: Program
    sites: dict[str, Site]
    dataflow: Dataflow
    paths: Sequence[str]
    other_paths: Sequence[str]
    outputs: Any

    @cached_property
    def layers(self) -> dict[str, list[str]]:
        """{layer: places of its products}, in the order of the first of each."""
        layers: dict[str, list[str]] = {}
        for place, site in self.sites.items():
            layers.setdefault(site.layer, []).append(place)
        return layers

    def first(self, layer: str) -> Site:
        """The first product of a layer."""
        return self.sites[self.layers[layer][0]]

    def kernels(self, params: Any, others: Any) -> dict[str, Array]:
        """{layer: kernel} as the layers use them: (*steps, *heads, *spatial, cin / groups, cout)."""
        return self._some_kernels(self.layers, params, others)

    def kernel(self, layer: str, params: Any, others: Any) -> Array:
        """The kernel of one layer, without computing the others."""
        return self._some_kernels([layer], params, others)[layer]

    def _some_kernels(self, layers: Iterable[str], params: Any, others: Any) -> dict[str, Array]:
        places = {layer: self.layers[layer][0] for layer in layers}
        pieces = {place: self.program.kernel(place) for place in places.values()}
        leaves = dict(enumerate(jax.tree.leaves((params, others)))) | self.program.constants
        every = {} if all(pieces.values()) else self.operands(params, others)
        for place, piece in pieces.items():
            if piece is not None:
                every[place] = piece.evaluate([jnp.asarray(leaves[number]) for number in piece.reads])[piece.results[0]]
        return {layer: self._kernel(place, every[place]) for layer, place in places.items()}

    def biases(self, params: Any, kernels: Mapping[str, Array]) -> dict[str, Array | None]:
        """{layer: (*stack, filters)}: the parameter that is first added to the layer's product, if there is one."""
        leaves = jax.tree.leaves(jax.tree.map(jnp.asarray, params))
        return {layer: self._bias(layer, leaves, kernel) for layer, kernel in kernels.items()}

    def _bias(self, layer: str, leaves: Sequence[Array], kernel: Array) -> Array | None:
        site = self.first(layer)
        shape = (*kernel.shape[: site.stacked], kernel.shape[-1])
        if site.bias is None or leaves[site.bias].size != math.prod(shape):
            return None
        return leaves[site.bias].reshape(shape)

    def has_channelwise_norm(self, layer: str) -> bool:
        """Whether a normalisation works on each channel of a layer by itself, as BatchNorm does and LayerNorm not."""
        return not set(self.companions(layer).values()) <= self.dataflow.behind

    def companions(self, layer: str) -> dict[str, tuple[str, int]]:
        """What works on the channels of a layer alone besides its bias, such as a normalisation.

        {name: (kind, index)}, with 'params' or 'others' for the kind and the index of a leaf of these.
        """
        paths = {"params": self.paths, "others": self.other_paths}
        own = {leaf for leaf, place in self.dataflow.companions.items() if place in self.layers[layer]}
        biases = {("params", self.sites[place].bias) for place in self.layers[layer]}
        return {f"{kind}/{paths[kind][index]}": (kind, index) for kind, index in sorted(own - biases)}

    def with_kernels(self, params: Any, others: Any, kernels: Mapping[str, Array]) -> Any:
        """Parameters with which these layers use these kernels.

        An operand is made of its parameters by casts, transposes, slices and the like, whose derivative, transposed, is
        the way back: it puts every number where the operand takes it from.

        Raises:
          UserError: a kernel that is computed from parameters, such as a normalised one, has no such way back.
        """
        leaves, structure = jax.tree.flatten(params)
        computed = {}
        for layer, kernel in _like(kernels, lambda layer: self.kernel(layer, params, others)).items():
            leaf = self._leaf(layer)
            if leaf is None:
                computed[layer] = kernel
            else:
                leaves[leaf] = jnp.asarray(kernel, leaves[leaf].dtype)
        params = jax.tree.unflatten(structure, leaves)
        return self._with_computed(params, others, computed) if computed else params

    def _leaf(self, layer: str) -> int | None:
        """The parameter that is this layer's kernel, as it is or flattened; None if the kernel is computed from it."""
        place = self.layers[layer][0]
        piece = self.program.kernel(place)
        if piece is None or not self.sites[place].is_plain:
            return None
        source = piece.results[0]
        if self.sites[place].unflattened is not None:
            reshaped = {step.writes[0]: step.reads[0] for step in piece.steps if step.eqn.primitive.name == "reshape"}
            source = reshaped.get(source, source) if len(piece.steps) == 1 else source
        return source if isinstance(source, int) and source < len(self.paths) else None

    def _with_computed(self, params: Any, others: Any, kernels: Mapping[str, Array]) -> Any:
        leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, params))
        own = sorted(set().union(*(self.dataflow.kernels[self.layers[layer][0]] for layer in kernels)))

        def used(parts: Sequence[Array]) -> dict[str, Array]:
            whole = [*leaves]
            for index, part in zip(own, parts, strict=True):
                whole[index] = part
            return self._some_kernels(kernels, jax.tree.unflatten(structure, whole), others)

        before, back = jax.vjp(used, [leaves[index] for index in own])
        (new,), (covered,) = back(dict(kernels)), back(jax.tree.map(jnp.ones_like, before))
        for index, part, mask in zip(own, new, covered, strict=True):
            leaves[index] = jnp.where(mask != 0, part, leaves[index])
        _require_use(kernels, used([leaves[index] for index in own]))
        return jax.tree.unflatten(structure, leaves)

    def with_biases(self, params: Any, biases: Mapping[str, Array]) -> Any:
        """Parameters with which these layers, which have a bias each, add these numbers to their products."""
        leaves, structure = jax.tree.flatten(params)
        for layer, bias in biases.items():
            index = self.first(layer).bias
            if index is None:
                raise ValueError(f"layer {layer!r} has no bias")
            leaves[index] = jnp.asarray(bias).reshape(leaves[index].shape).astype(leaves[index].dtype)
        return jax.tree.unflatten(structure, leaves)

    def records(self, variables: Any, inputs: Any) -> dict[str, Record]:
        """What every product sees and does, for (params, others) and a batch."""
        params, others = variables
        return self.apply(params, others, {}, inputs)[1]

    def zeros(self, params: Any, others: Any, inputs: Any) -> dict[str, Array]:
        """A tap of zeros for every product, for inputs of this shape."""
        _, records = jax.eval_shape(lambda p, o, x: self.apply(p, o, {}, x), params, others, inputs)
        return {place: jnp.zeros(record.outputs.shape, record.outputs.dtype) for place, record in records.items()}

    def _kernel(self, place: str, operand: Array) -> Array:
        return over_steps(self.sites[place], self.sites[place].kernel, operand)


def _like(kernels: Mapping[str, Array], before: Callable[[str], Array]) -> dict[str, Array]:
    own = {layer: before(layer) for layer in kernels}
    for layer, kernel in kernels.items():
        if kernel.shape != own[layer].shape:
            raise UserError(f"layer {layer!r}: needed a kernel of shape {own[layer].shape}, got {kernel.shape}")
    return {layer: jnp.asarray(kernel, own[layer].dtype) for layer, kernel in kernels.items()}


def _require_use(kernels: Mapping[str, Array], used: Mapping[str, Array]) -> None:
    """The parameters may be of lower precision than the kernels, so each number has to agree to 1 in 100."""
    for layer, kernel in kernels.items():
        gap = jnp.abs(kernel - used[layer]).max(initial=0) - 0.01 * jnp.abs(kernel).max(initial=0)
        if not isinstance(gap, jax.core.Tracer) and gap > 0:
            raise UserError(
                f"layer {layer!r}: its kernel is computed from its parameters (normalised, masked, scaled, a sum), so "
                "that a drawn kernel cannot be put in their place: leave the layer out with layers=..."
            )


def over_steps(site: Site, function: Callable[[Array], Array], array: Array) -> Array:
    """A function of one product, for each step of the scans that slice its kernel; of the others the first step."""
    for level in range(site.depth):
        if level not in site.stack:
            array = jnp.take(array, 0, axis=sum(outer in site.stack for outer in range(level)))
    for _ in site.stack:
        function = jax.vmap(function)
    return function(array)
