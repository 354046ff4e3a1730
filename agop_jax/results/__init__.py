"""What an experiment found: tidy tables, statistics, figures and the page that shows them."""

from agop_jax.results.bootstrap import Task, improvement_probability, mean_ranks
from agop_jax.results.comparison import write_comparison
from agop_jax.results.intervals import Interval, mean_interval, steps_to_reach
from agop_jax.results.machine_figures import accuracy_by_round, patch_matrices
from agop_jax.results.page import write_report
from agop_jax.results.pictures import ansatz_words
from agop_jax.results.runs import Run, read_runs
from agop_jax.results.statistics import Recovered, compare, recovered_fraction
from agop_jax.results.tables import read_metrics, read_results
from agop_jax.results.verdicts import Difference, General, Rule, paired_difference

__all__ = [
    "Difference",
    "General",
    "Interval",
    "Recovered",
    "Rule",
    "Run",
    "Task",
    "accuracy_by_round",
    "ansatz_words",
    "compare",
    "improvement_probability",
    "mean_interval",
    "mean_ranks",
    "paired_difference",
    "patch_matrices",
    "read_metrics",
    "read_results",
    "read_runs",
    "recovered_fraction",
    "steps_to_reach",
    "write_comparison",
    "write_report",
]
