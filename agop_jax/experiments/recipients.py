"""One recipient: its start, its training, and the numbers that are kept of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agop_jax import models
from agop_jax.core import hosts
from agop_jax.core.networks import open_network
from agop_jax.core.tensors import SUFFIX
from agop_jax.core.types import Variables
from agop_jax.data import Dataset, subset
from agop_jax.experiments import draws
from agop_jax.experiments.donors import DonorNetwork
from agop_jax.experiments.keys import Role, key, stream
from agop_jax.experiments.machines import drawn_features
from agop_jax.experiments.outlines import input_shape
from agop_jax.experiments.places import Place
from agop_jax.experiments.settings import Config
from agop_jax.experiments.sweep_tables import Cell
from agop_jax.experiments.workdir import CHECKPOINTS, DRAWS, RECIPIENTS
from agop_jax.features.layer import LayerFeatures
from agop_jax.features.taps import tap
from agop_jax.initializers.drawn import Drawn
from agop_jax.initializers.model import Initialization, initialization
from agop_jax.initializers.passes import Donor
from agop_jax.initializers.registry import get_method
from agop_jax.models.pretrained import Pretrained, write_state
from agop_jax.results import tables
from agop_jax.training.device_data import on_devices
from agop_jax.training.loop import Run, accuracy_at
from agop_jax.training.resumable import train_resumable
from agop_jax.training.trainer import Trainer

SHARES = (5, 20, 100)  # per cent of the steps, after which `results.csv` states the accuracy
OnStep = Callable[[Run, int], None]
OnStart = Callable[[Variables], None]


@dataclass(frozen=True)
class Comparison:
    """What all recipients share.

    Attributes:
      workdir: of the experiment.
      config: of the experiment.
      dataset: the recipients'.
      donors: 'trained', and 'untrained' for the methods that ask for it.
    """

    workdir: Path
    config: Config
    dataset: Dataset
    donors: Mapping[str, DonorNetwork]

    def images(self, cell: Cell, seed: int) -> np.ndarray:
        """Indices of the training images of a recipient."""
        return subset(self.dataset.train, cell.setting.train_size, stream(Role.RECIPIENT_IMAGES, seed))

    def name(self, cell: Cell, seed: int) -> str:
        """The name of a recipient's files."""
        return tables.recipient_name(cell.init, cell.setting, seed, self.config.train.steps)


@dataclass(frozen=True)
class Trained:
    """One run at its end, and what is told of its start.

    Attributes:
      run: with the final state.
      filters: of the first convolution before training; None where the network has none.
      explained_variance: of a coupled init's fits, by layer.
      draw_seconds: that its draw took.
    """

    run: Run
    filters: np.ndarray | None
    explained_variance: dict[str, float]
    draw_seconds: float


def start(comparison: Comparison, cell: Cell, seed: int, trainer: Trainer) -> draws.Start:
    """A recipient before training; draws that look at examples are kept until `forget`."""
    variables, draw = _fresh(comparison, cell, seed, trainer)
    method = get_method(cell.init)
    costly = method.needs_examples or isinstance(method.source, Drawn)
    return draws.kept(_draw_path(comparison, cell, seed), variables, draw) if costly else draws.timed(draw)


def drawn(comparison: Comparison, cell: Cell, seed: int, trainer: Trainer) -> Initialization:
    """A recipient at its start, of which nothing is kept."""
    return _fresh(comparison, cell, seed, trainer)[1]()


def _fresh(
    comparison: Comparison, cell: Cell, seed: int, trainer: Trainer
) -> tuple[Variables, Callable[[], Initialization]]:
    """The network's own start, and the draw of its selected layers.

    Methods that look at examples see the first of the recipient's own training images, without labels.
    """
    method, config = get_method(cell.init), comparison.config.recipients
    donor = comparison.donors["untrained" if method.untrained else "trained"]
    indices = comparison.images(cell, seed)[: config.num_images]
    pictures = jnp.asarray(comparison.dataset.train.take(indices).load().images)
    inputs = trainer.pipeline(pictures)
    variables = models.own_variables(trainer.model, key(Role.RECIPIENT_START, seed), inputs[:1])
    machine = isinstance(method.source, Drawn)

    def draw() -> Initialization:
        return initialization(
            trainer.model,
            variables,
            inputs,
            _drawn_features(comparison, cell, seed, trainer, variables) if machine else donor.features,
            cell.init,
            key=key(Role.RECIPIENT_DRAW, seed),
            layers=config.layers,
            donor=Donor(donor.model, donor.variables, donor.pipeline(pictures)) if method.needs_network else None,
        )

    return variables, draw


