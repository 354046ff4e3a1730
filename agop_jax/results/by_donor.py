"""How much the donors differ: differences from He donor by donor."""

from collections.abc import Sequence
from dataclasses import dataclass

from agop_jax.core.files import Row
from agop_jax.results.samples import Sample
from agop_jax.results.summary import BASELINE, Summary
from agop_jax.results.tables import Setting


@dataclass(frozen=True)
class DonorTable:
    """One setting's mean paired differences from He: `differences` by init and by seed of the donor."""

    donors: list[int]
    lines: list[Summary]
    differences: dict[str, dict[int, float]]


def spread_table(results: Sequence[Row], lines: Sequence[Summary]) -> DonorTable | None:
    """The table of one setting; None where there is one donor or no baseline."""
    rows = [row for row in results if Setting.of(row) == lines[0].setting]
    donors = {row["seed"]: row["donor"] for row in rows}
    values: dict[str, dict[int, float]] = {}
    for row in rows:
        values.setdefault(row["init"], {})[row["seed"]] = row["test_accuracy"]
    if len(set(donors.values())) < 2 or BASELINE not in values:
        return None
    shown = [line for line in lines if line.init != BASELINE and line.trains]
    means = {line.init: Sample.of(values[line.init], values[BASELINE], donors).means for line in shown}
    return DonorTable(sorted(set(donors.values())), shown, means)
