"""Which layer's channels lie along the last axis of a value, and in which order.

A segment is a place in the computation and a number of channels: those of one product's output, or of the inputs (no
place). The last axis of a value holds its segments, one after another, once or again and again: of a flattened image
once a position. What is not known to keep that order loses it.
"""

from collections.abc import Sequence
from typing import Any

Segments = tuple[tuple[str | None, int], ...]

ELEMENTWISE = {
    "abs",
    "acos",
    "acosh",
    "add",
    "add_any",
    "and",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "cbrt",
    "ceil",
}
ELEMENTWISE |= {
    "clamp",
    "copy",
    "cos",
    "cosh",
    "digamma",
    "div",
    "eq",
    "erf",
    "erf_inv",
    "erfc",
    "exp",
    "exp2",
    "expm1",
}
ELEMENTWISE |= {
    "floor",
    "ge",
    "gt",
    "integer_pow",
    "is_finite",
    "le",
    "lgamma",
    "log",
    "log1p",
    "logistic",
    "lt",
    "max",
}
ELEMENTWISE |= {"min", "mul", "ne", "neg", "nextafter", "not", "or", "pow", "reduce_precision", "rem", "round", "rsqrt"}
ELEMENTWISE |= {"select_n", "sign", "sin", "sinh", "sqrt", "square", "sub", "tan", "tanh", "xor"}
KEPT = {"reduce_sum", "reduce_max", "reduce_min", "reduce_window_max", "reduce_window_sum", "reduce_window"}
KEPT |= {"pad", "slice", "dynamic_slice", "convert_element_type", "copy", "stop_gradient", "rev"}


def segments_of(eqn: Any, operands: Sequence[Segments | None]) -> Segments | None:
    """The segments of the result of an operation that is neither a product nor a call.

    Args:
      eqn: of a jaxpr, with shapes of operands and result.
      operands: segments of each operand; () of what holds no inputs, None where they are not known.
    """
    shape = eqn.outvars[0].aval.shape
    shapes = [var.aval.shape for var in eqn.invars]
    sides = [(own, part) for own, part in zip(shapes, operands, strict=True) if part]
    if not shape or not sides or None in operands:
        return None
    name, (first_shape, first) = eqn.primitive.name, sides[0]
    if name == "concatenate":
        return _joined(eqn, shapes, operands)
    if name == "transpose":
        return first if eqn.params["permutation"][-1] == len(shape) - 1 else None
    if name == "reshape":
        return first if shape[-1] % _length(first) == 0 else None
    if name in KEPT:
        return first if first_shape and shape[-1] == first_shape[-1] and _keeps_last(eqn) else None
    if name == "broadcast_in_dim":
        dimensions = eqn.params["broadcast_dimensions"]
        kept = dimensions and dimensions[-1] == len(shape) - 1 and shape[-1] == first_shape[-1]
        return first if kept else None
    elementwise = name in ELEMENTWISE and all(_broadcasts(own, shape) for own in shapes)
    whole = {tuple(count for _, count in part): part for own, part in reversed(sides) if own[-1:] == shape[-1:]}
    return next(iter(whole.values())) if elementwise and len(whole) == 1 else None


def _broadcasts(own: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return own == () or (len(own) == len(shape) and all(a in (1, b) for a, b in zip(own, shape, strict=True)))


def _keeps_last(eqn: Any) -> bool:
    """Whether an operation goes over other axes than the last."""
    last = len(eqn.invars[0].aval.shape) - 1
    if eqn.primitive.name.startswith("reduce_window"):
        return eqn.params["window_dimensions"][-1] == 1
    if eqn.primitive.name == "pad":
        return eqn.params["padding_config"][-1] == (0, 0, 0)
    return last not in (eqn.params.get("axes") or eqn.params.get("dimensions") or ())


def _joined(eqn: Any, shapes: Sequence[Any], operands: Sequence[Segments | None]) -> Segments | None:
    if () in operands:  # channels of constants belong to no layer
        return None
    if eqn.params["dimension"] != len(shapes[0]) - 1:
        return operands[0] if len(set(operands)) == 1 else None
    once = all(shape[-1] == _length(part or ()) for shape, part in zip(shapes, operands, strict=True))
    return tuple(segment for part in operands for segment in part or ()) if once else None


def _length(segments: Segments) -> int:
    return sum(count for _, count in segments)
