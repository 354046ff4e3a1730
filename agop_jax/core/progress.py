"""How far something is: a bar on a terminal, and a line every 30 seconds where standard error is none.

Of several processes the first speaks. A log of carriage returns would be longer than all else that is written.
"""

import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from agop_jax.core import hosts

EVERY = 30.0  # seconds between two lines of a log
LINE = "{desc}: {percentage:.0f} %, {n_fmt} of {total_fmt} {unit}s, {elapsed} gone, {remaining} left{postfix}"


class Lines(tqdm):
    """A bar that is written as lines, for logs; nothing of what ends within the first 30 seconds."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._last = time.monotonic()
        super().__init__(*arguments, **options, bar_format=LINE, miniters=1)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """One more line, if the time has come."""
        if (now := time.monotonic()) - self._last < EVERY:
            return False
        self._last = now
        print(self, file=self.fp, flush=True)
        return True

    def close(self) -> None:
        """Writes nothing: a bar would be cleared here."""
        if not self.disable:
            self.disable = True
            self._decr_instances(self)


def bar(
    iterable: Iterable[Any] | None = None,
    desc: str = "",
    *,
    total: int | None = None,
    unit: str = "step",
    show: bool = True,
    brief: bool = True,
) -> tqdm:
    """A bar or lines, to be iterated over or to be updated by hand, as of `tqdm`.

    Args:
      iterable: what to count; None for a bar that is updated by hand.
      desc: what is done.
      total: how many there are; None for as many as the iterable has.
      unit: what is counted, in the singular.
      show: whether there is one at all.
      brief: work that is often done at once: its bar comes after two seconds and goes with its end.
    """
    plain = {"desc": desc, "total": total, "unit": unit, "disable": not (show and hosts.is_first())}
    if not sys.stderr.isatty():
        return Lines(iterable, **plain)
    return tqdm(iterable, **plain, dynamic_ncols=True, leave=not brief, delay=2 if brief else 0)


def say(line: str) -> None:
    """A line on standard error, above a bar that may stand there."""
    if hosts.is_first():
        tqdm.write(line, file=sys.stderr)
