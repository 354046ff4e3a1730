"""Recipients: inits x training-set sizes x widths x seeds, each with the learning rate that validation chose for it.

Seeds are paired: for one seed all inits have the same training images, data order, head and biases. The test set is
read once per recipient, after its training.
"""

import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from agop_jax import devices, hosts, models, results, trees
from agop_jax.coupling import Donor
from agop_jax.data import Dataset, subset
from agop_jax.donors import DonorNetwork, pipeline_for
from agop_jax.errors import UserError
from agop_jax.initializers import get_method
from agop_jax.logs import write_curves
from agop_jax.resumable import train_resumable
from agop_jax.train import DeviceData, Run, Settings, Trainer, accuracy_at, on_devices
from agop_jax.transplant import Transplant, transplant
from agop_jax.types import Variables
from agop_jax.workdir import CHECKPOINTS, FITS, RATES, RESULTS


@dataclass(frozen=True)
class Cell:
    """One init in one setting; `seed` and learning rate vary within it."""

    init: str
    train_size: int
    width: float

    def name(self, seed: int) -> str:
        """Of a recipient's files."""
        return results.recipient_name(self.init, self.train_size, self.width, seed)


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


@dataclass
class Sweep:
    """Trains what is missing in a work directory.

    Attributes:
      workdir: of the experiment.
      config: with the fields of `defaults.py`.
      dataset: the recipients'.
      donors: 'trained', and 'untrained' for the methods that ask for it.
      trainers: by width, one compiled step each.
    """

    workdir: Path
    config: Any
    dataset: Dataset
    donors: Mapping[str, DonorNetwork]
    trainers: dict[float, Trainer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        pipeline = pipeline_for(self.config, self.dataset)
        settings = Settings(**self.config.train)
        self._tuned: dict[tuple[Cell, float, int], Trained] = {}
        for width in self.config.recipients.widths:
            fields = self.config.model.to_dict()
            fields["width"] = width * fields.get("width", 1.0)
            model = models.create(**fields, num_classes=self.dataset.num_classes)
            self.trainers[width] = Trainer(model, pipeline, settings)
        self.data = DeviceData.of(self.dataset, devices.mesh_for(settings.batch_size))
        self.results = results.read_optional_table(self.workdir / RESULTS, results.RESULT_COLUMNS)
        self.rates = results.read_optional_table(self.workdir / RATES, results.RATE_COLUMNS)
        self.fits = results.read_optional_table(self.workdir / FITS, results.FIT_COLUMNS)
        self._check()

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

    def start(self, cell: Cell, seed: int) -> Transplant:
        """A recipient before training. Coupled methods and lsuv see the first of its own training images, no labels."""
        method, trainer = get_method(cell.init), self.trainers[cell.width]
        donor = self.donors["untrained" if method.untrained else "trained"]
        indices = subset(self.dataset.train, cell.train_size, seed)[: self.config.recipients.num_images]
        pictures = jnp.asarray(self.dataset.train.take(indices).images)
        channels = len(donor.pipeline.mean), len(trainer.pipeline.mean)
        if method.coupled and channels[0] != channels[1]:
            wants = f"wants {channels[0]} channels, got {channels[1]}"
            raise UserError(f"init {cell.init!r} shows its images to the donor, which {wants}")
        inputs = trainer.pipeline(pictures)
        return transplant(
            trainer.model,
            jax.random.key(seed),
            inputs[:1],
            donor.features,
            cell.init,
            self.config.recipients.layers,
            images=inputs,
            donor=Donor(donor.model, donor.variables, donor.pipeline(pictures)) if method.coupled else None,
        )

    def run(self) -> None:
        """Trains every recipient that `results.csv` lacks; a row is written as soon as it is known."""
        todo = [cell for cell in self.cells if self._missing_seeds(cell)]
        steps = self.config.train.steps * sum(self._runs_needed(cell) for cell in todo)
        with tqdm(total=steps, unit="step", desc="recipients", dynamic_ncols=True, disable=not hosts.is_first()) as bar:
            for cell in todo:
                self._complete(cell, bar)

    def _missing_seeds(self, cell: Cell) -> list[int]:
        done = {row["seed"] for row in self.results if _cell_of(row) == cell}
        return [seed for seed in range(self.config.recipients.seeds) if seed not in done]

    def _untried(self, cell: Cell) -> list[tuple[float, int]]:
        """Learning rates and seeds of the grid that are still to be run; none where there is nothing to choose."""
        wanted = self.config.recipients
        if len(wanted.learning_rates) == 1:
            return []
        done = {(row["learning_rate"], row["seed"]) for row in self.rates if _cell_of(row) == cell}
        grid = [(rate, seed) for seed in range(wanted.tuning_seeds) for rate in wanted.learning_rates]
        return [point for point in grid if point not in done]

    def _runs_needed(self, cell: Cell) -> int:
        return len(self._untried(cell)) + len(self._missing_seeds(cell))

    def _complete(self, cell: Cell, bar: tqdm) -> None:
        for rate, seed in self._untried(cell):
            trained = self._tuned[cell, rate, seed] = self._train(cell, rate, seed, bar)
            last = trained.run.history[-1]
            self.rates.append(
                {**vars(cell), "learning_rate": rate, "seed": seed, "chosen": 0}
                | {name: last[name] for name in ("validation_accuracy", "validation_loss")}
            )
            self._write(RATES, self.rates, results.RATE_COLUMNS)
        rate = self._choose(cell)
        for seed in self._missing_seeds(cell):
            again = self._tuned.get((cell, rate, seed))  # the same run, bit for bit
            bar.update(self.config.train.steps if again else 0)
            self._finish(cell, rate, seed, again or self._train(cell, rate, seed, bar))
        self._tuned.clear()

    def _choose(self, cell: Cell) -> float:
        """The rate of the best mean validation accuracy over the tuning seeds; on a tie of the smaller loss."""
        rates = list(self.config.recipients.learning_rates)
        if len(rates) == 1:
            return rates[0]
        mine = [row for row in self.rates if _cell_of(row) == cell]

        def merit(rate: float) -> tuple[float, float]:
            rows = [row for row in mine if row["learning_rate"] == rate]
            losses = [row["validation_loss"] if math.isfinite(row["validation_loss"]) else math.inf for row in rows]
            return float(np.mean([row["validation_accuracy"] for row in rows])), -float(np.mean(losses))

        best = max(rates, key=merit)
        for row in mine:
            row["chosen"] = int(row["learning_rate"] == best)
        self._write(RATES, self.rates, results.RATE_COLUMNS)
        return best

    def _train(self, cell: Cell, rate: float, seed: int, bar: tqdm) -> Trained:
        trainer, before = self.trainers[cell.width], bar.n
        variables, explained_variance = self.start(cell, seed)
        filters, state = _first_filters(variables), trainer.start(variables)
        del variables  # half a gigabyte of VGG11
        indices = subset(self.dataset.train, cell.train_size, seed)
        name = f"{cell.name(seed)}_lr{rate:g}"

        def on_step(run: Run, step: int) -> None:
            bar.update(before + step - bar.n)
            if run.history[-1]["step"] == step:
                bar.set_postfix(_postfix(cell, rate, seed, run, step * trainer.settings.batch_size / run.seconds))

        directory = self.workdir / CHECKPOINTS / name
        run = train_resumable(
            trainer, state, self.data, indices, rate, seed, directory, on_step, self.config.save_every
        )
        bar.update(before + trainer.settings.steps - bar.n)  # what a diverged run left
        return Trained(run, filters, explained_variance)

    def _finish(self, cell: Cell, rate: float, seed: int, trained: Trained) -> None:
        """Reads the test set and writes the recipient's files, the row of `results.csv` last."""
        trainer, run = self.trainers[cell.width], trained.run
        name = cell.name(seed)
        test_loss, test_accuracy = trainer.evaluate(run.state.variables, self.data.test)
        used = subset(self.dataset.train, cell.train_size, seed)[: len(self.dataset.validation.labels)]
        used = on_devices(self.dataset.train.take(used), trainer.mesh)
        train_loss, train_accuracy = trainer.evaluate(run.state.variables, used)
        write_curves(self.workdir, name, run.history)
        self._write_fits(cell, seed, trained.explained_variance)
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
        self.results.append(row)
        self._write(RESULTS, self.results, results.RESULT_COLUMNS)

    def _write_fits(self, cell: Cell, seed: int, explained_variance: Mapping[str, float]) -> None:
        """Replaces the rows of this recipient, which an interrupted run may have written before."""
        mine = {**vars(cell), "seed": seed}
        self.fits = [row for row in self.fits if any(row[name] != value for name, value in mine.items())]
        self.fits += [{**mine, "layer": path, "explained_variance": r2} for path, r2 in explained_variance.items()]
        if self.fits:
            self._write(FITS, self.fits, results.FIT_COLUMNS)

    def _write_filters(self, name: str, trained: Trained) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, initial=trained.filters, trained=_first_filters(trained.run.state.variables))
        results.atomic_write_bytes(self.workdir / "filters" / f"{name}.npz", buffer.getvalue())

    def _write(self, name: str, rows: list[dict[str, Any]], columns: Iterable[str]) -> None:
        results.write_rows(self.workdir / name, [{column: row[column] for column in columns} for row in rows])


def _first_filters(variables: Variables) -> np.ndarray:
    return next(np.asarray(kernel) for kernel in trees.kernels(variables["params"]).values() if kernel.ndim == 4)


def _cell_of(row: Mapping[str, Any]) -> Cell:
    return Cell(row["init"], row["train_size"], row["width"])


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
