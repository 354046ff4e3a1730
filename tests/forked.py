"""The program in a process of its own, which is forked from one that has loaded the program's modules already.

A program that is started anew spends a third of its time on imports; of a forked one they are spent once a worker.
"""

import atexit
import contextlib
import faulthandler
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from shared_context import share

ROOT = Path(__file__).parent.parent
WHERE = signal.SIGUSR1  # has a program write where its threads are
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["agop_jax.main", "sklearn.datasets", "tensorboardX"])


class Program:
    """`python -m agop_jax.main` with some arguments, started; its methods are those of `subprocess.Popen`."""

    def __init__(self, *arguments: str):
        self.arguments = arguments
        self._folder = tempfile.TemporaryDirectory()
        self._streams = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        for stream in self._streams:
            stream.touch()
        self._process = _CONTEXT.Process(target=_run, args=(arguments, *self._streams))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """The exit status, negative of a signal; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The same."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        """Waits for its end, and raises `subprocess.TimeoutExpired` where that does not come in time."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.arguments, timeout or 0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Nothing where it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Kill -9."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it has written to its two streams, after its end; `TimeoutError` as of `communicate_all`."""
        (texts,) = communicate_all([self], timeout)
        return texts

    def texts(self) -> tuple[str, str]:
        """What it has written to its two streams so far."""
        stdout, stderr = (stream.read_text(errors="replace") for stream in self._streams)
        return stdout, stderr


def communicate_all(programs: Sequence[Program], timeout: float | None = None) -> list[tuple[str, str]]:
    """What programs that run together have written, after the end of them all.

    Raises:
      TimeoutError: one had not ended after so many seconds; with what all have said, and where the threads of those
        that still ran were. They are killed.
    """
    start = time.monotonic()
    for program in programs:
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(None if timeout is None else max(0.0, timeout - (time.monotonic() - start)))
    late = [program for program in programs if program.returncode is None]
    if not late:
        return [program.texts() for program in programs]
    for program in late:
        program.send_signal(WHERE)
    time.sleep(1)  # in which each writes where its threads are
    for program in late:
        program.kill()
    told = "".join(f"\n\n{program.arguments}:\n{program.texts()[1]}" for program in programs)
    raise TimeoutError(f"{len(late)} of {len(programs)} programs ran for more than {timeout} seconds{told}")


def call(workdir: Path, *flags: str, config: str = "configs/digits.py:quick") -> subprocess.CompletedProcess:
    """What the program with this config leaves and says."""
    return program(f"--config={config}", f"--workdir={workdir}", *flags)


def program(*arguments: str) -> subprocess.CompletedProcess:
    """The same with any arguments."""
    process = Program(*arguments)
    texts = process.communicate()
    return subprocess.CompletedProcess(arguments, process.returncode or 0, *texts)


def _run(arguments: tuple[str, ...], *streams: Path) -> None:
    for number, stream in enumerate(streams, start=1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(ROOT)
    faulthandler.register(WHERE)
    sys.argv = ["agop_jax.main", *arguments]
    share()
    from agop_jax import main

    try:
        main.run()
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out: processes of several hosts leave together
