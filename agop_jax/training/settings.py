"""The part of a training run that is compiled in, and its rule of update."""

import math
from dataclasses import dataclass
from typing import Any

import optax

from agop_jax.core.errors import UserError, unknown_name

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "cosine")
PRECISIONS = ("float32", "bfloat16")
EVALUATED_AT = (0, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100)  # per cent of the steps
STEP_COST = 3  # forward passes that a training step costs


@dataclass(frozen=True)
class Settings:
    """The part of a run that is compiled in.

    Attributes:
      steps: the budget.
      batch_size: images a step.
      optimizer: 'sgd' (with momentum), 'adam' or 'adamw'.
      momentum: of SGD.
      weight_decay: L2, added to the gradient, as in PyTorch's SGD. Of 'adamw' it is decoupled (Loshchilov & Hutter
        2019): a step shrinks every parameter by learning rate x weight_decay, as in PyTorch's AdamW.
      schedule: 'constant', or 'cosine' from the peak to zero.
      precision: of the passes of a training step, 'float32' or 'bfloat16'; evaluation, parameters, their updates,
        statistics of BatchNorm and the loss are float32 always.
      evaluation_share: the part of the cost of the training steps that the evaluations on the way may take. They use
        a fixed part of the validation set, as large as that allows; the evaluation after the last step, which choices
        and results depend on, uses all. A training step counts as 3 forward passes of its images: forward, and
        backward for inputs and for kernels.
    """

    steps: int
    batch_size: int = 64
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "cosine"
    precision: str = "float32"
    evaluation_share: float = 0.1

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise unknown_name("optimizer", self.optimizer, OPTIMIZERS)
        if self.schedule not in SCHEDULES:
            raise unknown_name("schedule", self.schedule, SCHEDULES)
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        if self.steps < 1 or self.batch_size < 1:
            raise UserError(f"wanted steps and batch_size of 1 or more, got {self.steps} and {self.batch_size}")
        if not (0 <= self.momentum < 1 and 0 <= self.weight_decay < math.inf):
            raise UserError(
                "wanted a momentum of 0 or more and below 1, and a weight_decay of 0 or more, got "
                f"{self.momentum} and {self.weight_decay}"
            )
        if not 0 < self.evaluation_share < math.inf:
            raise UserError(f"wanted an evaluation_share above 0, got {self.evaluation_share}")

    @property
    def curve_images(self) -> int:
        """Validation images of one point of a curve, at least 1, where the set has as many."""
        forward = STEP_COST * self.steps * self.batch_size
        return max(1, int(self.evaluation_share * forward / len(due(self.steps))))


def due(steps: int) -> list[int]:
    """The steps after which a run is evaluated."""
    return sorted({math.ceil(steps * percent / 100) for percent in EVALUATED_AT})


def optimizer_of(learning_rate: Any, settings: Settings) -> optax.GradientTransformation:
    """SGD with momentum or Adam, with L2 in the gradient; AdamW, whose decay is its own."""
    if settings.optimizer == "adamw":
        return optax.adamw(learning_rate, weight_decay=settings.weight_decay)
    if settings.optimizer == "adam":
        rule = optax.adam(learning_rate)
    else:
        rule = optax.sgd(learning_rate, momentum=settings.momentum or None)
    return optax.chain(optax.add_decayed_weights(settings.weight_decay), rule) if settings.weight_decay else rule
