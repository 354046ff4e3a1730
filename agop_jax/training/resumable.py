"""Training that may be stopped at any moment and goes on to the same result, bit for bit on one kind of device.

A run's state is saved whole through Orbax every so many seconds and when the process is asked to stop. What a run
depends on besides (data order, augmentation, learning rate) is a function of its seed and step.
"""

import contextlib
import functools
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import jax
import numpy as np
import orbax.checkpoint as ocp

from agop_jax.core import hosts
from agop_jax.core.arrays import DIRECTORIES_FIRST, plain_path, require_space
from agop_jax.core.errors import UserError, first_line
from agop_jax.core.files import writing_to
from agop_jax.core.progress import say
from agop_jax.training.device_data import DeviceData
from agop_jax.training.loop import Run, train
from agop_jax.training.trainer import Trainer, TrainState

MARK = "_CHECKPOINT_METADATA"  # file by which Orbax says that a directory is a checkpoint, and whole
UNFINISHED = re.compile(r"\d+\.orbax-checkpoint-tmp(-\w+)?")  # Orbax's name for one that is being written
AGREED_EVERY = 10  # steps after which several processes agree whether to save: all save the same step


class Stopped(Exception):  # noqa: N818
    """The process was asked to stop by a signal; what was done is saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}: the same command continues from here")
        self.exit_status = 128 + signum  # as shells report it


class _Signals:
    """SIGTERM and SIGINT raise `Stopped` at once, except in a training step, where they wait for its end."""

    def __init__(self) -> None:
        self.deferring = False
        self.received: int | None = None

    def handle(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        if not self.deferring:
            raise Stopped(signum)


_SIGNALS = _Signals()


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Within it SIGTERM and SIGINT end the work cleanly, with `Stopped`; for the main thread."""
    before = {signum: signal.signal(signum, _SIGNALS.handle) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        _SIGNALS.received = None
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextlib.contextmanager
def _deferred() -> Iterator[None]:
    _SIGNALS.deferring = True
    try:
        yield
    finally:
        _SIGNALS.deferring = False


def train_resumable(
    trainer: Trainer,
    state: TrainState,
    data: DeviceData,
    indices: np.ndarray,
    learning_rate: float,
    seed: int,
    directory: Path,
    on_step: Callable[[Run, int], None],
    save_every: float = 30.0,
) -> Run:
    """`train.train` from this state, or from the last checkpoint in `directory`, which is removed at the end.

    Args:
      state: `trainer.start(variables)`; its buffers are given up.
      directory: of this run alone; exists only while the run is unfinished.
      on_step: called after each step with the run and the number of steps done.
      save_every: seconds between checkpoints; a shorter run is redone from its start, which costs no more.

    Raises:
      Stopped: after saving, if the process was asked to stop.
      UserError: the checkpoint cannot be read, or there is no space for the next one.
    """
    run = Run(state)
    with writing_to(directory), contextlib.ExitStack() as stack:
        checkpoints = _Checkpoints(directory, stack)
        checkpoints.restore(run)
        clock = _Clock(run.seconds)

        def after_step(run: Run, step: int) -> None:
            run.seconds = clock.seconds
            on_step(run, step)
            if hosts.several() and step % AGREED_EVERY:
                return
            stop, due = hosts.any_of(_SIGNALS.received is not None, clock.since_save > save_every)
            if stop or due:
                checkpoints.save(run, step, wait=stop)
                clock.saved()
            if stop:
                raise Stopped(_SIGNALS.received or signal.SIGTERM)  # which another process received

        with _deferred():
            train(trainer, run, data, indices, learning_rate, seed, after_step)
    if hosts.is_first():
        remove_checkpoints(directory)
    return run


def remove_checkpoints(directory: Path) -> None:
    """Removes the checkpoints of one run; anything else that lies there stays, and the directory with it."""
    if not directory.is_dir() or directory.is_symlink():
        return
    for path in list(directory.iterdir()):
        whole = path.name.isdigit() and path.is_dir() and ((path / MARK).exists() or not any(path.iterdir()))
        if whole or UNFINISHED.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
    if not any(directory.iterdir()):
        directory.rmdir()


class _Clock:
    """Wall-clock seconds of a run over all its processes, and since it was last saved."""

    def __init__(self, before: float) -> None:
        self._start = time.perf_counter() - before
        self.saved()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start

    @property
    def since_save(self) -> float:
        return time.perf_counter() - self._last

    def saved(self) -> None:
        self._last = time.perf_counter()


def _manager_options() -> ocp.CheckpointManagerOptions:
    """Two checkpoints are kept, so that one is always whole; of several processes all take part."""
    options = ocp.CheckpointManagerOptions(max_to_keep=2, create=False, async_options=DIRECTORIES_FIRST)
    if hosts.several():
        # Orbax has processes that are named meet at barriers with a time limit. Otherwise it uses collectives.
        everyone = set(range(jax.process_count()))
        options.multiprocessing_options = ocp.options.MultiprocessingOptions(active_processes=everyone)
    return options


class _Checkpoints:
    """The checkpoints of one run. Most runs end before they need any, so the manager is made on first use."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        self.directory = directory.absolute()
        self._stack = stack

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self._stack.enter_context(plain_path(self.directory))
        manager = ocp.CheckpointManager(path, options=_manager_options())
        self._stack.callback(manager.close)
        return manager

    def save(self, run: Run, step: int, *, wait: bool) -> None:
        about = {"history": run.history, "diverged": run.diverged, "seconds": run.seconds}
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(run.state), about=ocp.args.JsonSave(about))
        manager = self._manager  # the directory is made with it
        require_space(self.directory, run.state)
        manager.save(step, args=arguments)
        if wait:
            manager.wait_until_finished()

    def restore(self, run: Run) -> None:
        """Puts the last whole checkpoint, if there is one, in place of the run's start."""
        if not hosts.exists(self.directory):
            return
        if others := [path for path in self.directory.iterdir() if path.name.isdigit() and not (path / MARK).exists()]:
            raise UserError(
                f"{str(others[0])!r} is no whole checkpoint of this program: move it elsewhere, or choose another "
                "workdir"
            )
        if (step := self._manager.latest_step()) is None:
            return
        template = jax.tree.map(ocp.utils.to_shape_dtype_struct, run.state)
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(template), about=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=arguments)
        except Exception as error:  # ValueError, JSONDecodeError, KeyError, ... by what is wrong
            path = str(self.directory / str(step))
            raise UserError(
                f"checkpoint {path!r} cannot be read ({first_line(error)}): restore its files, or move "
                f"{str(self.directory)!r} elsewhere to train this run from its start"
            ) from error
        run.state, about = restored.state, restored.about
        run.history, run.diverged, run.seconds = about["history"], about["diverged"], about["seconds"]
        say(f"{self.directory.name}: goes on after step {step:,}")
