"""One line per initialisation, training-set size and width, and the same in plain words.

Accuracies and their differences are fractions; words and tables show per cent and points.
"""

import math
import statistics as stdlib_statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from agop_jax import statistics
from agop_jax.results import Row, recipient_name

BASELINE = "kaiming_normal"
REFERENCE = "copy"
IDLE = "does not train"

Item = TypeVar("Item")
Setting = tuple[int, float]  # train_size, width


@dataclass(frozen=True)
class Summary:
    """A line of summary.csv. nan, or '' for a name or verdict: there is nothing to compare with.

    Attributes:
      n: seeds; `diverged` of them did.
      trains: 0 if every seed diverged or stayed at chance.
      test_accuracy: mean over seeds, with `low` and `high` its 95 % t interval.
      he_difference: mean of the paired differences from He, with the interval and verdict of `statistics.compare`.
      control: the better of the matched controls, and the same differences from it.
      copy_recovered: (accuracy - He) / (copy of the donor - He).
      steps_to_he: median over seeds of the steps until validation reaches He's final accuracy of that seed; inf if most never do.
      seeds_for_one_point: seeds needed to see a difference of one point from He.
    """

    init: str
    train_size: int
    width: float
    n: int
    diverged: int
    trains: int
    test_accuracy: float
    low: float
    high: float
    he_difference: float
    he_low: float
    he_high: float
    he_verdict: str
    control: str
    control_difference: float
    control_low: float
    control_high: float
    control_verdict: str
    copy_recovered: float
    steps_to_he: float
    seeds_for_one_point: float
    learning_rate: str

    @property
    def setting(self) -> Setting:
        """What is the same for all that are compared."""
        return self.train_size, self.width
