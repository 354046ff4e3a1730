"""Which layers write into one residual stream: read off the computation itself.

A value carries the channels of the layers that made it until the next convolution or matrix product. Where two such
values are added, their layers share a stream.
"""

from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
from jax.extend import core

from agop_jax.core.types import Array, Variables
from agop_jax.features import taps

PRODUCTS = {"conv_general_dilated", "dot_general"}  # here channels end and begin
SUMS = {"add", "add_any", "sub"}

Labels = frozenset[str]
NONE: Labels = frozenset()


def residual_streams(model: nn.Module, variables: Variables, images: Array) -> dict[str, str]:
    """{layer path: name of its stream}, the name being that of the stream's first layer.

    A layer that is added to nothing has a stream of its own.
    """
    tapped = taps.tap(model, variables, images)
    perturbations = tapped.zero_perturbations(variables, images)
    traced = jax.make_jaxpr(lambda zeros: tapped.apply(variables, zeros, images)[0])(perturbations)
    groups = _Groups(tapped.specs)
    # dictionaries are flattened in sorted order, so label the inputs by the same flattening
    labels = jax.tree.leaves({path: [path] * len(calls) for path, calls in perturbations.items()})
    _follow(traced.jaxpr, [frozenset([label]) for label in labels], groups)
    return {path: groups.first(path) for path in tapped.specs}


class _Groups:
    """Disjoint sets of layers, each named by its earliest."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._order = {path: index for index, path in enumerate(paths)}
        self._first = {path: path for path in self._order}

    def first(self, path: str) -> str:
        return self._first[path]

    def join(self, paths: Labels) -> None:
        roots = {self._first[path] for path in paths}
        earliest = min(roots, key=self._order.__getitem__)
        self._first = {path: earliest if root in roots else root for path, root in self._first.items()}


def _follow(jaxpr: core.Jaxpr, inputs: list[Labels], groups: _Groups) -> list[Labels]:
    """Labels of a jaxpr's outputs; joins layers where their values are added."""
    known: dict[Any, Labels] = dict(zip(jaxpr.invars, inputs, strict=True))
    read = lambda var: known.get(var, NONE) if not isinstance(var, core.Literal) else NONE
    for eqn in jaxpr.eqns:
        given = [read(var) for var in eqn.invars]
        inner = _inner(eqn, len(given))
        if inner is not None:
            made = _follow(inner, given, groups)
        elif eqn.primitive.name in PRODUCTS:
            made = [NONE] * len(eqn.outvars)
        else:
            carried = frozenset().union(*given)
            if eqn.primitive.name in SUMS and carried:
                groups.join(carried)
            made = [carried] * len(eqn.outvars)
        known.update(zip(eqn.outvars, made, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _inner(eqn: Any, arguments: int) -> core.Jaxpr | None:
    """The body of a call such as a jitted function or a custom derivative; loops carry no labels inside."""
    for name in ("jaxpr", "call_jaxpr"):
        body = eqn.params.get(name)
        body = getattr(body, "jaxpr", body)
        if (
            isinstance(body, core.Jaxpr)
            and len(body.invars) == arguments
            and eqn.primitive.name not in ("scan", "while")
        ):
            return body
    return None
