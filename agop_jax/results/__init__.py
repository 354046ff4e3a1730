"""What an experiment found: tidy tables, statistics, figures and the page that shows them."""

from agop_jax.results.intervals import Interval, mean_interval, steps_to_reach
from agop_jax.results.machine_figures import accuracy_by_round, patch_matrices
from agop_jax.results.page import write_report
from agop_jax.results.pictures import ansatz_words
from agop_jax.results.statistics import Recovered, compare, recovered_fraction
from agop_jax.results.tables import read_metrics, read_results
from agop_jax.results.verdicts import Difference, General, Rule, paired_difference

__all__ = [
    "Difference",
    "General",
    "Interval",
    "Recovered",
    "Rule",
    "accuracy_by_round",
    "ansatz_words",
    "compare",
    "mean_interval",
    "paired_difference",
    "patch_matrices",
    "read_metrics",
    "read_results",
    "recovered_fraction",
    "steps_to_reach",
    "write_report",
]
