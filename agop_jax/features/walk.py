"""A network evaluated once, from its first layer to its last, while its parameters still change.

A walk stands before one product at a time. What comes after it is not computed yet, so whatever is drawn there costs
one evaluation of the network in all, where evaluating it anew for every layer would cost as many as it has layers.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax

from agop_jax.core.networks import Network
from agop_jax.core.types import Array
from agop_jax.features.program import Piece, Values
from agop_jax.features.sites import Site
from agop_jax.features.tapped import Tapped
from agop_jax.features.taps import tap

Measure = Callable[..., Any]  # (site, record, *further arrays) -> arrays; a function of a module, since it is a key


@dataclass
class Walk:
    """A walk over one batch of inputs.

    Attributes:
      tapped: the network.
      inputs: of it.
      cut: where the walk stands; -1 before all.
      values: of data, those that are read from there on.
    """

    tapped: Tapped
    inputs: Any
    cut: int = -1
    values: Values = field(default_factory=dict)

    @classmethod
    def of(cls, network: Network, inputs: Any) -> "Walk":
        """A walk that has not begun."""
        return cls(tap(network, inputs), inputs)

    def __post_init__(self) -> None:
        params, others, _ = self.tapped.program.leaves
        self.values = dict(enumerate(jax.tree.leaves(self.inputs), params + others))

    def place(self, layer: str) -> str:
        """The place of the first product of a layer."""
        return self.tapped.layers[layer][0]

    def cut_of(self, layer: str) -> int:
        """The cut at which a layer is used first."""
        return self.tapped.program.cut_of(self.place(layer))

    def reach(self, layer: str, variables: tuple[Any, Any]) -> None:
        """Goes on to the first product of a layer.

        Args:
          layer: that the walk has not passed.
          variables: (params, others); final for all layers that are passed.
        """
        while self.cut < self.cut_of(layer):
            self.values = self.ahead(variables)
            self.cut += 1

    def ahead(self, variables: tuple[Any, Any]) -> Values:
        """What is alive at the next cut, to which the walk does not go."""
        program, cut = self.tapped.program, self.cut + 1
        piece = program.upto(cut)
        results = piece(self._arguments(piece, variables))
        return {number: results[number] if number in results else self.values[number] for number in program.alive[cut]}

    def reader(self, layer: str, channels: int) -> str | None:
        """The next layer, if its input has exactly the channels of this one, before which the walk stands."""
        program, tapped = self.tapped.program, self.tapped
        if self.cut + 1 == len(program.cuts):
            return None
        place = program.steps[program.cuts[self.cut + 1]].place
        known = place in tapped.sites and tapped.dataflow.channels[place] == ((self.place(layer), channels),)
        return tapped.sites[place].layer if known and self.place(tapped.sites[place].layer) == place else None

    def channels(self) -> Array:
        """The input of the layer, no scan, before which the walk stands, channels last."""
        return self._channels(self.cut, self.values)

    def next_channels(self, variables: tuple[Any, Any]) -> Array:
        """The input of the next layer, channels last, with these parameters."""
        return self._channels(self.cut + 1, self.ahead(variables))

    def _channels(self, cut: int, values: Values) -> Array:
        step = self.tapped.program.steps[self.tapped.program.cuts[cut]]
        site = self.tapped.sites[step.place]
        return site.channel_rows(values[step.reads[1 - site.place]])

    def shape_of(self, function: Callable[[Site, Array], Any]) -> Any:
        """Shapes of a function of that input as it is, which is not computed."""
        step = self.tapped.program.steps[self.tapped.program.cuts[self.cut]]
        site = self.tapped.sites[step.place]
        return jax.eval_shape(lambda inputs: function(site, inputs), self.values[step.reads[1 - site.place]])

    def measure(self, layer: str, measure: Measure, variables: tuple[Any, Any], *further: Any) -> Any:
        """`measure(site, record, *further)` of the first product of a layer, before which the walk stands."""
        place, site, program = self.place(layer), self.tapped.first(layer), self.tapped.program
        piece, step = program.at(self.cut), program.steps[program.cuts[self.cut]]
        function = lambda values, *further: measure(site, piece.records(step, values)[place], *further)
        # what else a site says follows from its equation, which is part of the piece's structure
        key = measure, place.removeprefix(step.place), site.unflattened, site.stack
        with jax.default_matmul_precision("highest"):
            return piece.compiled(key, function)(self._arguments(piece, variables), *further)

    def _arguments(self, piece: Piece, variables: tuple[Any, Any]) -> Values:
        """A drawn kernel may be bound to its device where the one before was not: jit would compile anew for it."""
        known = {**dict(enumerate(jax.tree.leaves(variables))), **self.tapped.program.constants, **self.values}
        device = next(iter(jax.tree.leaves(self.inputs)[0].devices()))
        return jax.device_put({number: known[number] for number in piece.reads}, device)
