"""Recipients: inits x training-set sizes x widths x seeds, each with the learning rate that validation chose for it.

Seeds are paired: for one seed all inits have the same training images, data order, head and biases. The test set is
read once per recipient, after its training.
"""

import contextlib
import io
import math
import queue
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from agop_jax import models
from agop_jax.core import devices, files, hosts, trees
from agop_jax.core.errors import UserError
from agop_jax.core.types import Device, Variables
from agop_jax.data import Dataset, subset
from agop_jax.experiments.donors import DonorNetwork, pipeline_for
from agop_jax.experiments.sweep_tables import Cell, SweepTables
from agop_jax.experiments.workdir import CHECKPOINTS
from agop_jax.initializers.coupling import Donor
from agop_jax.initializers.model import Initialization, initialization
from agop_jax.initializers.registry import get_method
from agop_jax.training.curves import write_curves
from agop_jax.training.device_data import DeviceData, on_devices
from agop_jax.training.loop import Run, Settings, Trainer, accuracy_at
from agop_jax.training.resumable import Stopped, train_resumable


class _Halted(Exception):  # noqa: N818
    """This thread ends because another failed, whose error is the one to tell."""


@dataclass
class Trained:
    """One run at its end, and what is told of its start.

    Attributes:
      run: with the final state.
      filters: of the first convolution before training.
      explained_variance: of a coupled init's fits, by layer.
    """

    run: Run
    filters: np.ndarray
    explained_variance: dict[str, float]


@dataclass(frozen=True)
class Place:
    """Devices that train one recipient at a time, with their compiled steps (by width) and their copy of the data."""

    devices: tuple[Device, ...]
    trainers: dict[float, Trainer]
    data: DeviceData


