"""What an experiment found: tidy tables, statistics, figures and the page that shows them."""

from agop_jax.results.intervals import Interval, mean_interval, steps_to_reach
from agop_jax.results.page import write_report
from agop_jax.results.statistics import Difference, Recovered, compare, paired_difference, recovered_fraction

__all__ = [
    "Difference",
    "Interval",
    "Recovered",
    "compare",
    "mean_interval",
    "paired_difference",
    "recovered_fraction",
    "steps_to_reach",
    "write_report",
]
