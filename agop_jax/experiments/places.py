"""Places: equal groups of devices, each of which trains one recipient at a time."""

import contextlib
import dataclasses
import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import TypeVar

import jax

from agop_jax.core import devices, hosts
from agop_jax.core.errors import UserError
from agop_jax.core.types import Device
from agop_jax.data import Dataset
from agop_jax.experiments.donors import pipeline_for
from agop_jax.experiments.settings import Config
from agop_jax.experiments.sweep_tables import Cell
from agop_jax.training.device_data import DeviceData
from agop_jax.training.resumable import Stopped
from agop_jax.training.trainer import Trainer

Item = TypeVar("Item")


class Halted(Exception):  # noqa: N818
    """The work of this thread ends because that of another failed, whose error is the one to tell."""


@dataclass(frozen=True)
class Place:
    """Devices with their compiled training steps, by width, and their copy of the data.

    Attributes:
      devices: empty for all devices of all processes.
      trainers: by width and budget.
      data: on these devices.
      halt: is set where another place failed; `Halted` is what then ends the work here.
    """

    devices: tuple[Device, ...]
    trainers: dict[tuple[float, int], Trainer]
    data: DeviceData
    halt: threading.Event = field(default_factory=threading.Event)

    def trainer(self, cell: Cell) -> Trainer:
        """The trainer of the recipients of a cell."""
        return self.trainers[cell.setting.width, cell.setting.budget]

    def continues(self) -> None:
        """To be called after each step.

        Raises:
          Halted: another place failed.
        """
        if self.halt.is_set():
            raise Halted


def device_groups(number: int) -> list[tuple[Device, ...]]:
    """The devices in groups of `number`; one empty group, which stands for all devices of all processes, for 0.

    Raises:
      UserError: there are fewer devices, or several processes.
    """
    present = jax.local_devices()
    if number == 0:
        return [()]
    if hosts.several() or number > len(present):
        raise UserError(
            f"config.recipients.devices: wanted 0 for all, or 1 to {len(present)} of one process, got {number}"
        )
    return [tuple(present[i : i + number]) for i in range(0, len(present) - number + 1, number)]


def make_places(config: Config, dataset: Dataset) -> list[Place]:
    """A place for each group of devices; the data are copied to each."""
    groups, halt = device_groups(config.recipients.devices), threading.Event()
    return [_place(config, dataset, group, halt) for group in groups]


def _place(config: Config, dataset: Dataset, group: tuple[Device, ...], halt: threading.Event) -> Place:
    pipeline = pipeline_for(config, dataset)
    with devices.only(group) if group else contextlib.nullcontext():
        trainers = {
            (width, steps): Trainer(
                config.model.network(dataset.num_classes, width),
                pipeline,
                dataclasses.replace(config.train, steps=steps),
            )
            for width in config.recipients.widths
            for steps in config.budgets
        }
        data = DeviceData.of(dataset, devices.mesh_for(config.train.batch_size))
    return Place(group, trainers, data, halt)


def for_each(items: Iterable[Item], places: list[Place], work: Callable[[Item, Place], None]) -> None:
    """Does the work for each item, in order at one place; several places take the next item as soon as they are free.

    JAX computes outside Python's lock, so that a thread for each place is enough. An error at one place ends the work
    at all of them, after the step that each is at: their checkpoints are what a next run finds.
    """
    if len(places) == 1:
        for item in items:
            work(item, places[0])
        return
    free: queue.SimpleQueue[Place] = queue.SimpleQueue()
    for place in places:
        free.put(place)
    with ThreadPoolExecutor(len(places)) as pool:
        try:
            for done in as_completed([pool.submit(_at_free_place, item, free, work) for item in items]):
                if not isinstance(done.exception(), Halted):
                    done.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _at_free_place(item: Item, free: "queue.SimpleQueue[Place]", work: Callable[[Item, Place], None]) -> None:
    place = free.get()
    try:
        with devices.only(place.devices):
            work(item, place)
    except Stopped:  # every place hears of a signal by itself, and saves
        raise
    except BaseException:
        place.halt.set()
        raise
    finally:
        free.put(place)
