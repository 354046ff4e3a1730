"""Which layer's channels lie along the last axis of a value, and in which order.

A segment is a place in the computation and a number of channels: those of one product's output, or of the inputs (no
place). The last axis of a value holds its segments, one after another, once or again and again: of a flattened image
once a position. What is not known to keep that order loses it.

A normalisation takes a mean over channels, or over groups of them, and comes back to every channel with it. Such a mean
keeps its value where all channels are there equally often, and so the channels that it meets stay at their places. A
sum does not: it doubles where all channels are there twice, and is followed only until it is divided to a mean.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

Segments = tuple[tuple[str | None, int], ...]
Leaves = frozenset[tuple[str, int]]  # ('params' or 'others', index)


@dataclass(frozen=True)
class Groups:
    """Channels that are split over the last two axes: (groups, channels of a group)."""

    segments: Segments


@dataclass(frozen=True)
class Statistic:
    """A mean, a maximum or a sum over channels.

    Attributes:
      channels: how many channels there are; 0 where it is made of statistics of several numbers.
      counts: of a sum, the numbers by which it is divided to a mean; () of what tiled channels leave as it is.
      own: parameters and other variables that it was multiplied with and that have a number for each channel.
    """

    channels: int
    counts: tuple[int, ...] = ()
    own: Leaves = frozenset()


@dataclass(frozen=True)
class Lost:
    """Channels that cannot be followed beyond an operation."""

    operation: str


Channels = Segments | Groups | Statistic | Lost  # () of what holds no inputs


class Operand(NamedTuple):
    """What an operation works on.

    Attributes:
      shape: of the value.
      channels: in it.
      leaves: of a value without inputs, the parameters and other variables in it.
      uneven: whether a constant in it has more than one entry along its last axis.
      number: of a constant without axes, its value if that is known.
    """

    shape: tuple[int, ...]
    channels: Channels
    leaves: Leaves = frozenset()
    uneven: bool = False
    number: float | None = None


ELEMENTWISE = {"abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh", "cbrt"}
ELEMENTWISE |= {"ceil", "clamp", "copy", "cos", "cosh", "digamma", "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2"}
ELEMENTWISE |= {"expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le", "lgamma", "log", "log1p", "logistic"}
ELEMENTWISE |= {"lt", "max", "min", "mul", "ne", "neg", "nextafter", "not", "or", "pow", "reduce_precision", "rem"}
ELEMENTWISE |= {"round", "rsqrt", "select_n", "sign", "sin", "sinh", "sqrt", "square", "sub", "tan", "tanh", "xor"}
CHANNELWISE = {"add", "add_any", "sub", "mul", "div", "max", "min"}  # by which a normalisation has scale and bias
SAME_VALUES = {"convert_element_type", "copy", "stop_gradient"}
REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min"}
KEPT = {"reduce_window_max", "reduce_window_sum", "reduce_window", "pad", "slice", "dynamic_slice", "rev", "squeeze"}
KEPT |= {"split", "tile"}
LAYOUTS = {"reshape", "broadcast_in_dim", "transpose", "squeeze"}


def channels_of(eqn: Any, operands: Sequence[Operand], fed: bool) -> Channels:
    """The channels of the result of an operation that is neither a product nor a call, and that holds inputs.

    Args:
      eqn: of a jaxpr.
      operands: of the operation.
      fed: whether the output of a layer is in it; the channels of inputs alone are the same in every width.
    """
    data = [operand for operand in operands if operand.channels != ()]
    lost = next((operand.channels for operand in data if isinstance(operand.channels, Lost)), None)
    name, shape, first = eqn.primitive.name, tuple(eqn.outvars[0].aval.shape), data[0] if data else None
    if lost or first is None:
        return lost or Lost(operation(eqn))
    if name in SAME_VALUES:
        return first.channels
    if name in ("concatenate", "stack"):
        channels = _joined(eqn, operands)
    elif name in ELEMENTWISE:
        channels = _elementwise(name, shape, operands, fed)
    elif isinstance(first.channels, Statistic):
        channels = _statistic_layout(eqn, shape, first)
    else:
        channels = _of_axes(eqn, shape, first)
    over = any(isinstance(operand.channels, Statistic) for operand in data)
    cause = ", which works on a sum, mean or maximum over channels" if over else ""
    return Lost(operation(eqn) + cause) if channels is None else channels


def operation(eqn: Any) -> str:
    """The name of an operation, and the module that it is in where that is known."""
    module = str(eqn.source_info.name_stack)
    return f"the operation {eqn.primitive.name!r}" + (f" in {module}" if module else "")


def length(segments: Segments) -> int:
    """How many channels there are."""
    return sum(count for _, count in segments)


def segments_of(channels: Channels) -> Segments:
    """Of channels that are followed, in groups or not; else ()."""
    if isinstance(channels, Groups):
        return channels.segments
    return channels if isinstance(channels, tuple) else ()


def _of_axes(eqn: Any, shape: tuple[int, ...], operand: Operand) -> Channels | None:
    """Of an operation that moves, repeats or sums up whole axes."""
    channels, name = operand.channels, eqn.primitive.name
    axes = 2 if isinstance(channels, Groups) else 1
    if name in REDUCTIONS:
        return _reduced(eqn, operand, axes)
    if name == "reshape":
        return _reshaped(operand, shape)
    kept = shape[-axes:] == operand.shape[-axes:]
    if name == "transpose":
        moved = tuple(eqn.params["permutation"][-axes:])
        return channels if moved == tuple(range(len(shape)))[-axes:] else None
    if name == "broadcast_in_dim":
        dimensions = tuple(eqn.params["broadcast_dimensions"][-axes:])
        return channels if kept and dimensions == tuple(range(len(shape)))[-axes:] else None
    return channels if name in KEPT and axes == 1 and kept and _keeps_last(eqn) else None


def _reduced(eqn: Any, operand: Operand, axes: int) -> Channels:
    ndim, over = len(operand.shape), set(eqn.params["axes"])
    across = over & set(range(ndim - axes, ndim))
    if not across:
        return operand.channels
    size = lambda axes: math.prod(operand.shape[axis] for axis in axes)
    counts = (size(across), size(over)) if eqn.primitive.name == "reduce_sum" else ()
    return Statistic(length(segments_of(operand.channels)), counts)


def _reshaped(operand: Operand, shape: tuple[int, ...]) -> Channels | None:
    grouped, segments = isinstance(operand.channels, Groups), segments_of(operand.channels)
    number = length(segments)
    if shape and shape[-1] % number == 0:
        return segments
    split = grouped or operand.shape[-1] == number
    same = not grouped or shape[-2:] == operand.shape[-2:]
    return Groups(segments) if split and same and math.prod(shape[-2:]) == number else None


def _statistic_layout(eqn: Any, shape: tuple[int, ...], operand: Operand) -> Statistic | None:
    """A statistic of any shape is one; with numbers for each channel it keeps them along its last axis."""
    statistic = operand.channels
    if eqn.primitive.name not in LAYOUTS or not isinstance(statistic, Statistic):
        return None
    last = eqn.primitive.name != "transpose" and shape[-1:] == operand.shape[-1:]
    return statistic if last or not statistic.own else None


def _elementwise(name: str, shape: tuple[int, ...], operands: Sequence[Operand], fed: bool) -> Channels | None:
    if not all(_broadcasts(operand.shape, shape) for operand in operands):
        return None
    statistics = [operand.channels for operand in operands if isinstance(operand.channels, Statistic)]
    if any(statistic.counts for statistic in statistics):
        return _mean(name, operands)
    varying = [operand for operand in operands if operand.channels == () and (operand.uneven or operand.leaves)]
    if any(isinstance(operand.channels, Groups) for operand in operands):
        plain = all(math.prod(operand.shape) == 1 for operand in varying) and not any(s.own for s in statistics)
        return _groups(shape, operands) if plain else None
    places = [operand for operand in varying if operand.shape[-1:] == shape[-1:] != (1,)]
    channels = _segments(shape, operands) or _statistic(statistics)
    if channels is None or (fed and any(operand.uneven for operand in places)):
        return None
    own = frozenset[tuple[str, int]]().union(*(o.leaves for o in places), *(s.own for s in statistics))
    alone = isinstance(channels, Statistic) or len(channels) == 1
    number = channels.channels if isinstance(channels, Statistic) else length(channels)
    scaled = name in CHANNELWISE or (isinstance(channels, Statistic) and not any(o.leaves for o in places))
    if fed and own and not (alone and scaled and shape[-1] == number):
        return None
    return replace(channels, own=own) if isinstance(channels, Statistic) else channels


def _groups(shape: tuple[int, ...], operands: Sequence[Operand]) -> Groups | None:
    """Of groups with each other, with statistics and with numbers."""
    groups = [operand for operand in operands if isinstance(operand.channels, Groups)]
    whole = {operand.channels.segments for operand in groups if isinstance(operand.channels, Groups)}
    others = any(operand.channels != () and isinstance(operand.channels, tuple) for operand in operands)
    fits = all(operand.shape[-2:] == shape[-2:] for operand in groups)
    return Groups(whole.pop()) if len(whole) == 1 and fits and not others else None


def _segments(shape: tuple[int, ...], operands: Sequence[Operand]) -> Segments | None:
    """Those of the operands that have all channels of the result, if these agree in their numbers."""
    whole = [
        o.channels for o in operands if isinstance(o.channels, tuple) and o.channels and o.shape[-1:] == shape[-1:]
    ]
    return whole[0] if len({tuple(count for _, count in segments) for segments in whole}) == 1 else None


def _statistic(statistics: Sequence[Statistic]) -> Statistic | None:
    numbers = {statistic.channels for statistic in statistics}
    return Statistic(numbers.pop() if len(numbers) == 1 else 0) if statistics else None


def _mean(name: str, operands: Sequence[Operand]) -> Statistic | None:
    """A sum over channels, divided by their number; nothing else that is made of a sum can be followed."""
    sums, numbers = [o.channels for o in operands if o.channels != ()], [o.number for o in operands if o.number]
    if len(sums) != 1 or len(numbers) != 1 or not isinstance(sums[0], Statistic):
        return None
    over = operands[0].channels == sums[0]
    divisor = numbers[0] if name == "div" and over else 1 / numbers[0] if name == "mul" else 0
    means = any(math.isclose(divisor, count, rel_tol=1e-3) for count in sums[0].counts)  # the number may be in bfloat16
    return replace(sums[0], counts=()) if means else None


def _broadcasts(own: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return own == () or (len(own) == len(shape) and all(a in (1, b) for a, b in zip(own, shape, strict=True)))


def _keeps_last(eqn: Any) -> bool:
    """Whether an operation goes over other axes than the last."""
    last = len(eqn.invars[0].aval.shape) - 1
    if eqn.primitive.name.startswith("reduce_window"):
        return eqn.params["window_dimensions"][-1] == 1
    if eqn.primitive.name == "pad":
        return eqn.params["padding_config"][-1] == (0, 0, 0)
    return last not in (*(eqn.params.get("dimensions") or ()), eqn.params.get("axis"))


def _joined(eqn: Any, operands: Sequence[Operand]) -> Segments | None:
    parts = [operand.channels for operand in operands if isinstance(operand.channels, tuple) and operand.channels]
    if len(parts) < len(operands):  # channels of constants belong to no layer
        return None
    stacked = eqn.primitive.name == "stack"  # `jnp.stack` of newer versions of JAX
    axis, last = eqn.params["axis" if stacked else "dimension"], len(operands[0].shape) - (0 if stacked else 1)
    if axis != last:
        return parts[0] if len(set(parts)) == 1 else None
    once = not stacked and all(operand.shape[-1] == length(part) for operand, part in zip(operands, parts, strict=True))
    return tuple(segment for part in parts for segment in part) if once else None
