"""The program: python -m agop_jax.main --config=configs/digits.py --workdir=DIR [--config.field=value ...]."""

# pyright: reportArgumentType=false

import gc
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from agop_jax.core import hosts
from agop_jax.core.compilation import keep_compiled_code
from agop_jax.core.errors import UserError, unknown_name
from agop_jax.experiments import experiment
from agop_jax.training.resumable import Stopped

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "File of the experiment's config; 'FILE:quick' for a smoke run.", lock_config=True
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "This is one of several processes of the program, on a cluster that JAX knows."
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of the first of several processes, anywhere else.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator: how many there are.", 1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --coordinator: which one this is, from 0.", 0)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory for the results; a second run continues what is there.")


def main(argv: Sequence[str]) -> None:
    """Runs the experiment and prints the table of results."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: options start with --")
    logging.set_verbosity(logging.WARNING)
    keep_compiled_code()
    gc.freeze()  # modules stay to the end: tracing makes the collector of cycles look at them again and again
    jax.config.update("jax_transfer_guard", "allow")  # the program moves data on purpose, in all its threads
    if _DISTRIBUTED.value or _COORDINATOR.value:
        hosts.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    summary = experiment.run(_CONFIG.value, _WORKDIR.value)
    if hosts.is_first():
        print(summary)


def parse(argv: Sequence[str]) -> list[str]:
    """Reads the flags; whatever is wrong with them is the user's to mend, so it becomes one line."""
    _require_config_file(argv)
    try:
        rest = flags.FLAGS(argv)
        if flags.FLAGS.config is not None:
            flags.FLAGS.config.to_dict()  # a file that could not be read says so on first use
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, ImportError, SyntaxError) as error:
        raise UserError(" ".join(str(_origin(error)).split())) from error
    for name in ("config", "workdir"):
        if not getattr(flags.FLAGS, name):
            raise UserError(f"--{name} is missing. {__doc__}")
    names = [name for name in ("coordinator", "num_processes", "process_id") if getattr(flags.FLAGS, name) is not None]
    if names and len(names) < 3:
        raise UserError(
            f"wanted --coordinator, --num_processes and --process_id together, got --{' and --'.join(names)}"
        )
    return rest


def _require_config_file(argv: Sequence[str]) -> None:
    """Before ml_collections reads it, whose message hides the name of a file that is missing."""
    values = [word.partition("=")[2] for word in argv if word.startswith("--config=")]
    for path in (Path(value.partition(":")[0]) for value in values):
        if not path.exists():
            raise unknown_name("config file", str(path), map(str, path.parent.glob("*.py")))


def _origin(error: BaseException) -> BaseException:
    """The `UserError` of a config file, which ml_collections raises again with a traceback as its text; else itself."""
    chain = [error]
    while following := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(following)
    return next((link for link in reversed(chain) if isinstance(link, UserError)), error)


def run() -> None:
    """Entry point: exit status 0, or 2 with one line on standard error for bad input."""
    try:
        app.run(main, flags_parser=parse)
    except UserError as error:
        _end(str(error), 2)
    except Stopped as stopped:
        _end(str(stopped), stopped.exit_status)
    except Exception as error:
        if not hosts.several():
            raise
        if not hosts.lost_another(error):
            traceback.print_exc()
        _end(hosts.describe_failure(error), 1)


def _end(line: str, status: int) -> None:
    print(f"agop_jax: {line}", file=sys.stderr, flush=True)
    if hosts.several():
        hosts.leave(status)
    sys.exit(status)


if __name__ == "__main__":
    run()
