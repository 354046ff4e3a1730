"""One MLIR context for all that a process lowers, in place of one for each function.

Tests lower thousands of small functions once. Making a context for each took a fifth of the time of two files of them.
"""

import functools
import threading
from collections.abc import Callable

from jax._src.interpreters import mlir


def share() -> Callable[[], None]:
    """Only in the main thread, since a context may be changed while it is used; returns what forgets the context.

    A JAX that has no such private function is left as it is.
    """
    make = getattr(mlir, "make_ir_context", None)
    if make is None:
        return lambda: None
    shared = functools.cache(make)
    in_main = lambda: threading.current_thread() is threading.main_thread()
    mlir.make_ir_context = lambda: shared() if in_main() else make()
    return shared.cache_clear
