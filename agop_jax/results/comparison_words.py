"""What several settings show together, in words."""

from collections.abc import Callable, Sequence

from agop_jax.results.matrix import LSUV, Cell, Column, Overall
from agop_jax.results.resolution import Parts, most_at_ceiling
from agop_jax.results.summary import BASELINE
from agop_jax.results.summary_words import NBSP

FIRST = 5  # ranks that are named
NAMES = {BASELINE: "He", LSUV: LSUV}


def in_short(columns: Sequence[Column], lines: Sequence[Overall]) -> Parts:
    """For the top of the page."""
    runs = len({column.run for column in columns})
    count = lambda number, noun: f"{number} {noun}{'s' if number != 1 else ''}"
    parts = [
        ("", f"{count(len(lines), 'initialisation')} in {count(len(columns), 'setting')} of {count(runs, 'run')}.")
    ]
    full = [x.name for x in columns if most_at_ceiling([cell.line for cell in x.cells.values()], x.test_images)]
    parts.append(("Most starts are at the ceiling, so that the task cannot tell them apart", "; ".join(full)))
    verdicts: dict[str, Callable[[Cell], str]] = {
        LSUV: lambda cell: cell.lsuv.verdict if cell.lsuv else "",
        BASELINE: lambda cell: cell.line.he_verdict,
    }
    for against, verdict in verdicts.items():
        parts += _unanimous(columns, lines, against, verdict)
    return [(lead, text) for lead, text in [*parts, _likely(lines), _ranks(lines)] if text]


def _unanimous(
    columns: Sequence[Column], lines: Sequence[Overall], against: str, verdict: Callable[[Cell], str]
) -> Parts:
    """Inits with one clear verdict wherever they were tried."""
    parts = []
    for word in ("better", "worse"):
        names = []
        for line in lines:
            cells = [cell for column in columns if (cell := column.cells.get(line.init))]
            told = [verdict(cell) for cell in cells if cell.line.trains and verdict(cell)]
            if told and set(told) == {word}:
                names.append(f"{line.init}{NBSP}({len(told)})")
        parts.append((f"{word.capitalize()} than {NAMES[against]} in every setting that has both", ", ".join(names)))
    return parts


def _likely(lines: Sequence[Overall]) -> tuple[str, str]:
    if max((line.settings for line in lines), default=0) < 2:
        return "", ""
    told = [line for line in lines if line.over_lsuv and line.over_lsuv.low > 0.5]
    names = (f"{line.init}{NBSP}{100 * line.over_lsuv.mean:.0f}{NBSP}%" for line in told if line.over_lsuv)
    return "Likelier than not to beat lsuv, the whole interval being above one half", ", ".join(names)


def _ranks(lines: Sequence[Overall]) -> tuple[str, str]:
    ranked = sorted((line for line in lines if line.rank), key=lambda line: line.rank.mean if line.rank else 0.0)
    if len(ranked) < 3 or max(line.settings for line in lines) < 2:
        return "", ""
    names = [f"{line.init}{NBSP}{line.rank.mean:.1f}" for line in ranked[:FIRST] if line.rank]
    return f"Best mean rank of the {len(ranked)} initialisations that all settings have", ", ".join(names)
