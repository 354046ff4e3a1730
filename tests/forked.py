"""The program in a process of its own, which is forked from one that has loaded the program's modules already."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["agop_jax.main"])


def call(workdir: Path, *flags: str, config: str = "configs/digits.py:quick") -> subprocess.CompletedProcess:
    """What `python -m agop_jax.main` leaves and says; the seconds of its imports are spent once a test process."""
    return program(f"--config={config}", f"--workdir={workdir}", *flags)


def program(*arguments: str) -> subprocess.CompletedProcess:
    """The same with any arguments."""
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder) / name for name in ("stdout", "stderr")]
        process = _CONTEXT.Process(target=_run, args=(arguments, *streams))
        process.start()
        process.join()
        texts = [stream.read_text(errors="replace") for stream in streams]
        return subprocess.CompletedProcess(arguments, process.exitcode or 0, *texts)


def _run(arguments: tuple[str, ...], *streams: Path) -> None:
    for number, stream in enumerate(streams, start=1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(ROOT)
    sys.argv = ["agop_jax.main", *arguments]
    from agop_jax import main

    main.run()