@dataclass
class Sweep:
    """Trains what is missing in a work directory.

    Attributes:
      workdir: of the experiment.
      config: with the fields of `experiment_config`.
      dataset: the recipients'.
      donors: 'trained', and 'untrained' for the methods that ask for it.
    """

    workdir: Path
    config: Any
    dataset: Dataset
    donors: Mapping[str, DonorNetwork]

    def __post_init__(self) -> None:
        self.halted = threading.Event()  # by an error in one of several threads
        self.tables = SweepTables(self.workdir, self.cells)
        self.places = [self._place(group) for group in self._groups()]
        self._check()

    def _groups(self) -> list[tuple[Device, ...] | None]:
        """The devices in equal parts, by `config.recipients.devices`; None stands for all of them, of all hosts."""
        number, present = self.config.recipients.devices, jax.local_devices()
        if number == 0:
            return [None]
        if hosts.several() or not 0 < number <= len(present):
            raise UserError(
                f"config.recipients.devices: wanted 0 for all, or 1 to {len(present)} of one process, got {number}"
            )
        return [tuple(present[i : i + number]) for i in range(0, len(present) - number + 1, number)]

    def _place(self, group: tuple[Device, ...] | None) -> Place:
        pipeline, settings = pipeline_for(self.config, self.dataset), Settings(**self.config.train)
        with devices.only(group) if group else contextlib.nullcontext():
            trainers = {}
            for width in self.config.recipients.widths:
                fields = self.config.model.to_dict()
                fields["width"] = width * fields.get("width", 1.0)
                model = models.create(**fields, num_classes=self.dataset.num_classes)
                trainers[width] = Trainer(model, pipeline, settings)
            data = DeviceData.of(self.dataset, devices.mesh_for(settings.batch_size))
        return Place(group or (), trainers, data)

    @property
    def cells(self) -> list[Cell]:
        """In the order they are trained; a training-set size of 0 in the config means all images."""
        sizes = [size or len(self.dataset.train.labels) for size in self.config.recipients.train_sizes]
        wanted = self.config.recipients
        return [Cell(init, size, width) for size in sizes for width in wanted.widths for init in wanted.inits]

    def _check(self) -> None:
        """Everything that can be wrong with the config, before the first minute is spent."""
        wanted = self.config.recipients
        if wanted.seeds < 1 or not wanted.learning_rates or not 1 <= wanted.tuning_seeds <= wanted.seeds:
            raise UserError(
                "recipients: wanted seeds >= 1, a learning rate or more and 1 <= tuning_seeds <= seeds, got "
                f"{wanted.seeds}, {tuple(wanted.learning_rates)} and {wanted.tuning_seeds}"
            )
        for cell in self.cells:
            subset(self.dataset.train, cell.train_size, 0)
            self.start(cell, 0)

    def start(self, cell: Cell, seed: int) -> Initialization:
        """A recipient before training. Coupled methods and lsuv see the first of its own training images, no labels."""
        method, trainer = get_method(cell.init), self.places[0].trainers[cell.width]
        donor = self.donors["untrained" if method.untrained else "trained"]
        indices = subset(self.dataset.train, cell.train_size, seed)[: self.config.recipients.num_images]
        pictures = jnp.asarray(self.dataset.train.take(indices).load().images)
        channels = len(donor.pipeline.mean), len(trainer.pipeline.mean)
        if method.coupled and channels[0] != channels[1]:
            wants = f"wants {channels[0]} channels, got {channels[1]}"
            raise UserError(f"init {cell.init!r} shows its images to the donor, which {wants}")
        inputs = trainer.pipeline(pictures)
        own_key, draw_key = jax.random.split(jax.random.key(seed))
        return initialization(
            trainer.model,
            models.own_variables(trainer.model, own_key, inputs[:1]),
            inputs,
            donor.features,
            cell.init,
            key=draw_key,
            layers=self.config.recipients.layers,
            donor=Donor(donor.model, donor.variables, donor.pipeline(pictures)) if method.coupled else None,
        )

    def run(self) -> None:
        """Trains every recipient that `results.csv` lacks; a row is written as soon as it is known."""
        todo = [cell for cell in self.cells if self._missing_seeds(cell)]
        steps = self.config.train.steps * sum(self._runs_needed(cell) for cell in todo)
        with tqdm(total=steps, unit="step", desc="recipients", dynamic_ncols=True, disable=not hosts.is_first()) as bar:
            if len(self.places) == 1:
                for cell in todo:
                    self._complete(cell, self.places[0], bar)
            else:
                self._run_at_once(todo, bar)

    def _run_at_once(self, todo: list[Cell], bar: tqdm) -> None:
        """A thread for each place takes the next init as soon as it is free. JAX computes outside Python's lock.

        What goes wrong in one ends all, after the step that they are at: their checkpoints are what a next run finds.
        """
        free: queue.SimpleQueue[Place] = queue.SimpleQueue()
        for place in self.places:
            free.put(place)

        def complete(cell: Cell) -> None:
            place = free.get()
            try:
                with devices.only(place.devices):
                    self._complete(cell, place, bar)
            except Stopped:  # which all hear of by themselves, and save
                raise
            except BaseException:
                self.halted.set()
                raise
            finally:
                free.put(place)

        with ThreadPoolExecutor(len(self.places)) as pool:
            try:
                for done in as_completed([pool.submit(complete, cell) for cell in todo]):
                    if not isinstance(done.exception(), _Halted):
                        done.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _missing_seeds(self, cell: Cell) -> list[int]:
        done = self.tables.seeds_done(cell)
        return [seed for seed in range(self.config.recipients.seeds) if seed not in done]

    def _untried(self, cell: Cell) -> list[tuple[float, int]]:
        """Learning rates and seeds of the grid that are still to be run; none where there is nothing to choose."""
        wanted = self.config.recipients
        if len(wanted.learning_rates) == 1:
            return []
        done = self.tables.rates_tried(cell)
        grid = [(rate, seed) for seed in range(wanted.tuning_seeds) for rate in wanted.learning_rates]
        return [point for point in grid if point not in done]

    def _runs_needed(self, cell: Cell) -> int:
        return len(self._untried(cell)) + len(self._missing_seeds(cell))

    def _complete(self, cell: Cell, place: Place, bar: tqdm) -> None:
        tuned: dict[tuple[float, int], Trained] = {}
        for rate, seed in self._untried(cell):
            trained = tuned[rate, seed] = self._train(cell, rate, seed, place, bar)
            self.tables.add_rate(cell, rate, seed, trained.run.history[-1])
        rates = list(self.config.recipients.learning_rates)
        rate = self.tables.choose_rate(cell, rates) if len(rates) > 1 else rates[0]
        for seed in self._missing_seeds(cell):
            again = tuned.get((rate, seed))  # the same run, bit for bit
            bar.update(self.config.train.steps if again else 0)
            self._finish(cell, rate, seed, again or self._train(cell, rate, seed, place, bar), place)

    def _train(self, cell: Cell, rate: float, seed: int, place: Place, bar: tqdm) -> Trained:
        trainer, shown = place.trainers[cell.width], 0
        variables, explained_variance = self.start(cell, seed)
        filters, state = _first_filters(variables), trainer.start(variables)
        del variables  # half a gigabyte of VGG11
        indices = subset(self.dataset.train, cell.train_size, seed)
        name = f"{cell.name(seed)}_lr{rate:g}"

        def on_step(run: Run, step: int) -> None:
            nonlocal shown
            bar.update(step - shown)
            shown = step
            if self.halted.is_set():
                raise _Halted
            if run.history[-1]["step"] == step:
                bar.set_postfix(_postfix(cell, rate, seed, run, step * trainer.settings.batch_size / run.seconds))

        directory = self.workdir / CHECKPOINTS / name
        run = train_resumable(
            trainer, state, place.data, indices, rate, seed, directory, on_step, self.config.save_every
        )
        bar.update(trainer.settings.steps - shown)  # what a diverged run left
        return Trained(run, filters, explained_variance)

    def _finish(self, cell: Cell, rate: float, seed: int, trained: Trained, place: Place) -> None:
        """Reads the test set and writes the recipient's files, the row of `results.csv` last."""
        trainer, run = place.trainers[cell.width], trained.run
        name = cell.name(seed)
        test_loss, test_accuracy = trainer.evaluate(run.state.variables, place.data.test)
        used = subset(self.dataset.train, cell.train_size, seed)[: len(self.dataset.validation.labels)]
        used = on_devices(self.dataset.train.take(used), trainer.mesh)
        train_loss, train_accuracy = trainer.evaluate(run.state.variables, used)
        write_curves(self.workdir, name, run.history)
        self.tables.add_fits(cell, seed, trained.explained_variance)
        if seed == 0:
            self._write_filters(name, trained)
        steps, last = int(run.state.step), run.history[-1]
        row = {
            **vars(cell),
            "seed": seed,
            "learning_rate": rate,
            "test_accuracy": test_accuracy,
            "test_loss": test_loss,
            "validation_accuracy": last["validation_accuracy"],
            "validation_loss": last["validation_loss"],
            "train_accuracy": train_accuracy,
            "train_loss": train_loss,
            **{f"accuracy_at_{p}": accuracy_at(run.history, trainer.settings.steps, p) for p in (5, 20, 100)},
            "steps": steps,
            "seconds": round(run.seconds, 3),
            "images_per_second": round(steps * trainer.settings.batch_size / run.seconds, 1) if steps else 0.0,
            "diverged": int(run.diverged),
        }
        self.tables.add_result(row)

    def _write_filters(self, name: str, trained: Trained) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, initial=trained.filters, trained=_first_filters(trained.run.state.variables))
        files.atomic_write_bytes(self.workdir / "filters" / f"{name}.npz", buffer.getvalue())


def _first_filters(variables: Variables) -> np.ndarray:
    return next(np.asarray(kernel) for kernel in trees.kernels(variables["params"]).values() if kernel.ndim == 4)


def _postfix(cell: Cell, rate: float, seed: int, run: Run, images_per_second: float) -> dict[str, str]:
    last = run.history[-1]
    return {
        "init": cell.init,
        "seed": str(seed),
        "lr": f"{rate:g}",
        "loss": f"{last['train_loss'] or math.nan:.3f}",
        "val": f"{100 * last['validation_accuracy']:.1f}%",
        "img/s": f"{images_per_second:.0f}",
    }
