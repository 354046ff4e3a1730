"""The last lines of the program: the best initialisation, what is told apart from He, and what to look at."""

from collections.abc import Sequence
from pathlib import Path

from agop_jax.results.moderation import RESOLUTION
from agop_jax.results.resolution import ceiling_words
from agop_jax.results.summary import BASELINE, Summary
from agop_jax.results.summary_words import points, setting_name

MOST = 8  # names in a line


def in_brief(lines: Sequence[Summary], path: Path, test_images: int = 0) -> str:
    """Plain text of some lines, one a setting where there are several, then paths.

    Args:
      lines: of all settings.
      path: the work directory.
      test_images: of the test set, 0 where unknown.
    """
    settings = dict.fromkeys(line.setting for line in lines)
    groups = {setting: [line for line in lines if line.setting == setting] for setting in settings}
    parts = {setting: _parts(group, test_images) for setting, group in groups.items()}
    blocks = ["\n".join(own) for own in parts.values()]
    if len(parts) > 1:
        blocks = [f"{setting_name(setting)}. {'. '.join(own)}" for setting, own in parts.items()]
    look = f"Look at: {path / 'report.html'} (the page), {path / 'summary.csv'}, {path / 'results.csv'}"
    return "\n".join([*blocks, look])


def _parts(lines: Sequence[Summary], test_images: int) -> list[str]:
    """The best inits of one setting, and those whose difference from He is clear."""
    learners = [line for line in lines if line.trains]
    if not learners:
        return ["Best: none, since no initialisation left chance"]
    parts = [_best(learners)]
    parts += [f"{lead}: {text.removesuffix('.')}" for lead, text in ceiling_words(lines, test_images)]
    if any(line.init == BASELINE for line in lines):
        parts.append(f"Told apart from He: {_told_apart(learners)}")
    return parts


def _best(lines: Sequence[Summary]) -> str:
    """The init of the highest mean, with all that have the same."""
    top = max(line.test_accuracy for line in lines)
    best = [line for line in lines if line.test_accuracy >= top - RESOLUTION]
    counts = sorted({line.n for line in best})
    seeds = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    seeds += " seed" if counts == [1] else " seeds"
    tie = f" ({len(best)} tie)" if len(best) > 1 else ""
    return f"Best: {_listed([x.init for x in best])}{tie}, {100 * top:.1f} % of the test set in the mean of {seeds}"


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
    return _listed([f"{line.init} {points(line.he_difference)}" for line in ranked])


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return ", ".join(names[:MOST]) + more
