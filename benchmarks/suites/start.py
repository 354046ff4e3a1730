"""From the command line to the first training step: on a fresh machine, and where compiled code was kept."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.run import Options
from benchmarks.tables import Row, Table, environment
from benchmarks.timing import spread

CONFIG = "configs/digits.py:quick"  # as long as the whole experiment until its first step
CACHE = "JAX_COMPILATION_CACHE_DIR"
REPEATS = 4


def run(options: Options) -> Table:
    """The table of this suite."""
    facts, repeats = environment(), 1 if options.quick else REPEATS
    first_step_of_nothing()  # Python's own files are in the page cache of either
    times = np.array([cold_and_warm() for _ in range(repeats)])
    cold, warm = times[:, 0], times[:, 1]
    imports = spread([first_step_of_nothing() for _ in range(repeats)])
    rows = [
        Row("no compiled code (first run)", {"s": spread(cold), "x the first run": "1"}),
        Row("compiled code kept (second run)", {"s": spread(warm), "x the first run": spread(warm / cold)}),
        Row("limit: Python's start and the imports", {"s": imports, "x the first run": spread(imports.values / cold)}),
    ]
    notes = [
        f"Seconds from the start of `python -m agop_jax.main --config={CONFIG}` to the end of the donor's first "
        "training step: median and range of interleaved repeats, each in a fresh process and a fresh work directory; "
        "for each pair an empty cache of compiled code, which the first run fills. An uncounted start reads the files."
    ]
    return Table("start", "time to the first training step of the digits job", rows, notes, facts)


def cold_and_warm() -> tuple[float, float]:
    """Seconds of a run with an empty cache, and of the next."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        environ = {**os.environ, CACHE: str(path / "cache")}
        cold, warm = (first_step(path / name, environ) for name in ("cold", "warm"))
    return cold, warm


def first_step(workdir: Path, environ: dict[str, str]) -> float:
    """Seconds until the first step is done."""
    command = [sys.executable, "-m", "benchmarks.first_step", f"--config={CONFIG}", f"--workdir={workdir}"]
    start = time.time()
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout.split()[-1]) - start


def first_step_of_nothing() -> float:
    """Seconds of a process that imports the program and starts JAX."""
    command = "import jax, benchmarks.first_step, time; jax.devices(); print(time.time())"
    start = time.time()
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1]) - start
