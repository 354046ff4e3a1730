"""Recipients: inits x settings x seeds, each with the learning rate that validation chose for it.

A setting is a training-set size, a width and a budget of training steps.

Seeds are paired: for one seed all inits have the same training images, data order, head and biases. Of several donors
each has recipients of its own, with seeds and a choice of learning rates of their own. The test set is read once per
recipient, after its training, and part of it once by the probe of its start.
"""

# pyright: reportArgumentType=false

import io
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from agop_jax.core import files, progress
from agop_jax.core.types import Variables
from agop_jax.data import Dataset
from agop_jax.experiments import recipients, tuning
from agop_jax.experiments.before import before_training
from agop_jax.experiments.donors import DonorNetwork
from agop_jax.experiments.forecast import Forecast
from agop_jax.experiments.keys import recipient_seeds
from agop_jax.experiments.places import Place, for_each, make_places
from agop_jax.experiments.recipients import Comparison, Trained
from agop_jax.experiments.settings import Config
from agop_jax.experiments.sweep_tables import Cell, SweepTables, sweep_cells
from agop_jax.training.curves import write_curves
from agop_jax.training.loop import Run


class Sweep:
    """Trains what is missing in a work directory.

    Args:
      workdir: of the experiment.
      config: of the experiment.
      dataset: the recipients'.
      donors: by seed: 'trained', and 'untrained' for the methods that ask for it. The first is the experiment's own.
      environment: name of this call's environment, which the rows state.
    """

    def __init__(
        self,
        workdir: Path,
        config: Config,
        dataset: Dataset,
        donors: Mapping[int, Mapping[str, DonorNetwork]],
        environment: str = "",
    ) -> None:
        self.comparisons = {seed: Comparison(workdir, config, dataset, donor) for seed, donor in donors.items()}
        self.first = next(iter(donors))
        self.comparison = self.comparisons[self.first]
        self.cells = sweep_cells(config, len(dataset.train.labels))
        self.tables = SweepTables(workdir, self.cells, environment, config.seed, config.train.steps)
        self.places = make_places(config, dataset)
        # what shapes do not tell, before the first minute is spent
        todo = {cell.start: cell for cell in self.cells if self._missing_seeds(self.first, cell)}
        for cell in progress.bar(todo.values(), "draw recipients", unit="init"):
            seed = self._missing_seeds(self.first, cell)[0]
            recipients.start(self.comparison, cell, seed, self.places[0].trainer(cell))

    def seeds(self, donor: int) -> range:
        """The seeds of a donor's recipients."""
        config = self.comparison.config
        return recipient_seeds(donor, config.seed, config.recipients.seeds)

    def run(self) -> None:
        """Trains every recipient that `results.csv` lacks; a row is written as soon as it is known."""
        todo = [(donor, cell) for donor in self.comparisons for cell in self.cells if self._missing_seeds(donor, cell)]
        steps = sum(cell.setting.budget * self._new_runs(donor, cell) for donor, cell in todo)
        runs = sum(self._new_runs(donor, cell) for donor, cell in todo)
        self._forecast = Forecast(runs, steps, self.tables.results, len(self.places))
        with progress.bar(desc="recipients", total=steps, brief=False) as bar:
            for_each(todo, self.places, lambda item, place: self._complete(*item, place, bar))

    def _missing_seeds(self, donor: int, cell: Cell) -> list[int]:
        done = self.tables.seeds_done(cell)
        return [seed for seed in self.seeds(donor) if seed not in done]

    def _untried(self, donor: int, cell: Cell) -> list[tuning.Point]:
        done = self.tables.rates_tried(cell)
        grid = tuning.grid(self.comparison.config.recipients, self.seeds(donor))
        return [point for point in grid if point not in done]

    def _new_runs(self, donor: int, cell: Cell) -> int:
        """The runs to be trained; with the chosen rate, the run of a seed of the grid is its recipient."""
        untried, missing = self._untried(donor, cell), self._missing_seeds(donor, cell)
        return len(untried) + len({*missing} - {seed for _, seed in untried})

    def _complete(self, donor: int, cell: Cell, place: Place, bar: progress.tqdm) -> None:
        """The grid of learning rates, then a recipient for each seed of this donor."""
        comparison, trainer = self.comparisons[donor], place.trainer(cell)
        tuned: dict[tuning.Point, Trained] = {}
        before: dict[int, dict[str, float]] = {}
        missing = self._missing_seeds(donor, cell)

        def train(rate: float, seed: int) -> Trained:
            def on_start(variables: Variables) -> None:
                if seed in missing and seed not in before:
                    before[seed] = before_training(comparison, cell, seed, variables, trainer)

            return self._train(comparison, cell, rate, seed, place, on_start, bar)

        def try_rates(points: Iterable[tuning.Point]) -> None:
            for rate, seed in points:
                trained = tuned[rate, seed] = train(rate, seed)
                self.tables.add_rate(cell, rate, seed, trained.run.history[-1])

        try_rates(self._untried(donor, cell))
        rate = self._choose_rate(donor, cell, try_rates, bar)
        for seed in missing:
            trained = tuned.get((rate, seed)) or train(rate, seed)  # the same run, bit for bit
            self._keep(cell, seed, trained)
            row = recipients.result(comparison, cell, rate, seed, trained, place)
            if comparison.config.recipients.keep:
                recipients.keep(comparison, cell, trainer, row, trained)
            self.tables.add_result({**row, "donor": donor, **before[seed]})
            self._forget(donor, cell, seed)
        for _, seed in tuning.grid(comparison.config.recipients, self.seeds(donor)):  # some may be no recipient's
            self._forget(donor, cell, seed)

    def _choose_rate(
        self, donor: int, cell: Cell, try_rates: Callable[[list[tuning.Point]], None], bar: progress.tqdm
    ) -> float:
        """The best rate of the grid, which grows beyond its end where that is best."""
        config, seeds = self.comparison.config.recipients, self.seeds(donor)
        rates = list(config.learning_rates)
        best = self.tables.choose_rate(cell, rates, seeds)
        for _ in range(config.outer_rates):
            further = tuning.outer_rate(rates, best)
            if further is None:
                break
            rates.append(further)
            tried = self.tables.rates_tried(cell)
            points = [(further, seed) for seed in seeds[: config.tuning_seeds] if (further, seed) not in tried]
            bar.total += cell.setting.budget * len(points)
            try_rates(points)
            best = self.tables.choose_rate(cell, rates, seeds)
        return best

    def _forget(self, donor: int, cell: Cell, seed: int) -> None:
        """Removes the draw of a recipient, unless it is to be trained with another budget."""
        others = [other for other in self.cells if other.start == cell.start]
        if not any(seed in self._missing_seeds(donor, other) for other in others):
            recipients.forget(self.comparisons[donor], cell, seed)

    def _train(
        self,
        comparison: Comparison,
        cell: Cell,
        rate: float,
        seed: int,
        place: Place,
        on_start: recipients.OnStart,
        bar: progress.tqdm,
    ) -> Trained:
        trainer, shown = place.trainer(cell), 0

        def on_step(run: Run, step: int) -> None:
            nonlocal shown
            bar.update(step - shown)
            shown = step
            place.continues()
            if run.history[-1]["step"] == step:
                bar.set_postfix(_postfix(cell, rate, seed, run, step * trainer.settings.batch_size / run.seconds))

        trained = recipients.train(comparison, cell, rate, seed, place, on_start, on_step)
        bar.update(trainer.settings.steps - shown)  # what a diverged run left
        self._forecast.finished(trainer.settings.steps, trained.run.seconds / max(1, trained.run.history[-1]["step"]))
        return trained

    def _keep(self, cell: Cell, seed: int, trained: Trained) -> None:
        """The recipient's own files, before its row says that it is done."""
        workdir, name = self.comparison.workdir, self.comparison.name(cell, seed)
        write_curves(workdir, name, trained.run.history)
        self.tables.add_fits(cell, seed, trained.explained_variance)
        if seed == self.seeds(self.first)[0] and trained.filters is not None:
            trainer = self.places[0].trainer(cell)
            after = recipients.first_filters(trainer, self.comparison.dataset, trained.run.state.variables)
            buffer = io.BytesIO()
            np.savez(buffer, initial=trained.filters, trained=after)
            files.atomic_write_bytes(workdir / "filters" / f"{name}.npz", buffer.getvalue())


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
