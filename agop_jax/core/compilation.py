"""Compiled functions of which it is known that they fit, and where compiled code is kept between runs.

A program that outgrows its device says so before it starts, in one line, and not half way through by the allocator.
"""

import functools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil

from agop_jax.core import containers, hosts
from agop_jax.core.errors import UserError
from agop_jax.core.types import Device

GIB = 2**30
# XLA on a CPU orders operations so that they can overlap. For memory instead, a training step of VGG11 at 224 x 224
# holds 4.3 GB of intermediate results rather than 5.1; ResNet-20 takes 1.2 times as long, extraction 1.1 to 1.3 times.
FRUGAL = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
# XLA on a CPU runs convolutions through YNNPACK unless that library is kept for single matrix products. Without it a
# training step at 32 x 32 takes 1 / 1.7 of the time for the small CNN, 1 / 1.2 for VGG11, 1 / 1.1 for ResNet-20
# (2 cores, AMD EPYC, medians of 5 interleaved repeats); nothing measured was slower. The broader FUSION_TYPE_DOT joins
# products that follow each other, which took 15 times as long and hid their memory.
EIGEN_CONVOLUTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}


class TooLarge(UserError):  # noqa: N818
    """A compiled function wants more memory than the device has free."""


def jit(function: Callable[..., Any], **options: Any) -> Any:
    """`jax.jit` with the compiler options that suit this machine; no setting of the process is changed."""
    function = _under_default_promotion(function)
    outermost, nested = jax.jit(function, compiler_options=compiler_options(), **options), jax.jit(function, **options)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:  # inside another jit, JAX takes no options
        return (nested if _within_trace() else outermost)(*arguments)

    call.lower, call.trace = outermost.lower, nested.trace
    return call


def _within_trace() -> bool:
    with jax.transfer_guard_host_to_device("allow"):
        return isinstance(jnp.zeros(()), jax.core.Tracer)


def _under_default_promotion(function: Callable[..., Any]) -> Callable[..., Any]:
    """Strict promotion of types and ranks is for a user's own code; Optax and layers of Flax do not work under it."""

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return function(*arguments)

    return call


def compiler_options() -> dict[str, Any]:
    """Options of XLA for the default backend; none where the installed jaxlib does not know them."""
    return _cpu_options() if jax.default_backend() == "cpu" else {}


@functools.cache
def _cpu_options() -> dict[str, Any]:
    try:  # a jaxlib that does not know an option says so as soon as it compiles anything with it
        jax.jit(lambda x: x, compiler_options=EIGEN_CONVOLUTIONS).lower(np.float32(0)).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return EIGEN_CONVOLUTIONS


def traced(function: Callable[..., Any], arguments: tuple[Any, ...], **jit_options: Any) -> jax.stages.Traced:
    """`jax.jit(function)` for arguments of these shapes and types, before it is lowered for any kind of device."""
    return jax.jit(_under_default_promotion(function), **jit_options).trace(*arguments)


def compile_within_memory(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    what: str,
    remedy: str,
    ample: int | float = math.inf,
    **jit_options: Any,
) -> Callable[..., Any]:
    """`jax.jit(function)`, compiled for these arguments and refused if it does not fit.

    Args:
      function: to be compiled.
      arguments: on the device; shapes and types are those of every later call.
      what: it is, for the message: 'a training step'.
      remedy: what the user can do: 'lower config.train.batch_size'.
      ample: above this many bytes, a CPU's step is compiled for little memory rather than for speed. A step that would
        not fit otherwise is always compiled so.
      **jit_options: of `jax.jit`.

    Raises:
      TooLarge: with what is wanted and what is free.
    """
    if jax.config.jax_disable_jit:
        return _under_default_promotion(function)
    lowered = traced(function, arguments, **jit_options).lower()
    compiled, free = lowered.compile(compiler_options()), hosts.least(free_bytes())
    if needed_bytes(compiled) > min(free, ample) and jax.default_backend() == "cpu":
        compiled = lowered.compile(compiler_options() | FRUGAL)
    need = needed_bytes(compiled)
    if need > free:
        raise TooLarge(f"{what} needs {need / GIB:.2f} GiB of memory, {free / GIB:.2f} GiB are free: {remedy}")
    return compiled


def within_memory(function: Callable[..., Any], what: str, remedy: str, **jit_options: Any) -> Callable[..., Any]:
    """`compile_within_memory` at the first call with arguments of each shape and type; `trace` as that of `jit`."""
    compiled: dict[Any, Callable[..., Any]] = {}

    def call(*arguments: Any) -> Any:
        if jax.config.jax_disable_jit:
            return function(*jax.tree.map(jnp.asarray, arguments))
        leaves, structure = jax.tree.flatten(arguments)
        signature = structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        if signature not in compiled:
            compiled[signature] = compile_within_memory(function, arguments, what, remedy, **jit_options)
        return compiled[signature](*arguments)

    call.trace = lambda *arguments: traced(function, arguments, **jit_options)
    return call


def needed_bytes(compiled: jax.stages.Compiled) -> int:
    """Memory of a call on top of its arguments: intermediate results, and outputs that take no argument's place.

    Of one device; of all in use on this machine where they are parts of one CPU.
    """
    sizes = compiled.memory_analysis()
    if not sizes:
        return 0
    placed = jax.tree.leaves(compiled.output_shardings)[0].addressable_devices
    sharing = len(placed) if jax.default_backend() == "cpu" else 1
    return sharing * (sizes.temp_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes)


def free_bytes() -> int | float:
    """Free bytes of the fullest device of this process; infinity where devices do not tell."""
    return min(map(_free_bytes, jax.local_devices()))


def _free_bytes(device: Device) -> int | float:
    if device.platform == "cpu":
        return min(psutil.virtual_memory().available, containers.free_bytes())
    statistics = device.memory_stats() or {}
    return statistics["bytes_limit"] - statistics["bytes_in_use"] if "bytes_limit" in statistics else math.inf


def keep_compiled_code() -> None:
    """Lets later runs find what this one compiles, in `JAX_COMPILATION_CACHE_DIR` or the user's cache folder."""
    if not jax.config.jax_compilation_cache_dir:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "agop_jax" / "compiled"))
    # JAX keeps what took a second or more; hundreds of small steps of 20 ms come to more than the few large ones
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
