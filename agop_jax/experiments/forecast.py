"""How much a sweep is before it starts, and about how long it takes, by runs that were measured."""

import threading
from collections.abc import Iterable, Mapping
from typing import Any

from agop_jax.core.progress import say


class Forecast:
    """Says one line before the sweep, and one after its second run where no earlier run was measured.

    The first run is no measure, since it compiles.

    Args:
      runs: of training that are to be done.
      steps: of all of them.
      rows: of `results.csv`, of runs that are done, whose seconds a step are the measure.
      places: how many runs are trained at once.
    """

    def __init__(self, runs: int, steps: int, rows: Iterable[Mapping[str, Any]], places: int = 1) -> None:
        self._left, self._places, self._lock = steps, places, threading.Lock()
        done = [row for row in rows if row["steps"] and row["seconds"] > 0]
        self._runs, self._known = 0, bool(done)
        if not runs:
            return
        amount = f"recipients: {runs:,} run{'s' if runs > 1 else ''}, {steps:,} steps"
        if not done:
            return say(f"{amount}; how long they take is known after the second")
        seconds = sum(row["seconds"] for row in done) / sum(row["steps"] for row in done)
        say(f"{amount}, {self._time(seconds)} by the {len(done):,} done before")

    def finished(self, steps: int, seconds_a_step: float) -> None:
        """To be called after each run, with its steps and what one of them took."""
        with self._lock:
            self._left -= steps
            self._runs += 1
            if self._known or self._runs < 2 or self._left <= 0:
                return
            self._known = True
        say(f"recipients: {self._left:,} steps are left, {self._time(seconds_a_step)} by the second run")

    def _time(self, seconds_a_step: float) -> str:
        seconds = self._left * seconds_a_step / self._places
        if seconds < 60:
            return "less than a minute"
        return f"about {seconds / 60:,.0f} minutes" if seconds < 5400 else f"about {seconds / 3600:,.1f} hours"
