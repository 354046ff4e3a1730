"""Seconds and memory, side by side: every round calls all sides in turn, so that a busy machine is busy for all.

A side is a name and a function that makes what is timed; what it makes is called once before the clock runs, which
compiles, and then once a round. Ratios are taken round by round.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

Work = Callable[[], Any]

STATUS = Path("/proc/self/status")  # Linux; elsewhere memory is not measured
MIB = 2**20
CHILD = "import sys; from benchmarks import timing; timing.report_peak(*sys.argv[1:])"


@dataclass(frozen=True)
class Spread:
    """Repeats of one number: its median and its range are what is shown."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the repeats."""
        return float(np.median(self.values))

    def __str__(self) -> str:
        if len(self.values) == 1:
            return f"{significant(self.median)} (once)"
        return f"{significant(self.median)} ({significant(min(self.values))} to {significant(max(self.values))})"


def significant(number: float) -> str:
    """Three digits, without an exponent where it can be read without."""
    if abs(number) >= 1000:
        return f"{float(f'{number:.3g}'):,.0f}".replace(",", " ")
    return f"{number:.3g}"


def spread(values: Any) -> Spread:
    """Of an array."""
    return Spread(tuple(float(value) for value in np.atleast_1d(values)))


def seconds(work: Work) -> float:
    """Of one call, after which all results are there."""
    start = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - start


def interleave(sides: Mapping[Any, Work], repeats: int, left_out: int = 1) -> dict[Any, np.ndarray]:
    """{side: seconds of each repeat}: A B C, A B C, ...; a first round, which compiles, is left out."""
    rounds = [{name: seconds(work) for name, work in sides.items()} for _ in range(left_out + repeats)]
    return {name: np.array([one[name] for one in rounds[left_out:]]) for name in sides}


def fastest(sides: Mapping[str, Work]) -> str:
    """The side whose second call took least; for a choice among forms, before one is timed against others."""
    times = interleave(sides, 1)
    return min(times, key=lambda name: times[name][0])


def peak(module: str, function: str, *arguments: Any) -> float | None:
    """MiB that `module.function(*arguments)()` adds to a fresh process at its peak, above what the imports take.

    The maker and one call of what it makes, compilation included: what a user's process needs. None where there is no
    /proc. `resource.getrusage` would not do: a child's ru_maxrss starts at its parent's.
    """
    if not STATUS.exists():
        return None
    command = [sys.executable, "-c", CHILD, module, function, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{function}{arguments} of {module} failed: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout.split()[-1])


def report_peak(module: str, function: str, arguments: str) -> None:
    """The child's part of `peak`: prints MiB."""
    make = getattr(__import__(module, fromlist=["_"]), function)
    jax.block_until_ready(jax.numpy.zeros(()))  # a backend is part of an import here
    before = resident("VmRSS")
    jax.block_until_ready(make(*json.loads(arguments))())
    print(resident("VmHWM") - before)


def resident(field: str) -> float:
    """MiB of this process: 'VmRSS' now, 'VmHWM' at most."""
    match = re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text())
    return int(match[1]) * 1024 / MIB if match else float("nan")


def held(mebibytes: int) -> Work:
    """A call that touches this much memory: with it the measurement itself is measured."""
    return lambda: np.ones(mebibytes * MIB, np.uint8).sum()
