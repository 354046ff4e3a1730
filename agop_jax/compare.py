"""Several experiments on one page: python -m agop_jax.compare RUN [RUN ...] [--out=DIR]

RUN is the work directory of a finished experiment. DIR gets comparison.html, its tables and its figures.
"""

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from agop_jax.core.errors import UserError
from agop_jax.experiments.workdir import local_directory
from agop_jax.initializers.registry import donor_free
from agop_jax.results.comparison import write_comparison
from agop_jax.results.runs import read_runs


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: see python -m agop_jax.compare --help")


def main(arguments: list[str] | None = None) -> None:
    """Entry point: exit status 0, or 2 with one line on standard error for bad input."""
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="work directory of a finished experiment")
    parser.add_argument("--out", default="comparison", metavar="DIR", help="where to write (default: %(default)s)")
    try:
        options = parser.parse_args(arguments)
        print(f"Comparison: {compare(options.runs, options.out)}")
    except UserError as error:
        print(f"agop_jax: {error}", file=sys.stderr)
        sys.exit(2)


def compare(paths: list[str], out: str) -> Path:
    """Compares work directories, and returns the page."""
    runs, folder = read_runs(paths), local_directory(out, "--out")
    if (folder / "config.json").exists():
        raise UserError(f"--out: {str(folder)!r} is a work directory, with a page of its own: choose another folder")
    return write_comparison(runs, folder, donor_free({row["init"] for run in runs for row in run.work.results}))


if __name__ == "__main__":
    main()
