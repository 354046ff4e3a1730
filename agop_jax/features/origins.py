"""What a value of a computation is made of, and what an operation makes of the origins of its operands."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from jax.extend import core

from agop_jax.features.channels import Segments, segments_of

# after these a product is still the same numbers in another order or type
LAYOUTS = {"reshape", "transpose", "broadcast_in_dim", "squeeze", "expand_dims", "convert_element_type", "copy"}
CHANNELWISE = {"add", "add_any", "sub", "mul", "div", "max", "min"}
SAME_ORDER = {"reshape", "convert_element_type", "copy"}


@dataclass(frozen=True)
class Origin:
    """What a value is made of.

    Attributes:
      params: indices of the parameters in it.
      inputs: whether inputs are in it.
      closed_over: whether it is an array, of two or more axes, that the function holds instead of being given.
      recipe: of a value of parameters alone, a number for how it was made: two values of one recipe are the same.
      shape: of the parameter that it is, possibly in another type, or with all axes but the last flattened.
      stack: scans, counted from outside, whose steps slice it.
      others: indices of the other variables in it, such as statistics.
      layers: products whose output channels it carries; the next product ends them.
      segments: which channels lie along its last axis; () of what holds no inputs, None where that is not known.
      product: the product that it is, rearranged at most.
      feeders: layers whose outputs reach it through no other layer, in whatever order.
      uneven: whether a constant in it has more than one entry along its last axis.
    """

    params: frozenset[int] = frozenset()
    inputs: bool = False
    closed_over: bool = False
    recipe: int = 0
    shape: tuple[int, ...] | None = None
    stack: frozenset[int] = frozenset()
    others: frozenset[int] = frozenset()
    layers: frozenset[str] = frozenset()
    segments: Segments | None = ()
    product: str | None = None
    feeders: frozenset[str] = frozenset()
    uneven: bool = False

    @property
    def is_kernel(self) -> bool:
        """Whether it is made of parameters alone."""
        return bool(self.params) and not self.inputs


NOTHING = Origin()


def result_of(eqn: Any, operands: list[Origin], number: int) -> Origin:
    """The origin of an equation's result of this number."""
    joined = join(operands)
    if joined.inputs:
        own = _has_own_channels(eqn, operands, joined)
        joined = replace(joined, segments=None if own else segments_of(eqn, [o.segments for o in operands]))
    else:
        uneven = joined.uneven or eqn.primitive.name == "iota"
        joined = replace(joined, recipe=hash((recipe_of(eqn, operands), number)), uneven=uneven)
    if eqn.primitive.name not in LAYOUTS or len(operands) != 1:
        return joined
    joined = replace(joined, product=operands[0].product, closed_over=operands[0].closed_over)
    shape = operands[0].shape
    flat = shape and (math.prod(shape[:-1]), shape[-1])
    if shape and eqn.primitive.name in SAME_ORDER and eqn.outvars[0].aval.shape in (shape, flat):
        return replace(joined, shape=shape, recipe=_flattened(eqn, operands[0], joined))
    return joined


def _has_own_channels(eqn: Any, operands: list[Origin], joined: Origin) -> bool:
    """Whether something comes in that differs from channel to channel and is not copied along with a layer.

    That is a constant, or a parameter that is no companion of one product.
    """
    channels, alone = eqn.outvars[0].aval.shape[-1:], [len(o.segments or ()) for o in operands if o.inputs] == [1]
    known = alone and eqn.primitive.name in CHANNELWISE
    own = lambda origin: origin.uneven or (bool(origin.params or origin.others) and not known)
    sides = zip(eqn.invars, operands, strict=True)
    places = [o for var, o in sides if not o.inputs and var.aval.shape[-1:] == channels != (1,)]
    return bool(joined.feeders) and any(map(own, places))


def is_uneven(var: Any) -> bool:
    """Whether a constant has more than one entry along its last axis."""
    return var.aval.shape[-1:] not in ((), (1,))


def _flattened(eqn: Any, operand: Origin, result: Origin) -> int:
    """A kernel that is only flattened is the same kernel."""
    return operand.recipe if eqn.primitive.name == "reshape" else result.recipe


def recipe_of(eqn: Any, operands: list[Origin]) -> int:
    """A number for an operation on operands of these recipes, see `Origin.recipe`."""
    return hash((eqn.primitive.name, str(eqn.params), tuple(operand.recipe for operand in operands)))


def literal_origin(literal: core.Literal) -> Origin:
    """The origin of a number that is written in the jaxpr."""
    return Origin(recipe=hash((str(literal.aval), str(literal.val))), uneven=is_uneven(literal))


def join(origins: Iterable[Origin]) -> Origin:
    """The origin of a value that all of these are in."""
    origins = list(origins)
    union = lambda name: frozenset().union(*(getattr(origin, name) for origin in origins))
    some = lambda name: any(getattr(origin, name) for origin in origins)
    recipe = origins[0].recipe if len({origin.recipe for origin in origins}) == 1 else 0
    segments = {origin.segments for origin in origins if origin.segments != ()}
    return Origin(
        union("params"),
        some("inputs"),
        recipe=recipe,
        stack=union("stack"),
        others=union("others"),
        layers=union("layers"),
        feeders=union("feeders"),
        uneven=some("uneven"),
        segments=segments.pop() if len(segments) == 1 else None if segments else (),
    )


def settled(carry: list[Origin], following: list[Origin]) -> bool:
    """Whether another step of a scan leaves the carry as it is. Recipes never settle, so they are not compared."""
    plain = lambda origins: [replace(o, recipe=0, product=None, closed_over=False, shape=None) for o in origins]
    return plain(carry) == plain(following)
