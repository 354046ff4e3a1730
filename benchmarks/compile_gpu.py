"""What fits an H100, and what XLA makes of our steps for one, without one: python -m benchmarks.compile_gpu.

Extraction, training and evaluation at ImageNet's size are compiled for the card, which need not be there, and run
nowhere. Needs the wheels of `jax[cuda12]` and the root of the repository as working directory; ten minutes on 2 cores.
"""

import argparse
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from agop_jax import models
from agop_jax.core.errors import UserError
from agop_jax.core.networks import open_network
from agop_jax.data import Pipeline, Split
from agop_jax.features.steps import MAX_UNROLLED, Steps
from agop_jax.training import Settings, Trainer
from benchmarks import costs, h100, hlo, tables
from benchmarks.tables import Row, Table

GIB = 2**30
# XLA tries its own kernels for matrix products on the card and takes the faster; without a card some find no tiles
OPTIONS = {"xla_gpu_enable_triton_gemm": False}
MOST_MOVED = 0.01  # of the bytes that a step reads and writes: for copies and transposes of other than kernels
NOTES = [
    "Compiled by XLA for an H100 of 79.1 GiB, and run nowhere. Of the card: arguments, intermediate results, and "
    "outputs that take no argument's place. JAX takes three quarters of a card unless `XLA_PYTHON_CLIENT_MEM_FRACTION` "
    "says otherwise. cuDNN chooses algorithms and their workspace on the card itself; that memory is not counted. "
    "Matrix products are cuBLAS's; on a card XLA tries kernels of its own beside them. x the model: intermediate "
    "results beside B (Σ 4Pc + passes · max 4Pc) bytes. Moved: share of all bytes that steps read and write which "
    "belongs to steps that only copy or transpose. Other jobs ran beside the compiler."
]


@dataclass(frozen=True)
class Case:
    """A step of a network.

    Attributes:
      what: 'gram', 'probe', 'training' or 'evaluation'.
      network: name of a model, and its further fields.
      outputs: of the network.
      batch: images in a step.
      passes: reverse passes in a step of extraction.
      precision: of training.
      size: side of the images.
      stored: side of the images as they are stored.
    """

    what: str
    network: str
    outputs: int = 1000
    batch: int = 64
    passes: int = 1
    precision: str = "float32"
    size: int = 224
    stored: int = 224
    fields: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """For a row of the table."""
        resized = f", resized from {self.stored}" if self.stored != self.size else ""
        hidden = ", hidden head" if self.fields else ""
        of_what = {"gram": f", {self.passes} at a time", "probe": f", {self.passes} cotangents"}
        kind = of_what.get(self.what, f", {self.precision}" if self.what == "training" else "")
        return f"{self.network}{hidden}, {self.outputs} outputs, `{self.what}`{kind}, batch {self.batch}{resized}"

    @property
    def model(self) -> nn.Module:
        """The network."""
        return models.create(self.network, self.outputs, **dict(self.fields))

    @property
    def image(self) -> jax.ShapeDtypeStruct:
        """A batch of one."""
        return jax.ShapeDtypeStruct((1, self.size, self.size, 3), jnp.float32)

    def traced(self) -> jax.stages.Traced:
        """The step, as the package compiles it."""
        return _extraction(self) if self.what in ("gram", "probe") else _training(self)


HIDDEN = (("head", "classic"),)
CASES = [
    *(Case("gram", "vgg11", outputs, passes=min(outputs, MAX_UNROLLED)) for outputs in (10, 1000)),
    *(Case("probe", "vgg11", outputs, passes=2) for outputs in (10, 1000)),
    Case("gram", "vgg11", passes=MAX_UNROLLED, fields=HIDDEN),
    Case("gram", "resnet50", passes=MAX_UNROLLED),
    Case("gram", "resnet50", passes=1),
    Case("probe", "resnet50", passes=2),
    *(
        Case("training", network, batch=batch, precision=precision)
        for network in ("vgg11", "resnet50")
        for batch in (64, 256)
        for precision in ("float32", "bfloat16")
    ),
    Case("training", "vgg11", outputs=10, stored=32),
    *(Case("evaluation", network) for network in ("vgg11", "resnet50")),
]
QUICK = [
    Case("gram", "vgg11", 3, passes=3, size=32, stored=32, fields=(("width", 1 / 16),)),
    Case("training", "resnet20", 3, precision="bfloat16", size=32, stored=8),
]


def _shapes(case: Case) -> Any:
    return jax.eval_shape(lambda image: case.model.init(jax.random.key(0), image), case.image)


def _extraction(case: Case) -> jax.stages.Traced:
    shape = jax.ShapeDtypeStruct
    inputs = shape((case.batch, *case.image.shape[1:]), jnp.float32)
    network = open_network(case.model, _shapes(case))
    steps = Steps(network, inputs, "logits", h100.mesh())
    batch = inputs, shape((case.batch,), jnp.int32), shape((case.batch,), jnp.float32)
    variables = network.params, network.others
    if case.what == "gram":
        rows = steps.chunks(case.passes)[0]
        return steps.sums.trace(variables, *batch, shape(rows.shape, rows.dtype))
    key = jax.eval_shape(lambda: jax.random.key_data(jax.random.split(jax.random.key(0), case.passes)))
    step = steps.passes(case.batch, case.passes, jax.random.key_impl(jax.random.key(0)))
    return step.trace(variables, *batch, shape((), jnp.int32), key)


