"""Images are divided over devices, along one axis of a mesh; everything else lies whole on each of them.

XLA adds up over devices (and hosts) whatever a step sums over images: Gram matrices, gradients, statistics of
BatchNorm. With one device the mesh has one place.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from agop_jax.core import hosts
from agop_jax.core.errors import UserError
from agop_jax.core.types import Device

AXIS = "data"
_CHOSEN: ContextVar[tuple[Device, ...] | None] = ContextVar("devices", default=None)


def on_purpose(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that `jax.transfer_guard` lets move data between host and device, since it is made to do so."""

    @functools.wraps(function)
    def guarded(*arguments: Any, **options: Any) -> Any:
        with jax.transfer_guard("allow"):
            return function(*arguments, **options)

    return guarded


@contextlib.contextmanager
def only(devices: Sequence[Device]) -> Iterator[None]:
    """A context in which meshes are of these devices, and this process works alone; each thread has its own choice."""
    token = _CHOSEN.set(tuple(devices))
    try:
        # said of the default device, it would have everything that was compiled before compile again
        first = contextlib.nullcontext() if devices[0] == jax.local_devices()[0] else jax.default_device(devices[0])
        with first, hosts.alone():
            yield
    finally:
        _CHOSEN.reset(token)


def mesh() -> Mesh:
    """All devices of all processes, or those of `only`."""
    return _mesh([device for process in _by_process() for device in process])


def mesh_for(batch_size: int) -> Mesh:
    """As many devices as divide a batch into equal parts, the same number on each process.

    So that a network's statistics over its batch are those of one device: padding would enter into them.

    Raises:
      UserError: a batch that cannot be divided over the processes.
    """
    processes = _by_process()
    share, rest = divmod(batch_size, len(processes))
    if rest or not share:
        raise UserError(f"batch_size: wanted a multiple of the number of processes, {len(processes)}, got {batch_size}")
    present = min(map(len, processes))
    used = next(number for number in range(present, 0, -1) if share % number == 0)
    if used < present:
        part = f"{used * len(processes)} of {sum(map(len, processes))} devices"
        message = "batch_size %d is divided over %s: more with a multiple of their number"
        logging.log_first_n(logging.WARNING, message, 1, batch_size, part)
    return _mesh([device for devices in processes for device in devices[:used]])


def _by_process() -> list[list[Device]]:
    """Neighbours on the mesh, so that what a process has is one piece."""
    chosen = _CHOSEN.get()
    return [list(chosen)] if chosen else [jax.local_devices(process) for process in range(jax.process_count())]


def _mesh(devices: list[Device]) -> Mesh:
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def divided(over: Mesh) -> NamedSharding:
    """The sharding of arrays whose first axis is divided over the devices."""
    return NamedSharding(over, PartitionSpec(AXIS))


def whole(over: Mesh) -> NamedSharding:
    """The sharding of arrays that lie whole on every device."""
    return NamedSharding(over, PartitionSpec())


def divide(tree: Any, over: Mesh) -> Any:
    """Arrays of this process's own images, as a part of all processes' arrays; lengths must suit the mesh."""
    put = lambda array: jax.make_array_from_process_local_data(divided(over), np.asarray(array))
    with jax.transfer_guard_host_to_device("allow"):  # meant to be a transfer, which JAX cannot know
        return jax.tree.map(put, tree)


def spread(array: np.ndarray, over: Mesh) -> jax.Array:
    """An array that every process has whole, cut along its first axis; zeros fill the last part."""
    length = round_up(len(array), over.size) // over.size

    def part(index: Any) -> np.ndarray:
        rows = array[index]
        return np.pad(rows, [(0, length - len(rows))] + [(0, 0)] * (rows.ndim - 1))

    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_callback((length * over.size, *array.shape[1:]), divided(over), part)


def replicate(tree: Any, over: Mesh) -> Any:
    """Arrays on every device; of several processes, the first one's arrays."""
    return jax.device_put(hosts.of_first(tree), whole(over))


def place(tree: Any, over: Mesh) -> Any:
    """Host values that all processes computed alike, on every device; the processes do not compare them."""
    if not hosts.several():
        return jax.device_put(tree, whole(over))
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(whole(over), np.asarray(array)), tree)


def collect(tree: Any, over: Mesh) -> Any:
    """Whole arrays of a mesh as this process's own; of one device they are that already, and not waited for."""
    return tree if over.size == 1 else jax.tree.map(jnp.asarray, jax.device_get(tree))


def round_up(number: int, parts: int) -> int:
    """To a multiple, which can be divided into so many parts."""
    return -(-number // parts) * parts
