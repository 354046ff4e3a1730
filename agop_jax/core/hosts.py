"""One program on several hosts: every process runs all of it, and the first alone writes what they share.

JAX does the work (`jax.distributed` and the collectives of XLA); here is what the processes have to agree on. With one
process nothing here costs anything.
"""

import contextlib
import faulthandler
import os
import zlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from agop_jax.core.errors import UserError

HEARTBEAT_SECONDS = 30  # after which a process that fell silent counts as dead, and the others end
LOST = ("gloo", "nccl", "coordination service", "coordinationservice", "heartbeat")  # in messages of a lost connection
_ALONE: ContextVar[bool] = ContextVar("alone", default=False)


def initialize(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Joins this process with the others of the program; before anything else is computed.

    Args:
      coordinator: 'HOST:PORT' of the first process, the same on all; None, like the others, on clusters that JAX knows
        (Slurm, Open MPI, Kubernetes, TPU).
      num_processes: of the program.
      process_id: of this one, from 0.

    Raises:
      UserError: no such cluster here, or not all processes came.
    """
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"the processes could not be joined ({reason}): where JAX does not know the cluster, start each with "
            "--coordinator=HOST:PORT --num_processes=N --process_id=0 to N-1"
        ) from error
    # JAX aborts a process that loses the first one: a page of stack would hide the line that says so
    faulthandler.disable()


def lost_another(error: BaseException) -> bool:
    """Whether it tells that another process does not answer; JAX raises several types for that."""
    told = str(error).lower()
    return any(sign in told for sign in LOST)


def describe_failure(error: BaseException) -> str:
    """One line for an error that ends this process alone."""
    why = "another has ended, or the network between them" if lost_another(error) else type(error).__name__
    return (
        f"process {jax.process_index()} of {jax.process_count()} failed: {why} ({' '.join(str(error).split())[:300]}): "
        "the same commands continue from the last checkpoint"
    )


def leave(status: int) -> NoReturn:
    """Ends this process alone: an orderly exit would wait for the others, and they for this one."""
    os._exit(status)


def is_first() -> bool:
    """Whether this process writes what all share."""
    return jax.process_index() == 0


def several() -> bool:
    """Whether there are others to agree with."""
    return jax.process_count() > 1 and not _ALONE.get()


def part() -> tuple[int, int]:
    """Which of how many parts of the images is this process's."""
    return (jax.process_index(), jax.process_count()) if several() else (0, 1)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within it this process works for itself, or a thread of it, and waits for no other."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def wait(place: str) -> None:
    """Until all processes are at this place of the program."""
    if several():
        multihost_utils.sync_global_devices(place)


def by_first(work: Callable[[], None]) -> None:
    """Has the first process do it, for all: what is wrong with it ends them all.

    Raises:
      UserError: of `work`, on the first process; that it failed, on the others.
    """
    error = None
    if is_first():
        try:
            work()
        except UserError as caught:
            error = caught
    (failed,) = any_of(error is not None)
    if error:
        raise error
    if failed:
        raise UserError("the first process found something wrong, see what it says")


def require_same(what: str, text: str, remedy: str) -> None:
    """Refuses processes whose texts differ: those of two programs would wait for each other in the wrong places.

    Raises:
      UserError: on all of them.
    """
    if several() and len(np.unique(multihost_utils.process_allgather(np.uint32(zlib.crc32(text.encode()))))) > 1:
        raise UserError(f"the {jax.process_count()} processes have different {what}: {remedy}")


def any_of(*flags: bool) -> list[bool]:
    """For each flag, whether it is set on some process."""
    if not several():
        return list(flags)
    return np.any(multihost_utils.process_allgather(np.array(flags)), axis=0).tolist()


def total(count: int) -> int:
    """The sum over all processes."""
    return int(np.sum(multihost_utils.process_allgather(np.array(count)))) if several() else count


def least(number: int | float) -> int | float:
    """Over all processes, in float32: free memory, by which all have to decide alike."""
    return float(np.min(multihost_utils.process_allgather(np.float32(number)))) if several() else number


def exists(path: Path) -> bool:
    """Whether the first process finds it: what all do next must not depend on when each looks."""
    return bool(of_first(np.array(path.exists())))


def of_first(tree: Any) -> Any:
    """The first process's arrays, on all of them: what each computed for itself may differ in the last bit."""
    return multihost_utils.broadcast_one_to_all(tree) if several() else tree
