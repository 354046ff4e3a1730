"""What an experiment found: tidy tables, statistics, figures and the page that shows them."""

from agop_jax.results.intervals import Interval, mean_interval, steps_to_reach
from agop_jax.results.page import write_report
from agop_jax.results.pictures import ansatz_words
from agop_jax.results.statistics import Difference, Recovered, compare, paired_difference, recovered_fraction
from agop_jax.results.tables import read_metrics, read_results

__all__ = [
    "Difference",
    "Interval",
    "Recovered",
    "ansatz_words",
    "compare",
    "mean_interval",
    "paired_difference",
    "read_metrics",
    "read_results",
    "recovered_fraction",
    "steps_to_reach",
    "write_report",
]
