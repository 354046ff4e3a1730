"""A jaxpr evaluated again, with something added to the product of every layer.

Jitted functions and custom derivatives that hold a layer are inlined; rematerialised blocks and scans are made again
around what they hold. With the inputs unknown, nothing of the network is computed but the kernels of its layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from agop_jax.core.types import Array
from agop_jax.features.dataflow import body_of
from agop_jax.features.sites import Site

REMATERIALISED = ("remat2", "checkpoint")
UNKNOWN = object()  # in place of a value that depends on the inputs, where kernels alone are computed

Taps = Mapping[str, Any]  # place of a product -> what is added to it


class Record(NamedTuple):
    """What one product saw and did; scans lead with axes of their steps."""

    inputs: Array
    outputs: Array  # without the bias
    kernel: Array


@dataclass(frozen=True)
class Evaluation:
    """Evaluates a jaxpr with the taps added.

    Attributes:
      closed: the jaxpr.
      sites: of its products.
      scopes: the calls to go into: jit and custom derivatives are inlined, remat and scan are made again around them.
    """

    closed: core.ClosedJaxpr
    sites: Mapping[str, Site]
    scopes: set[str]

    def __call__(self, arguments: Sequence[Any], taps: Taps) -> tuple[list[Any], dict[str, Any]]:
        """Results and records; of unknown inputs the results are unknown, and the records are kernels alone."""
        return self._run(self.closed.jaxpr, self.closed.consts, arguments, taps, "")

    def _run(self, jaxpr: core.Jaxpr, consts: Sequence[Any], arguments: Sequence[Any], taps: Taps, scope: str):
        values = dict(zip(jaxpr.invars, arguments, strict=True))
        values |= {var: constant(const, var) for var, const in zip(jaxpr.constvars, consts, strict=True)}
        read = lambda var: constant(var.val, var) if isinstance(var, core.Literal) else values[var]
        records: dict[str, Any] = {}
        for index, eqn in enumerate(jaxpr.eqns):
            place, operands = f"{scope}{index}", [read(var) for var in eqn.invars]
            if place in self.scopes:
                results, inner = self.call(eqn, operands, taps, f"{place}/")
                records |= inner
            else:
                results = bind(eqn, operands)
            if place in self.sites:
                records[place] = record(self.sites[place], operands, results[0])
                results = [results[0] + taps[place]] if place in taps else results
            values.update(zip(eqn.outvars, results, strict=True))
        return [read(var) for var in jaxpr.outvars], records

    def call(self, eqn: Any, operands: list[Any], taps: Taps, scope: str) -> tuple[list[Any], dict[str, Any]]:
        """Results and records of a call in the jaxpr that holds a product; `scope` begins the places in it."""
        body, inner = body_of(eqn), {place: tap for place, tap in taps.items() if place.startswith(scope)}
        run = lambda operands, taps: self._run(body.jaxpr, body.consts, operands, taps, scope)
        if eqn.primitive.name == "scan":
            return _scan(eqn.params, run, operands, inner)
        if eqn.primitive.name in REMATERIALISED and not any(operand is UNKNOWN for operand in operands):
            options = {name: eqn.params[name] for name in ("policy", "prevent_cse")}
            return jax.checkpoint(run, **options)(operands, inner)
        return run(operands, inner)


def constant(value: Any, var: Any) -> Any:
    """The value of a constant. A numpy array may be kept in float64 where the computation has float32."""
    return jnp.asarray(value, var.aval.dtype) if isinstance(value, np.ndarray) else value


def bind(eqn: Any, operands: list[Any]) -> list[Any]:
    """The results of one equation; unknown where an operand is."""
    if any(operand is UNKNOWN for operand in operands):
        return [UNKNOWN] * len(eqn.outvars)
    with eqn.ctx.manager:
        results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
    return results if eqn.primitive.multiple_results else [results]


def record(site: Site, operands: list[Any], outputs: Any) -> Any:
    """What a product saw and did; the kernel alone where its inputs are unknown."""
    if outputs is UNKNOWN:
        return operands[site.place]
    return Record(operands[1 - site.place], outputs, operands[site.place])


def _scan(params: Any, run: Any, operands: list[Any], taps: Taps) -> tuple[list[Any], dict[str, Any]]:
    """A scan whose steps take the taps as further inputs and give the records as further outputs.

    What is unknown stays outside; then the steps compute kernels alone.
    """
    first, last = params["num_consts"], params["num_consts"] + params["num_carry"]
    consts, carry, xs = operands[:first], operands[first:last], operands[last:]
    known = not any(operand is UNKNOWN for operand in operands)
    sliced = [x for x in xs if x is not UNKNOWN]

    def step(carry: Any, slices: Any) -> tuple[Any, Any]:
        here = iter(slices[0])
        steps = [UNKNOWN if x is UNKNOWN else next(here) for x in xs]
        results, records = run([*consts, *(carry if known else [UNKNOWN] * (last - first)), *steps], slices[1])
        return (results[: last - first], (results[last - first :], records)) if known else ((), ([], records))

    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, (ys, records) = jax.lax.scan(step, carry if known else (), (sliced, taps), **options)
    results = len(params["jaxpr"].jaxpr.outvars)
    return [*carry, *ys] if known else [UNKNOWN] * results, records
