"""What a compiled program does, read from XLA's text of it: bytes, convolutions, loops, arrays that only move."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import jax

BITS = {"pred": 8, "c64": 64, "c128": 128}
SHAPE = re.compile(r"\b(pred|bf16|c64|c128|[fsu]\d+)(?:e\w+)?\[([\d,]*)\]")
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \([^\n]*\{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*?)\)(.*)$", re.MULTILINE)
CALLED = re.compile(r"(?:calls|body|condition|to_apply)=%?([\w.\-]+)")
HIGHEST = re.compile(r"operand_precision=\{highest,highest[,}]")
CUDNN = "__cudnn$conv"
NOT_RUN = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "call", "while", "conditional"}
APPLIED = {"fusion", "reduce", "reduce-window", "scatter", "select-and-scatter", "sort", "map"}  # inside one step
MOVES = {"copy", "transpose", "copy-start"}


class Instruction(NamedTuple):
    """One line: `%name = type opcode(operands), attributes`."""

    name: str
    type: str
    opcode: str
    operands: str
    attributes: str

    @property
    def called(self) -> list[str]:
        """Names of the computations that it runs."""
        return CALLED.findall(self.attributes)


def elements(type_: str) -> int:
    """Of the first array of a type."""
    return math.prod(map(int, filter(None, SHAPE.findall(type_)[0][1].split(","))))


def array_bytes(type_: str) -> int:
    """Of an array's type, or of all in a tuple's."""
    return sum(
        _bits(kind) * math.prod(map(int, filter(None, axes.split(",")))) // 8 for kind, axes in SHAPE.findall(type_)
    )


def _bits(kind: str) -> int:
    return BITS.get(kind) or int(re.sub(r"\D", "", kind))


@dataclass(frozen=True)
class Program:
    """An optimised program, as `compiled.as_text()` gives it.

    Attributes:
      text: of the whole module.
    """

    text: str

    @classmethod
    def of(cls, compiled: jax.stages.Compiled) -> "Program":
        """The program of a compiled function."""
        return cls(compiled.as_text() or "")

    @cached_property
    def computations(self) -> dict[str, list[Instruction]]:
        """{name: instructions}, in the order of the text."""
        return {
            name: [Instruction(*parts) for parts in INSTRUCTION.findall(body)]
            for name, body in COMPUTATION.findall(self.text)
        }

    @cached_property
    def steps(self) -> list[Instruction]:
        """What the device is asked to run one by one: all instructions but those inside a fusion."""
        fused = {name for one in self._all() if one.opcode in APPLIED for name in one.called}
        lines = (one for name, body in self.computations.items() if name not in fused for one in body)
        return [one for one in lines if one.opcode not in NOT_RUN]

    @property
    def has_float64(self) -> bool:
        """Whether any array is in float64."""
        return "f64[" in self.text

    @property
    def cudnn(self) -> list[Instruction]:
        """Convolutions that cuDNN does."""
        return [one for one in self.steps if CUDNN in one.attributes]

    @property
    def plain_convolutions(self) -> list[Instruction]:
        """Those that it does not."""
        return [one for one in self._all() if one.opcode == "convolution"]

    @property
    def looped_convolutions(self) -> list[Instruction]:
        """Those inside a loop."""
        bodies = {name for one in self._all() if one.opcode == "while" for name in self._within(one)}
        return [one for name in sorted(bodies) for one in self.computations[name] if CUDNN in one.attributes]

    @property
    def imprecise(self) -> list[Instruction]:
        """Products of data, whose first two operands are not of the highest precision."""
        products = [one for one in self._all() if one.opcode in ("dot", "convolution")] + self.cudnn
        return [one for one in products if not HIGHEST.search(one.attributes)]

    @cached_property
    def bytes(self) -> int:
        """Read and written by all steps, each array once a step."""
        return sum(map(self._traffic, self.steps))

    @cached_property
    def moved(self) -> dict[str, int]:
        """{step: bytes read and written} of those that only copy or transpose an array, the largest first."""
        moves = {one.name: self._traffic(one) for one in self.steps if self._only_moves(one)}
        return dict(sorted(moves.items(), key=lambda item: -item[1]))

    def moved_besides(self, sizes: set[int]) -> dict[str, int]:
        """`moved` without arrays that have one of these numbers of elements, such as those of kernels."""
        return {name: moved for name, moved in self.moved.items() if elements(self._types[name]) not in sizes}

    @cached_property
    def _types(self) -> dict[str, str]:
        return {one.name: one.type for one in self._all()}

    def _all(self) -> Iterator[Instruction]:
        for body in self.computations.values():
            yield from body

    def _within(self, one: Instruction) -> set[str]:
        """Names of the computations that it runs, and those that they run."""
        names, waiting = set(), list(one.called)
        while waiting:
            name = waiting.pop()
            if name not in names and name in self.computations:
                names.add(name)
                waiting += [inner for line in self.computations[name] for inner in line.called]
        return names

    def _traffic(self, one: Instruction) -> int:
        operands = re.findall(r"%([\w.\-]+)", one.operands)
        return array_bytes(one.type) + sum(array_bytes(self._types.get(name, "")) for name in operands)

    def _only_moves(self, one: Instruction) -> bool:
        if one.opcode in MOVES:
            return True
        inner = [line for name in one.called for line in self.computations.get(name, ()) if one.opcode == "fusion"]
        working = [line for line in inner if line.opcode not in NOT_RUN]
        return bool(working) and all(line.opcode in MOVES for line in working)
