"""The part of a training run that is compiled in, and its rule of update."""

import math
from dataclasses import dataclass
from typing import Any

import optax

from agop_jax.core.errors import UserError, unknown_name

OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("constant", "cosine")
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Settings:
    """The part of a run that is compiled in.

    Attributes:
      steps: the budget.
      batch_size: images a step.
      optimizer: 'sgd' (with momentum) or 'adam'.
      momentum: of SGD.
      weight_decay: L2, added to the gradient, as in PyTorch's SGD.
      schedule: 'constant', or 'cosine' from the peak to zero.
      precision: of the passes through the network, 'float32' or 'bfloat16'; parameters, their updates, statistics of
        BatchNorm and the loss are float32 always.
    """

    steps: int
    batch_size: int = 64
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "cosine"
    precision: str = "float32"

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


def optimizer_of(learning_rate: Any, settings: Settings) -> optax.GradientTransformation:
    """SGD with momentum or Adam, with L2 in the gradient."""
    if settings.optimizer == "adam":
        rule = optax.adam(learning_rate)
    else:
        rule = optax.sgd(learning_rate, momentum=settings.momentum or None)
    return optax.chain(optax.add_decayed_weights(settings.weight_decay), rule) if settings.weight_decay else rule
