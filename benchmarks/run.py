"""The benchmarks: python -m benchmarks.run [--suite=extract|probe|init|store|train|start|growth|rfm|all] [...].

Each suite times this package beside its peers in PyTorch and beside what the hardware allows, in one run, and writes
`OUT/SUITE.json` and `OUT/SUITE.md`. With `--pages=ROOT`, the tables also go into `ROOT/docs/benchmarks.md` and their
headlines into `ROOT/README.md`. The benchmarks need the extra 'bench' and the root of the repository as working
directory. The machine must be quiet: each table tells the load before it. All suites take about half an hour on 2
cores; 'probe' takes the most, in proportion to --images and --references.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agop_jax.core.errors import UserError

SUITES = ("extract", "probe", "init", "store", "train", "start", "growth", "rfm")


@dataclass(frozen=True)
class Options:
    """What the suites are given.

    Attributes:
      quick: toy sizes, to see that everything runs; the numbers mean nothing.
      out: directory for tables and figures.
      images, references: of the suite 'probe': images of the set, and random cotangents an image of its reference.
    """

    quick: bool
    out: Path
    images: int = 1000
    references: int = 32


def main(argv: Sequence[str] | None = None) -> None:
    """Runs suites, prints and saves their tables."""
    from benchmarks import tables  # JAX is imported when the flags are known to be good

    flags = parse(argv)
    options = Options(flags.quick, flags.out, flags.images, flags.references)
    if not flags.tables_only:
        for suite in SUITES if flags.suite == "all" else (flags.suite,):
            table = importlib.import_module(f"benchmarks.suites.{suite}").run(options)
            print(tables.write(table, flags.out), flush=True)
    if flags.pages:
        tables.write_pages(flags.pages, flags.out)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the flags."""
    parser = argparse.ArgumentParser("python -m benchmarks.run", description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=(*SUITES, "all"), default="all")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="directory for the tables")
    parser.add_argument("--pages", type=Path, help="root whose docs/benchmarks.md and README.md get the results")
    parser.add_argument("--tables-only", action="store_true", help="measure nothing, put what is in OUT into --pages")
    parser.add_argument("--quick", action="store_true", help="toy sizes; the numbers mean nothing")
    parser.add_argument("--images", type=int, default=1000, help="of the set of suite 'probe'; 8 or more")
    parser.add_argument("--references", type=int, default=32, help="random cotangents an image of its reference: 8 m")
    return parser.parse_args(argv)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        sys.exit(2)
