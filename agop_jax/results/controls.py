"""Which init a matched control is made for, read off its name, and which control of an init is the better."""

import math
from collections.abc import Mapping, Sequence

from agop_jax.results.verdicts import BySeed

CONTROLS = ("matched_isotropic", "matched_spectrum")
CONTROLLED_BY_DEFAULT = "nfm"  # by a control that names no init


def is_control(init: str, controls: Sequence[str] = CONTROLS) -> bool:
    """Whether an init is a control: by name, for an init ('matched_isotropic:X') or with options ('...@lsuv')."""
    return init.partition("@")[0].partition(":")[0] in controls


def controlled(control: str) -> str:
    """The init that a control is made for, with its options in the order of the alphabet.

    'matched_isotropic:X@lsuv' is made for 'X@lsuv', since a control has the options of what it controls.
    """
    base, *options = control.split("@")
    return "@".join([base.partition(":")[2] or CONTROLLED_BY_DEFAULT, *sorted(options)])


def better_control(
    init: str, values: BySeed, selection: Mapping[str, BySeed], controls: Sequence[str] = CONTROLS
) -> str | None:
    """The control made for this init; of several the one of the highest mean validation accuracy.

    Args:
      init: that is no control.
      values: of the init, by seed.
      selection: init -> seed -> validation accuracy; the mean is over the seeds that `values` has, too.
      controls: names of the kinds of control.

    Returns:
      None where no control is made for the init: it knows no donor, or none was trained.
    """
    base, *options = init.split("@")
    own = "@".join([base, *sorted(options)])
    means = {}
    for name, by_seed in selection.items():
        scores = [score for seed, score in by_seed.items() if seed in values]
        if scores and is_control(name, controls) and controlled(name) == own:
            means[name] = math.fsum(scores) / len(scores)
    return max(means, key=lambda name: means[name], default=None)
