"""A network's computation as a flat list of steps, cut before each product with a kernel.

Jitted functions, rematerialised blocks and custom derivatives are inlined, so that every product is a step of the list,
and steps can be compared by their parameters. A scan that holds products is one step. Values that depend on no input,
such as kernels, are computed where they are needed, from the parameters of that moment: that is what lets a network be
evaluated once while its layers are drawn one after another (`walk.py`).

A piece of the list is compiled as a function of what it reads. Pieces of one structure, such as the blocks of a
residual network, are compiled once.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from jax.extend import core

from agop_jax.core.compilation import jit
from agop_jax.core.types import Array
from agop_jax.features.dataflow import CALLS, body_of
from agop_jax.features.evaluation import Evaluation, Record, bind, constant, record

Values = dict[int, Any]


@dataclass(frozen=True, eq=False)
class Step:
    """One equation.

    Attributes:
      eqn: of the jaxpr.
      place: as in `Dataflow`.
      reads: number of each operand's value, or the literal itself.
      writes: numbers of the results.
    """

    eqn: Any
    place: str
    reads: tuple[Any, ...]
    writes: tuple[int, ...]

    @property
    def numbers(self) -> list[int]:
        """The values that it reads, without literals."""
        return [read for read in self.reads if isinstance(read, int)]


@dataclass(eq=False)
class Program:
    """The flat list.

    Attributes:
      evaluation: of the jaxpr; says which steps are products and which calls hold some.
      leaves: numbers of leaves of params, others and inputs, which are the first values.
      steps: in the order of the computation.
      constants: value by number.
      compiled: pieces by their structure.
    """

    evaluation: Evaluation
    leaves: tuple[int, int, int]
    steps: list[Step] = field(default_factory=list)
    constants: Values = field(default_factory=dict)
    compiled: dict[Any, Callable[..., Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        closed = self.evaluation.closed
        self._next, self._pieces = sum(self.leaves), {}
        self._inline(closed.jaxpr, closed.consts, range(self._next), "")

    def _inline(self, jaxpr: core.Jaxpr, consts: Sequence[Any], arguments: Iterable[Any], scope: str) -> list[Any]:
        known = dict(zip(jaxpr.invars, arguments, strict=True))
        for var, const in zip(jaxpr.constvars, consts, strict=True):
            known[var] = self._new()
            self.constants[known[var]] = constant(const, var)
        read = lambda var: var if isinstance(var, core.Literal) else known[var]
        for index, eqn in enumerate(jaxpr.eqns):
            place, reads = f"{scope}{index}", tuple(read(var) for var in eqn.invars)
            if eqn.primitive.name in CALLS:
                body = body_of(eqn)
                writes = self._inline(body.jaxpr, body.consts, reads, f"{place}/")
            else:
                writes = [self._new() for _ in eqn.outvars]
                self.steps.append(Step(eqn, place, reads, tuple(writes)))
            known.update(zip(eqn.outvars, writes, strict=True))
        return [read(var) for var in jaxpr.outvars]

    def _new(self) -> int:
        self._next += 1
        return self._next - 1

    @property
    def _inputs(self) -> frozenset[int]:
        params, others, inputs = self.leaves
        return frozenset(range(params + others, params + others + inputs))

    @cached_property
    def data(self) -> frozenset[int]:
        """The values that depend on the inputs."""
        values = set(self._inputs)
        for step in self.steps:
            if values.intersection(step.numbers):
                values.update(step.writes)
        return frozenset(values)

    @cached_property
    def cuts(self) -> list[int]:
        """Places in the list of the products, and of the scans that hold some."""
        sites, scopes = self.evaluation.sites, self.evaluation.scopes
        return [index for index, step in enumerate(self.steps) if step.place in sites or step.place in scopes]

    @cached_property
    def alive(self) -> list[frozenset[int]]:
        """For each cut, the values of data that come before it and are read from there on."""
        before, by_cut, reads = self._written_before(), [], set()
        for index in reversed(range(len(self.steps))):
            step = self.steps[index]
            if self.data.intersection(step.writes):
                reads.update(self.data.intersection(step.numbers))
            if index in before:
                by_cut.append(frozenset(reads & before[index]))
        return by_cut[::-1]

    def _written_before(self) -> dict[int, set[int]]:
        written, before = set(self._inputs), {}
        cuts = set(self.cuts)
        for index, step in enumerate(self.steps):
            if index in cuts:
                before[index] = set(written)
            written.update(self.data.intersection(step.writes))
        return before

    @cached_property
    def _writer(self) -> dict[int, int]:
        return {value: index for index, step in enumerate(self.steps) for value in step.writes}

    def _static(self, values: Iterable[int]) -> list[int]:
        """The steps that make these values from the parameters alone, in order."""
        needed, pending = set(), [value for value in values if value not in self.data]
        while pending:
            index = self._writer.get(pending.pop())
            if index is not None and index not in needed:
                needed.add(index)
                pending += self.steps[index].numbers
        return sorted(needed)

    def upto(self, cut: int) -> "Piece":
        """The piece from the cut before this one, or the beginning, to this cut.

        Its results are the values that are alive at this cut and were not at the one before.
        """
        if cut not in self._pieces:
            first = self.cuts[cut - 1] if cut else 0
            before = self.alive[cut - 1] if cut else self._inputs
            self._pieces[cut] = self._piece(first, self.cuts[cut], sorted(self.alive[cut] - before))
        return self._pieces[cut]

    def at(self, cut: int) -> "Piece":
        """What the step at a cut reads, for measuring that step."""
        step = self.steps[self.cuts[cut]]
        return replace(self._piece(0, 0, step.numbers), measured=step)

    def kernel(self, place: str) -> "Piece | None":
        """The kernel operand of a product from parameters; None inside a scan, whose steps slice it."""
        step = self.steps[self.cuts[self.cut_of(place)]]
        if step.place != place:
            return None
        return self._piece(0, 0, [step.reads[self.evaluation.sites[place].place]])

    def cut_of(self, place: str) -> int:
        """The cut at a product, or at the scan that holds it."""
        steps = (self.steps[index] for index in self.cuts)
        return next(cut for cut, step in enumerate(steps) if f"{place}/".startswith(f"{step.place}/"))

    def _piece(self, first: int, last: int, results: Sequence[int]) -> "Piece":
        """The steps of data from one index up to another, with what they need of the parameters."""
        steps = [step for step in self.steps[first:last] if self.data.intersection(step.writes)]
        own = self._static([*results, *(number for step in steps for number in step.numbers)])
        return Piece(self, (*(self.steps[index] for index in own), *steps), tuple(results))


@dataclass(frozen=True, eq=False)
class Piece:
    """Some steps of a program, as a function of the values that they read.

    Attributes:
      program: of the steps.
      steps: in order.
      results: numbers of the values that they are evaluated for.
      measured: a step that follows them and is looked at, not done.
    """

    program: Program
    steps: tuple[Step, ...]
    results: tuple[int, ...]
    measured: Step | None = None

    @cached_property
    def reads(self) -> tuple[int, ...]:
        """Numbers of the values that come from outside, in the order of their first use."""
        own = {value for step in self.steps for value in step.writes}
        numbers = [*(number for step in self.steps for number in step.numbers), *self.results]
        return tuple(dict.fromkeys(number for number in numbers if number not in own))

    @cached_property
    def structure(self) -> Any:
        """What two pieces share that compute the same function."""
        order = {number: index for index, number in enumerate(self.reads)}
        parts = []
        for step in (*self.steps, *([self.measured] if self.measured else [])):
            parts.append((step.eqn.primitive, _key(step.eqn), tuple(_operand(read, order) for read in step.reads)))
            order |= {number: len(order) + index for index, number in enumerate(step.writes)}
        return tuple(parts), tuple(order[number] for number in self.results), self.measured is None

    def __call__(self, values: Mapping[int, Array]) -> Values:
        """The results, compiled once for each structure."""
        results = self.compiled("results", lambda values: [values[number] for number in self.results])(values)
        return dict(zip(self.results, results, strict=True))

    def compiled(self, key: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` of the values of this piece and further arrays, compiled once for each structure and key."""
        compiled, key = self.program.compiled, (self.structure, key)
        if key not in compiled:
            compiled[key] = jit(lambda own, *further: function(self.evaluate(own), *further))
        return lambda values, *further: compiled[key]([values[number] for number in self.reads], *further)

    def records(self, step: Step, values: Values) -> dict[str, Record]:
        """What the products of a measured step see and do, from the values of the piece: {place: Record}."""
        evaluation = self.program.evaluation
        operands = [_value(read, values) for read in step.reads]
        if step.place in evaluation.sites:
            return {step.place: record(evaluation.sites[step.place], operands, bind(step.eqn, operands)[0])}
        return evaluation.call(step.eqn, operands, {}, f"{step.place}/")[1]

    def evaluate(self, own: Sequence[Array]) -> Values:
        """All values from those that come from outside."""
        values: Values = dict(zip(self.reads, own, strict=True))
        for step in self.steps:
            operands = [_value(read, values) for read in step.reads]
            values.update(zip(step.writes, bind(step.eqn, operands), strict=True))
        return values


def _value(read: Any, values: Values) -> Any:
    return constant(read.val, read) if isinstance(read, core.Literal) else values[read]


def _operand(read: Any, order: Mapping[int, int]) -> Any:
    if isinstance(read, core.Literal):
        return str(read.aval), np.asarray(read.val).tobytes()
    return order[read]


def _key(eqn: Any) -> Any:
    """What tells equations of one primitive apart: parameters and shapes; the identity of one that has no hash."""
    shapes = tuple((var.aval.shape, str(var.aval.dtype)) for var in eqn.invars)
    parameters = tuple(sorted(eqn.params.items(), key=lambda item: item[0]))
    try:
        hash(parameters)
    except TypeError:
        return id(eqn)
    return parameters, shapes