def forget(comparison: Comparison, cell: Cell, seed: int) -> None:
    """Removes the draw of a recipient, which is the same for every budget."""
    if hosts.is_first():
        _draw_path(comparison, cell, seed).unlink(missing_ok=True)


def kept_path(workdir: Path, name: str) -> Path:
    """Where `config.recipients.keep` keeps the trained recipient whose files have this name."""
    return workdir / RECIPIENTS / f"{name}{SUFFIX}"


def keep(comparison: Comparison, cell: Cell, trainer: Trainer, row: Mapping[str, Any], trained: Trained) -> None:
    """Writes a trained recipient with its row of `results.csv`, in place of what an interrupted call may have left."""
    pipeline, path = trainer.pipeline, kept_path(comparison.workdir, comparison.name(cell, row["seed"]))
    network = Pretrained(trainer.model, jax.device_get(trained.run.state.variables), pipeline.mean, pipeline.std)
    if hosts.is_first():
        path.unlink(missing_ok=True)
    write_state(path, network, {name: value for name, value in row.items() if value == value})  # JSON has no NaN


def _draw_path(comparison: Comparison, cell: Cell, seed: int) -> Path:
    return comparison.workdir / DRAWS / f"{comparison.name(cell.start, seed)}.npz"


def _drawn_features(
    comparison: Comparison, cell: Cell, seed: int, trainer: Trainer, variables: Variables
) -> dict[str, LayerFeatures]:
    """Features of machines on the recipient's own training images and their labels."""
    network, config = (trainer.model, variables, trainer.pipeline), comparison.config
    images, own_key = comparison.images(cell, seed), key(Role.RECIPIENT_DRAW, seed)
    options = comparison.dataset.train, images, own_key, config.recipients.layers
    return drawn_features(config.rfm, *network, *options)[0]


def train(
    comparison: Comparison, cell: Cell, rate: float, seed: int, place: Place, on_start: OnStart, on_step: OnStep
) -> Trained:
    """Trains a recipient, or goes on from its last checkpoint; `on_start` sees its variables before training."""
    trainer = place.trainer(cell)
    variables, explained_variance, draw_seconds = start(comparison, cell, seed, trainer)
    on_start(variables)
    filters, state = first_filters(trainer, comparison.dataset, variables), trainer.start(variables)
    del variables  # half a gigabyte of VGG11
    run = train_resumable(
        trainer,
        state,
        place.data,
        comparison.images(cell, seed),
        rate,
        stream(Role.RECIPIENT_TRAINING, seed),
        comparison.workdir / CHECKPOINTS / f"{comparison.name(cell, seed)}_lr{rate:g}",
        on_step,
        comparison.config.save_every,
    )
    return Trained(run, filters, explained_variance, draw_seconds)


def result(
    comparison: Comparison, cell: Cell, rate: float, seed: int, trained: Trained, place: Place
) -> dict[str, Any]:
    """The row of `results.csv`; reads the test set."""
    trainer, run, dataset = place.trainer(cell), trained.run, comparison.dataset
    test_loss, test_accuracy = trainer.evaluate(run.state.variables, place.data.test)
    sample = comparison.images(cell, seed)[: len(dataset.validation.labels)]
    train_split = on_devices(dataset.train.take(sample), trainer.mesh)
    train_loss, train_accuracy = trainer.evaluate(run.state.variables, train_split)
    steps, last = int(jax.device_get(run.state.step)), run.history[-1]
    return {
        **cell.columns,
        "seed": seed,
        "learning_rate": rate,
        "test_accuracy": test_accuracy,
        "test_loss": test_loss,
        "validation_accuracy": last["validation_accuracy"],
        "validation_loss": last["validation_loss"],
        "train_accuracy": train_accuracy,
        "train_loss": train_loss,
        **{f"accuracy_at_{share}": accuracy_at(run.history, trainer.settings.steps, share) for share in SHARES},
        "steps": steps,
        "draw_seconds": round(trained.draw_seconds, 3),
        "seconds": round(run.seconds, 3),
        "images_per_second": round(steps * trainer.settings.batch_size / run.seconds, 1) if steps else 0.0,
        "diverged": int(run.diverged),
    }


def first_filters(trainer: Trainer, dataset: Dataset, variables: Variables) -> np.ndarray | None:
    """The kernel of the convolution that is called first, which need not be the first by its name."""
    network = open_network(trainer.model, variables)
    inputs = jax.ShapeDtypeStruct((1, *input_shape(trainer.pipeline, dataset.train.shape)), jnp.float32)
    tapped = tap(network, inputs)
    kernels = (tapped.kernel(layer, network.params, network.others) for layer in tapped.layers)
    first = next((kernel for kernel in kernels if kernel.ndim == 4), None)
    return None if first is None else np.asarray(jax.device_get(first))
