"""One training loop for donors and recipients: steps, evaluations on the way and their record."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from agop_jax.core import devices
from agop_jax.training.device_data import DeviceData
from agop_jax.training.settings import due
from agop_jax.training.trainer import Trainer, TrainState


@dataclass
class Run:
    """A run in progress or done: its state, one record for each evaluation, wall-clock seconds spent on it."""

    state: TrainState
    history: list[dict[str, Any]] = field(default_factory=list)
    diverged: bool = False
    seconds: float = 0.0


def train(
    trainer: Trainer,
    run: Run,
    data: DeviceData,
    indices: np.ndarray,
    learning_rate: float,
    seed: int,
    on_step: Callable[[Run, int], None] = lambda run, step: None,
) -> Run:
    """Carries a run from where it is to the end of its budget, or to a loss that is not finite.

    Args:
      trainer: of the network.
      run: `Run(trainer.start(variables))`, or one restored from a checkpoint.
      data: on the device.
      indices: which training images to use.
      learning_rate: peak of the schedule.
      seed: of the data order, augmentation and dropout.
      on_step: called after each step with the run and the number of steps done.

    Returns:
      The same run. `history` holds step, validation loss and accuracy, and the mean loss and accuracy of the
      mini-batches since the record before (None in the first). Records on the way are of `settings.curve_images`
      validation images, the last one is of all; `curve_accuracy` is that of the former in every record.
    """
    steps, evaluated = trainer.settings.steps, due(trainer.settings.steps)
    done = int(jax.device_get(run.state.step))
    if not run.history:
        _record(trainer, run, data, 0)
    with contextlib.closing(trainer.batches(data.train, indices, seed, done)) as batches:
        while done < steps and not run.diverged:
            split, chosen = next(batches)
            if chosen is None:  # it is a batch of its own: with the one in use two are there, and no queue of them
                jax.block_until_ready(run.state.step)
            run.state = trainer.step(run.state, split, chosen, learning_rate, seed)
            done += 1
            if done in evaluated:
                _record(trainer, run, data, done)
            on_step(run, done)
    return run


def _record(trainer: Trainer, run: Run, data: DeviceData, step: int) -> None:
    """Evaluates on validation, appends to the history and starts the running means anew."""
    since = step - run.history[-1]["step"] if run.history else 0
    variables, few = run.state.variables, trainer.settings.curve_images
    train_loss, train_accuracy = map(float, jax.device_get((run.state.loss_sum, run.state.correct)))
    loss, accuracy = on_few = trainer.evaluate(variables, data.validation, few)
    run.diverged = not (math.isfinite(train_loss) and math.isfinite(loss))
    if few < len(data.validation.labels) and (run.diverged or step == trainer.settings.steps):  # choices depend on it
        loss, accuracy = trainer.evaluate(variables, data.validation)
        run.diverged |= not math.isfinite(loss)
    record = {
        "step": step,
        "train_loss": train_loss / since if since else None,
        "train_accuracy": train_accuracy / since if since else None,
        "validation_loss": loss,
        "validation_accuracy": accuracy,
        "curve_accuracy": on_few[1],
    }
    run.history.append(record)
    loss_sum, correct = devices.replicate(list(np.zeros(2, np.float32)), trainer.mesh)  # two buffers: both are donated
    run.state = run.state.replace(loss_sum=loss_sum, correct=correct)


def accuracy_at(history: list[dict[str, Any]], steps: int, percent: int) -> float:
    """Validation accuracy after this share of the budget; of the last record before, if the run stopped early."""
    reached = [record for record in history if record["step"] <= math.ceil(steps * percent / 100)]
    return reached[-1]["validation_accuracy"]
