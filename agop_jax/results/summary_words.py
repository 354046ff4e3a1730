"""Summaries in words: sentences about a setting and the table of the terminal, in per cent and points."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from agop_jax.results.moderation import RESOLUTION
from agop_jax.results.resolution import (
    Parts,
    ceiling_words,
    most_at_ceiling,
    resolution_words,
    size_in_points,
    too_coarse,
)
from agop_jax.results.summary import BASELINE, Summary
from agop_jax.results.tables import Setting
from agop_jax.results.verdicts import POINT

NBSP, TIMES = "\N{NO-BREAK SPACE}", "\N{MULTIPLICATION SIGN}"


def setting_name(setting: Setting) -> str:
    """Such as '500 images, width × 1, 250 steps'."""
    steps = f", {setting.budget:,} steps" if setting.budget else ""
    return f"{setting.train_size:,} images, {width_factor(setting.width)}{steps}"


def width_factor(width: float) -> str:
    """Such as 'width × 1': a factor on the number of channels."""
    return f"width {TIMES} {width:g}"


def spread(line: Summary) -> str:
    """The 95 % interval of an accuracy in per cent; '' for one seed."""
    if not math.isfinite(line.high - line.low):
        return ""
    if line.high - line.low <= RESOLUTION:
        return "in each seed"  # an interval without width would claim to know the mean
    below, above = line.test_accuracy - line.low, line.high - line.test_accuracy
    if abs(above - below) > RESOLUTION:  # cut off at 0 or 1
        return f"{100 * line.low:.1f} to {100 * line.high:.1f}"
    return f"± {100 * above:.1f}"


def points(difference: float) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "\N{MINUS SIGN}")


def in_words(lines: Sequence[Summary], margin: float = POINT, test_images: int = 0) -> Parts:
    """What one setting shows and does not show: (a few words that lead in, the rest of the sentence).

    Args:
      lines: of the setting.
      margin: the difference that does not matter, as a fraction.
      test_images: of the test set, 0 where unknown.
    """
    trained = [line for line in lines if line.trains and line.init != BASELINE]
    parts = [
        *ceiling_words(lines, test_images),
        ("", " ".join(filter(None, [_what_was_done(lines), resolution_words(test_images, margin)]))),
        *_verdicts("he", "He", trained),
        *_equivalences(trained, margin),
        *_over_donors(trained),
        *_verdicts("control", "its matched control", trained),
        ("Better than He, but not than its control, so that scale or spectrum may explain it", _only_scale(trained)),
        ("Did not train at all (diverged or stayed at chance)", _names(x for x in lines if not x.trains | x.too_short)),
        ("Too short to tell, since no init that began at chance has left it", _names(x for x in lines if x.too_short)),
        ("", "" if most_at_ceiling(lines, test_images) else _power(trained, test_images)),
    ]
    return [(lead, text) for lead, text in parts if text]


def in_every_setting(lines: Sequence[Summary], margin: float = POINT, test_images: int = 0) -> Parts:
    """What holds in all of several settings, `margin` and `test_images` as in `in_words`."""
    settings = dict.fromkeys(line.setting for line in lines)
    groups = {setting: [line for line in lines if line.setting == setting] for setting in settings}
    full = [setting_name(setting) for setting, own in groups.items() if most_at_ceiling(own, test_images)]
    easy = f"{'; '.join(full)}. There this task cannot tell most starts apart."
    parts = [("At the ceiling", easy if full else ""), ("", resolution_words(test_images, margin))]
    parts = [(lead, text) for lead, text in parts if text]
    for prefix, against in (("he", "He"), ("control", "its matched control")):
        for verdict in ("better", "worse"):
            inits = [line.init for line in lines if line.trains and getattr(line, f"{prefix}_verdict") == verdict]
            names = [init for init in dict.fromkeys(inits) if inits.count(init) == len(settings)]
            lead = f"{verdict.capitalize()} than {against} in all {len(settings)} settings"
            parts.append((lead, ", ".join(names) or "none"))
    return parts


def _what_was_done(lines: Sequence[Summary]) -> str:
    seeds = sorted({line.n for line in lines})
    seeds_text = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    text = f"{len(lines)} initialisations were trained on {setting_name(lines[0].setting)}, with {seeds_text} seed"
    text += "." if seeds == [1] else "s each."
    baseline = next((line for line in lines if line.init == BASELINE), None)
    if baseline is None:
        return f"{text} He ({BASELINE}) is not among them, so there is nothing to compare them with."
    return f"{text} He ({BASELINE}) gets {100 * baseline.test_accuracy:.1f}{NBSP}% of the test set right."


def _verdicts(prefix: str, against: str, lines: Sequence[Summary]) -> list[tuple[str, str]]:
    """A part for each verdict that occurs; `prefix` is that of the fields to read."""
    leads = {
        "better": f"Better than {against} (points)",
        "worse": f"Worse than {against} (points)",
        "no difference seen": f"No difference from {against} seen",
        "too few seeds": f"Too few seeds to tell from {against}",
    }
    parts = []
    for verdict, lead in leads.items():
        group = [line for line in lines if getattr(line, f"{prefix}_verdict") == verdict]
        parts.append((lead, _names(group, f"{prefix}_difference" if verdict in ("better", "worse") else "")))
    return parts


def _equivalences(lines: Sequence[Summary], margin: float) -> list[tuple[str, str]]:
    """The inits whose difference from He is not clear, by what the margin says of it."""
    near, leads = f"{100 * margin:g} point{'s' if margin != POINT else ''}", {}
    leads["equivalent"] = f"Equivalent to He, within {near} either way"
    leads["no worse"] = f"No worse than He by more than {near}"
    leads["no better"] = f"No better than He by more than {near}"
    alike = [line for line in lines if line.he_verdict == "no difference seen"]
    return [(lead, _names(line for line in alike if line.he_equivalence == told)) for told, lead in leads.items()]


def _over_donors(lines: Sequence[Summary]) -> list[tuple[str, str]]:
    """What holds for donors in general, where there are several."""
    donors = max((line.donors for line in lines), default=1)
    if donors == 1:
        return []
    told = [
        (f"{verdict.capitalize()} than He for donors in general, not these {donors} alone", _names(group))
        for verdict in ("better", "worse")
        if (group := [line for line in lines if line.general_verdict == verdict])
    ]
    few = " Two cannot tell it, since one degree of freedom is left: see the spread below." if donors == 2 else ""
    return told or [("For donors in general", f"nothing is told from {donors} donors.{few}")]


def _names(lines: Iterable[Summary], difference: str = "") -> str:
    """The names, each with its points in the field `difference` if there is to be any."""
    names = (f"{line.init}{NBSP}{points(getattr(line, difference))}" if difference else line.init for line in lines)
    return ", ".join(names)


def _only_scale(lines: Sequence[Summary]) -> str:
    return _names(x for x in lines if x.he_verdict == "better" and x.control_verdict not in ("", "better"))


def _power(lines: Sequence[Summary], test_images: int) -> str:
    """How much a verdict of 'no difference seen' is worth."""
    if not any(line.he_verdict for line in lines):
        return ""
    if all(line.he_verdict in ("", "too few seeds") for line in lines):
        return "So few seeds support no conclusion about differences."
    widths = [(line.he_high - line.he_low) / 2 for line in lines]
    widths = [width for width in widths if width > RESOLUTION]  # not nan; and no width says that no spread was seen
    seeds = [line.seeds_for_one_point for line in lines if line.seeds_for_one_point is not None]
    text = ""
    if widths:
        width = size_in_points(float(np.median(widths)))
        text = f"A difference from He is known here to about ±{width} points (median), so smaller ones may well exist"
        text += " unseen."
    if too_coarse(test_images):
        return f"{text} To see one point takes more test images: more seeds would not do.".strip()
    return (
        text + (f" To see one point would take about {np.median(seeds):.0f} seeds an init." if seeds else "")
    ).strip()


def terminal_table(lines: Iterable[Summary]) -> str:
    """A block a setting: mean test accuracy and its 95 % interval in per cent, points from He, verdict."""
    blocks: dict[Setting, list[tuple[str, ...]]] = {}
    for line in lines:
        accuracy = f"{100 * line.test_accuracy:.1f} {spread(line)}".strip()
        difference = points(line.he_difference) if line.trains and math.isfinite(line.he_difference) else ""
        verdict = line.he_verdict if line.trains else line.idle
        blocks.setdefault(line.setting, []).append((line.init, accuracy, str(line.n), difference, verdict))
    header = ("init", "test %", "n", "vs He", "verdict")
    return "\n\n".join(f"{setting_name(key)}\n{_aligned([header, *rows])}" for key, rows in blocks.items())


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i in (0, 4) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
