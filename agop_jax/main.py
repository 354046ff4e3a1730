"""The program: python -m agop_jax.main --config=configs/digits.py --workdir=DIR [--config.field=value ...]."""

import sys
from collections.abc import Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from agop_jax import experiment
from agop_jax.compilation import keep_compiled_code
from agop_jax.errors import UserError
from agop_jax.resumable import Stopped

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "File of the experiment's config; 'FILE:quick' for a smoke run.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory for the results; a second run continues what is there.")


def main(argv: Sequence[str]) -> None:
    """Runs the experiment and prints the table of results."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: options start with --")
    logging.set_verbosity(logging.WARNING)
    keep_compiled_code()
    print(experiment.run(_CONFIG.value, _WORKDIR.value))
    if "report" in experiment.check_stages(_CONFIG.value.stages):
        print(f"\nReport: {_WORKDIR.value}/report.html")


def parse(argv: Sequence[str]) -> list[str]:
    """Reads the flags; whatever is wrong with them is the user's to mend, so it becomes one line."""
    try:
        rest = flags.FLAGS(argv)
        if flags.FLAGS.config is not None:
            flags.FLAGS.config.to_dict()  # a file that could not be read says so on first use
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, ImportError, SyntaxError) as error:
        raise UserError(" ".join(str(error).split())) from error
    for name in ("config", "workdir"):
        if not getattr(flags.FLAGS, name):
            raise UserError(f"--{name} is missing. {__doc__}")
    return rest


def run() -> None:
    """Entry point: exit status 0, or 2 with one line on standard error for bad input."""
    try:
        app.run(main, flags_parser=parse)
    except UserError as error:
        print(f"agop_jax: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print(f"agop_jax: {stopped}", file=sys.stderr)
        sys.exit(stopped.exit_status)


if __name__ == "__main__":
    run()
