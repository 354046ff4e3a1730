"""Compiled functions of which it is known that they fit, and where compiled code is kept between runs.

A program that outgrows its device says so before it starts, in one line, and not half way through by the allocator.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import psutil

from agop_jax.errors import UserError

GIB = 2**30
# By default XLA's CPU backend orders operations for parallelism, from which a few cores gain nothing: a training step
# of VGG11 at 224 x 224 then holds 5.1 GB of intermediate results instead of 4.3, and takes as long.
CPU_OPTIONS = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}


class TooLarge(UserError):  # noqa: N818
    """A compiled function wants more memory than the device has free."""


def compile_within_memory(
    function: Callable[..., Any], arguments: tuple[Any, ...], what: str, remedy: str, **jit_options: Any
) -> Callable[..., Any]:
    """`jax.jit(function)`, compiled for these arguments and refused if it does not fit.

    Args:
      function: to be compiled.
      arguments: on the device; shapes and types are those of every later call.
      what: it is, for the message: 'a training step'.
      remedy: what the user can do: 'lower config.train.batch_size'.
      **jit_options: of `jax.jit`.

    Raises:
      TooLarge: with what is wanted and what is free.
    """
    options = CPU_OPTIONS if jax.default_backend() == "cpu" else None
    compiled = jax.jit(function, compiler_options=options, **jit_options).lower(*arguments).compile()
    wanted, free = needed_bytes(compiled), free_bytes()
    if free is not None and wanted > free:
        raise TooLarge(f"{what} needs {wanted / GIB:.2f} GiB of memory, {free / GIB:.2f} GiB are free: {remedy}")
    return compiled


def within_memory(function: Callable[..., Any], what: str, remedy: str) -> Callable[..., Any]:
    """`compile_within_memory` at the first call with arguments of each shape and type."""
    compiled: dict[Any, Callable[..., Any]] = {}

    def call(*arguments: Any) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        signature = structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        if signature not in compiled:
            compiled[signature] = compile_within_memory(function, arguments, what, remedy)
        return compiled[signature](*arguments)

    return call


def needed_bytes(compiled: jax.stages.Compiled) -> int:
    """Memory of a call on top of its arguments: intermediate results, and outputs that take no argument's place."""
    sizes = compiled.memory_analysis()
    return sizes.temp_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes if sizes else 0


def free_bytes() -> int | None:
    """Of the default device; None where it does not tell."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return psutil.virtual_memory().available
    statistics = device.memory_stats() or {}
    return statistics["bytes_limit"] - statistics["bytes_in_use"] if "bytes_limit" in statistics else None


def keep_compiled_code() -> None:
    """Lets later runs find what this one compiles, in `JAX_COMPILATION_CACHE_DIR` or the user's cache folder."""
    if not jax.config.jax_compilation_cache_dir:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "agop_jax" / "compiled"))
    jax.config.update(
        "jax_persistent_cache_min_compile_time_secs", 0.1
    )  # most steps of small networks take less than 1