def _training(case: Case) -> jax.stages.Traced:
    shape, settings = jax.ShapeDtypeStruct, Settings(1000, case.batch, precision=case.precision)
    pipeline = Pipeline((0.5,) * 3, (0.25,) * 3, pad=4, flip=True, resize=case.size if case.stored != case.size else 0)
    trainer = Trainer(case.model, pipeline, settings, h100.mesh())
    images, labels = shape((case.batch, case.stored, case.stored, 3), jnp.uint8), shape((case.batch,), jnp.int32)
    if case.what == "evaluation":
        weights = shape((case.batch,), jnp.bool_)
        return trainer.batch_sums.trace(_shapes(case), Split(images, labels), None, weights)
    return trainer.trace_step(jax.eval_shape(trainer.start, _shapes(case)), Split(images, labels), None)


def run(cases: Sequence[Case]) -> Table:
    """The table; its details are what is wrong with each step.

    Raises:
      UserError: the compiler is not there.
    """
    h100.mesh()
    rows, faults = zip(*map(compile_case, cases), strict=True)
    details = {case.name: wrong for case, wrong in zip(cases, faults, strict=True) if wrong}
    title = "steps at ImageNet's size, compiled for an H100"
    return Table("compile_gpu", title, list(rows), NOTES, _where(), details=details)


def _where() -> dict[str, Any]:
    return tables.environment() | {"compiled_for": h100.NAME}


def compile_case(case: Case) -> tuple[Row, list[str]]:
    """Compiles one step and measures it; a row and what is wrong."""
    lowered = case.traced().lower()
    start = time.perf_counter()
    compiled = lowered.compile(OPTIONS)
    seconds = time.perf_counter() - start
    program, sizes = hlo.Program.of(compiled), compiled.memory_analysis()
    kernels = {leaf.size for leaf in jax.tree.leaves(_shapes(case))}
    faults = list(faults_of(program, case.what in ("gram", "probe"), kernels))
    outputs = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    every = sizes.argument_size_in_bytes + sizes.temp_size_in_bytes + outputs
    model = costs.count(case.model, case.size).memory(case.batch, case.passes)
    modelled = sizes.temp_size_in_bytes / model if case.what != "evaluation" else ""
    row = Row(
        case.name,
        {
            "arguments, GiB": sizes.argument_size_in_bytes / GIB,
            "intermediate, GiB": sizes.temp_size_in_bytes / GIB,
            "outputs, GiB": outputs / GIB,
            "of the card": f"{every / h100.BYTES:.1%}",
            "x the model": modelled,
            "convolutions of cuDNN": len(program.cudnn),
            "moved": f"{sum(program.moved.values()) / program.bytes:.2%}",
            "compiled in, s": seconds,
        },
    )
    print(case.name, row.cells, *faults, sep="; ", file=sys.stderr, flush=True)
    return row, faults


def faults_of(program: hlo.Program, exact: bool, kernels: set[int]) -> Iterator[str]:
    """What a step should not do.

    Args:
      program: compiled.
      exact: whether all of its products are to be of the highest precision.
      kernels: numbers of elements of the parameters; cuDNN takes them in another order, once a step.
    """
    for what, lines in (
        ("outside cuDNN", program.plain_convolutions),
        ("in a loop", program.looped_convolutions),
        ("below the highest precision", program.imprecise if exact else []),
    ):
        if lines:
            yield f"{len(lines)} products {what}, such as {lines[0].name}"
    if program.has_float64:
        yield "arrays in float64"
    besides = program.moved_besides(kernels)
    if sum(besides.values()) > MOST_MOVED * program.bytes:
        name, moved = next(iter(besides.items()))
        yield f"more than {MOST_MOVED:.0%} of the bytes only move, {moved / GIB:.2g} GiB of them in {name}"


def main(argv: Sequence[str] | None = None) -> None:
    """Compiles, prints and saves the table."""
    parser = argparse.ArgumentParser("python -m benchmarks.compile_gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="directory for the table")
    parser.add_argument("--page", type=Path, help="file whose section between the marks is replaced by the table")
    parser.add_argument("--only", default=".*", help="regular expression for the rows' names")
    parser.add_argument("--quick", action="store_true", help="toy sizes; the numbers mean nothing")
    flags = parser.parse_args(argv)
    cases = [case for case in (QUICK if flags.quick else CASES) if re.search(flags.only, case.name)]
    jax.config.update("jax_platforms", "cpu")  # the compiler alone is used of whatever else there is
    table = run(cases)
    print(tables.write(table, flags.out), flush=True)
    if flags.page:
        tables.replace_section(flags.page, table.markdown())
    if table.details:
        raise UserError("; ".join(f"{name}: {', '.join(wrong)}" for name, wrong in table.details.items()))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        sys.exit(2)
