"""The learning rate of each init in each setting: the one of a grid that is best on validation data."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agop_jax.experiments.sections import RecipientConfig

Point = tuple[float, int]  # learning rate and seed of one run


def grid(recipients: RecipientConfig, seeds: Sequence[int]) -> list[Point]:
    """The runs that the choice is made of, with the first of a donor's seeds; none where there is one rate."""
    if len(recipients.learning_rates) == 1:
        return []
    return [(rate, seed) for seed in seeds[: recipients.tuning_seeds] for rate in recipients.learning_rates]


def best_rate(rows: Sequence[Mapping[str, Any]], rates: Sequence[float]) -> float:
    """The rate of the best mean validation accuracy over the tuning seeds; on a tie of the smaller loss.

    Args:
      rows: of `learning_rates.csv`, of one init in one setting.
      rates: to choose from.
    """

    def merit(rate: float) -> tuple[float, float]:
        own = [row for row in rows if row["learning_rate"] == rate]
        losses = [row["validation_loss"] if math.isfinite(row["validation_loss"]) else math.inf for row in own]
        return float(np.mean([row["validation_accuracy"] for row in own])), -float(np.mean(losses))

    return rates[0] if len(rates) == 1 else max(rates, key=merit)


def outer_rate(rates: Sequence[float], best: float) -> float | None:
    """The rate beyond the end of the grid that is best, as far from it as its neighbour; None where no end is best.

    Args:
      rates: two or more that were tried.
      best: among them.
    """
    ends = sorted(rates)
    for end, neighbour in ((ends[0], ends[1]), (ends[-1], ends[-2])):
        if best == end:
            return float(f"{end * end / neighbour:.3g}")
    return None
