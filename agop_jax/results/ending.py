"""The last lines of the program: the best initialisation, what is told apart from He, and what to look at."""

from collections.abc import Sequence
from pathlib import Path

from agop_jax.results.summary import BASELINE, Summary
from agop_jax.results.summary_words import points, setting_name

MOST = 8  # names in a line


def in_brief(lines: Sequence[Summary], path: Path) -> str:
    """Plain text of some lines, one a setting where there are several, then paths.

    Args:
      lines: of all settings.
      path: the work directory.
    """
    settings = dict.fromkeys(line.setting for line in lines)
    groups = {setting: [line for line in lines if line.setting == setting] for setting in settings}
    parts = {setting: _parts(group) for setting, group in groups.items()}
    blocks = ["\n".join(own) for own in parts.values()]
    if len(parts) > 1:
        blocks = [f"{setting_name(setting)}. {'. '.join(own)}" for setting, own in parts.items()]
    look = f"Look at: {path / 'report.html'} (the page), {path / 'summary.csv'}, {path / 'results.csv'}"
    return "\n".join([*blocks, look])


def _parts(lines: Sequence[Summary]) -> list[str]:
    """The best init of one setting, and the inits whose difference from He is clear."""
    learners = [line for line in lines if line.trains]
    if not learners:
        return ["Best: none, since no initialisation left chance"]
    best = max(learners, key=lambda line: line.test_accuracy)
    seeds = f"{best.n} seed{'s' if best.n > 1 else ''}"
    parts = [f"Best: {best.init}, {100 * best.test_accuracy:.1f} % of the test set in the mean of {seeds}"]
    if any(line.init == BASELINE for line in lines):
        parts.append(f"Told apart from He: {_told_apart(learners)}")
    return parts


def _told_apart(lines: Sequence[Summary]) -> str:
    """The inits that are better than He and those that are worse, in words."""
    others = [line for line in lines if line.init != BASELINE]
    by_verdict = {verdict: [x for x in others if x.he_verdict == verdict] for verdict in ("better", "worse")}
    told = [f"{verdict} {_names(inits)}" for verdict, inits in by_verdict.items() if inits]
    if told:
        return "; ".join(told)
    few = all(line.he_verdict == "too few seeds" for line in others)
    return "none, since there are too few seeds to tell" if others and few else "none"


def _names(lines: Sequence[Summary]) -> str:
    """The largest differences first, in points."""
    ranked = sorted(lines, key=lambda line: -abs(line.he_difference))
    more = f" and {len(ranked) - MOST} more" if len(ranked) > MOST else ""
    return ", ".join(f"{line.init} {points(line.he_difference)}" for line in ranked[:MOST]) + more
