"""One evaluation of a recipient, and beside it of its donor, while the recipient's layers are drawn."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agop_jax.core.errors import UserError
from agop_jax.core.networks import Network
from agop_jax.core.types import Array
from agop_jax.features.evaluation import Record
from agop_jax.features.sites import Site
from agop_jax.features.walk import Measure, Walk

CHUNK = 64  # examples in one forward pass, and of one BatchNorm's statistics, at most
HELD_OUT = 4  # one example in so many is kept from a fit and tells how good it is


class Donor(NamedTuple):
    """The donor as a network.

    Attributes:
      model: with the recipient's layer names and strides; any kind of model that `extract` takes.
      variables: as for `extract`.
      inputs: the recipient's batch of inputs, normalised as the donor expects.
      apply_kwargs: further arguments of its call, as for `extract`.
    """

    model: Any
    variables: Any
    inputs: Any
    apply_kwargs: Mapping[str, Any] | None = None


class Passes:
    """Walks over chunks of the examples, each chunk either for fits or held out.

    Attributes:
      walks: of the recipient.
      donors: of the donor, over the same examples; () without one.
      held_out: of each chunk, whether fits may not see it.
    """

    def __init__(self, network: Network, inputs: Any, donor: Network | None = None, donor_inputs: Any = None) -> None:
        chunks = divide(len(jax.tree.leaves(inputs)[0]))
        take = lambda tree, chunk: jax.tree.map(lambda leaf: jnp.asarray(leaf[chunk]), tree)
        self.held_out = [held for _, held in chunks]
        self.walks = [Walk.of(network, take(inputs, chunk)) for chunk, _ in chunks]
        self.donors = [] if donor is None else [Walk.of(donor, take(donor_inputs, chunk)) for chunk, _ in chunks]
        self._donor_variables = (donor.params, donor.others) if donor else ((), ())

    def in_order(self, layers: tuple[str, ...]) -> list[str]:
        """The layers as the walks come to them."""
        places = list(self.walks[0].tapped.layers)
        return sorted(layers, key=places.index)

    def reach(self, layer: str, variables: Any) -> None:
        """Goes on to a layer; the variables of all before it are final."""
        for walk in self.walks:
            walk.reach(layer, variables)

    def measure(self, layer: str, measure: Measure, variables: Any, *further: list[Any]) -> list[Any]:
        """`measure` of each chunk; each list in `further` holds an argument for each chunk."""
        return [
            walk.measure(layer, measure, variables, *arguments)
            for walk, *arguments in zip(self.walks, *further, strict=True)
        ]

    def reach_donor(self, layer: str) -> None:
        """Goes on to a layer of the donor.

        Raises:
          UserError: the donor has no such layer, comes to it in another order, or has it in a scan.
        """
        known = self.donors[0].tapped.layers
        if layer not in known:
            raise UserError(f"layer {layer!r}: the donor has no such layer. It has: {', '.join(known)}.")
        if self.donors[0].cut > self.donors[0].cut_of(layer):
            raise UserError(f"layer {layer!r}: coupled methods need a donor that computes its layers in the same order")
        require_one_matrix(layer, self.donors[0].tapped.first(layer))
        for walk in self.donors:
            walk.reach(layer, self._donor_variables)

    def measure_donor(self, layer: str, measure: Measure) -> list[Any]:
        """`measure` of the donor's layer."""
        self.reach_donor(layer)
        return [walk.measure(layer, measure, self._donor_variables) for walk in self.donors]

    def of_chunks(self, parts: list[Any], held_out: bool) -> list[Any]:
        """Those of the chunks that fits are made from, or of the others; of all where none is held out."""
        own = [part for part, held in zip(parts, self.held_out, strict=True) if held == held_out]
        return own or parts


def divide(number: int) -> list[tuple[np.ndarray, bool]]:
    """Examples by chunk, and whether the chunk is held out; of one size where that can be, which is compiled once."""
    places = np.arange(number)
    held = places % HELD_OUT == HELD_OUT - 1
    size = _size(int(held.sum()), CHUNK) if held.any() else CHUNK
    return [(chunk, flag) for flag in (False, True) for chunk in _chunks(places[held == flag], size)]


def _size(number: int, most: int) -> int:
    return math.ceil(number / math.ceil(number / most))


def _chunks(places: np.ndarray, most: int) -> list[np.ndarray]:
    if not len(places):
        return []
    size = _size(len(places), most)
    return [places[start : start + size] for start in range(0, len(places), size)]


def outputs(site: Site, record: Record) -> Array:
    """What a layer makes, without its bias: (positions, filters)."""
    rows = site.rows(record.outputs)
    return rows.reshape(len(rows), -1)


def require_one_matrix(layer: str, site: Site) -> None:
    """Refuses what a fit has no rule for."""
    if site.depth or site.heads:
        raise UserError(f"layer {layer!r}: coupled methods take layers of one matrix or of groups: no heads or scans")
