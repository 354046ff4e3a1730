"""What a value of a computation is made of, and what an operation makes of the origins of its operands."""

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jax.extend import core

from agop_jax.features.channels import Channels, Lost, Operand, Statistic, channels_of

# after these a product is still the same numbers in another order or type
LAYOUTS = {"reshape", "transpose", "broadcast_in_dim", "squeeze", "expand_dims", "convert_element_type", "copy"}
ARITHMETIC: dict[str, Callable[..., float]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "convert_element_type": float,
    "broadcast_in_dim": float,
}
SAME_ORDER = {"reshape", "convert_element_type", "copy"}


@dataclass(frozen=True)
class Origin:
    """What a value is made of.

    Attributes:
      params: indices of the parameters in it.
      inputs: whether inputs are in it.
      closed_over: whether it is an array, of two or more axes, that the function holds instead of being given.
      recipe: of a value of parameters alone, a number for how it was made: two values of one recipe are the same.
      parameter: index of the parameter that it is, rearranged at most.
      shape: of the parameter that it is, possibly in another type, or with all axes but the last flattened.
      stack: scans, counted from outside, whose steps slice it.
      others: indices of the other variables in it, such as statistics.
      layers: products whose output channels it carries; the next product ends them.
      channels: those in it, and where; () of what holds no inputs.
      product: the product that it is, rearranged at most.
      feeders: layers whose outputs reach it through no other layer, in whatever order.
      uneven: whether a constant in it has more than one entry along its last axis.
      number: of a constant whose entries are all the same, their value if that is known.
    """

    params: frozenset[int] = frozenset()
    inputs: bool = False
    closed_over: bool = False
    recipe: int = 0
    parameter: int | None = None
    shape: tuple[int, ...] | None = None
    stack: frozenset[int] = frozenset()
    others: frozenset[int] = frozenset()
    layers: frozenset[str] = frozenset()
    channels: Channels = ()
    product: str | None = None
    feeders: frozenset[str] = frozenset()
    uneven: bool = False
    number: float | None = None

    @property
    def is_kernel(self) -> bool:
        """Whether it is made of parameters alone."""
        return bool(self.params) and not self.inputs


NOTHING = Origin()


def result_of(eqn: Any, operands: list[Origin], number: int) -> Origin:
    """The origin of an equation's result of this number."""
    joined = join(operands)
    if joined.inputs:
        sides = [_operand(var, origin) for var, origin in zip(eqn.invars, operands, strict=True)]
        channels = channels_of(eqn, sides, bool(joined.feeders))
        layers = frozenset[str]() if isinstance(channels, Statistic) else joined.layers
        joined = replace(joined, channels=channels, layers=layers)
    else:
        uneven = joined.uneven or eqn.primitive.name == "iota"
        recipe = hash((recipe_of(eqn, operands), number))
        joined = replace(joined, recipe=recipe, uneven=uneven, number=_number(eqn, operands))
    if eqn.primitive.name not in LAYOUTS or len(operands) != 1:
        return joined
    own = operands[0]
    joined = replace(joined, product=own.product, parameter=own.parameter, closed_over=own.closed_over)
    shape = own.shape
    flat = shape and (math.prod(shape[:-1]), shape[-1])
    if shape and eqn.primitive.name in SAME_ORDER and eqn.outvars[0].aval.shape in (shape, flat):
        return replace(joined, shape=shape, recipe=_flattened(eqn, own, joined))
    return joined


def _operand(var: Any, origin: Origin) -> Operand:
    return Operand(tuple(var.aval.shape), origin.channels, leaves_of(origin), origin.uneven, origin.number)


def leaves_of(origin: Origin) -> frozenset[tuple[str, int]]:
    """The parameters and other variables in what holds no inputs."""
    if origin.inputs:
        return frozenset()
    return frozenset(("params", n) for n in origin.params) | frozenset(("others", n) for n in origin.others)


def _number(eqn: Any, operands: list[Origin]) -> float | None:
    """The value of a constant such as the divisor of a mean, which may be the difference of two numbers."""
    numbers, compute = [origin.number for origin in operands], ARITHMETIC.get(eqn.primitive.name)
    known = compute is not None and all(number is not None for number in numbers)
    return compute(*numbers) if compute is not None and known else None


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
    known = literal.aval.shape == () and np.isreal(literal.val)
    number = float(np.real(literal.val)) if known else None
    return Origin(recipe=hash((str(literal.aval), str(literal.val))), uneven=is_uneven(literal), number=number)


def join(origins: Iterable[Origin]) -> Origin:
    """The origin of a value that all of these are in."""
    origins = list(origins)
    union = lambda name: frozenset().union(*(getattr(origin, name) for origin in origins))
    some = lambda name: any(getattr(origin, name) for origin in origins)
    recipe = origins[0].recipe if len({origin.recipe for origin in origins}) == 1 else 0
    channels = list(dict.fromkeys(origin.channels for origin in origins if origin.channels != ()))
    lost = next((part for part in channels if isinstance(part, Lost)), Lost("a union of several values"))
    return Origin(
        union("params"),
        some("inputs"),
        recipe=recipe,
        stack=union("stack"),
        others=union("others"),
        layers=union("layers"),
        feeders=union("feeders"),
        uneven=some("uneven"),
        channels=channels[0] if len(channels) == 1 else lost if channels else (),
    )


def settled(carry: list[Origin], following: list[Origin]) -> bool:
    """Whether another step of a scan leaves the carry as it is. Recipes never settle, so they are not compared."""
    same = {"recipe": 0, "product": None, "parameter": None, "closed_over": False, "shape": None}
    plain = lambda origins: [replace(origin, **same) for origin in origins]
    return plain(carry) == plain(following)
