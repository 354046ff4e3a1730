"""Threads of numpy's linear algebra: one for matrices that are not large.

OpenBLAS has as many threads as there are cores, which wait busily for each other. On 2 cores that other programs used
too, `numpy.linalg.eigh` took 64 ms for a 64 x 64 matrix and 1.6 s for 576 x 576; with one thread 0.3 ms and 77 ms. One
thread gives the same numbers on any number of cores, too.
"""

import contextlib
import functools
import threading
from collections.abc import Iterator

from threadpoolctl import ThreadpoolController

LARGE = 1024  # rows and columns from which on threads are left alone: many cores may then divide the work


class _OneThread:
    """The limit is one for the process: the first user sets it, the last one takes it back."""

    def __init__(self) -> None:
        self._lock, self._users, self._limit = threading.Lock(), 0, contextlib.ExitStack()

    @functools.cached_property
    def _controller(self) -> ThreadpoolController:
        return ThreadpoolController()

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._limit.enter_context(self._controller.limit(limits=1, user_api="blas"))

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._limit.close()


_ONE_THREAD = _OneThread()


@contextlib.contextmanager
def few_threads(size: int = 0) -> Iterator[None]:
    """Within it, linear algebra of numpy and scipy has one thread.

    Args:
      size: rows and columns of the matrix; from `LARGE` on nothing is limited.
    """
    with _ONE_THREAD if size < LARGE else contextlib.nullcontext():
        yield
