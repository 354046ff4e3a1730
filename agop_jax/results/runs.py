"""Several finished work directories that are to be compared."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from agop_jax.core.errors import UserError
from agop_jax.results.summary import BASELINE
from agop_jax.results.summary_words import setting_name
from agop_jax.results.tables import Setting
from agop_jax.results.work import Work, read_work


@dataclass(frozen=True)
class Run:
    """A work directory by a name that no other of the runs has."""

    name: str
    work: Work


def read_runs(paths: Sequence[str | os.PathLike]) -> list[Run]:
    """The work directories, each with He's recipients in every setting.

    Raises:
      UserError: a path that is no work directory, is there twice or has no results yet, or a setting without the
        baseline.
    """
    directories = [Path(path).expanduser().resolve() for path in paths]
    for directory, count in Counter(directories).items():
        if count > 1:
            raise UserError(f"{str(directory)!r} is there {count} times: name each work directory once")
        _require_results(directory)
    runs = [Run(*pair) for pair in zip(_names(directories), map(read_work, directories), strict=True)]
    for run in runs:
        _require_baseline(run)
    return runs


def _require_results(directory: Path) -> None:
    if not directory.is_dir():
        raise UserError(f"{str(directory)!r}: no such directory; needed work directories of finished experiments")
    if not (directory / "config.json").is_file():
        raise UserError(
            f"{str(directory)!r} is no work directory: it has no config.json; name directories of --workdir"
        )
    if not (directory / "results.csv").is_file():
        raise UserError(f"{str(directory)!r} has no results yet: it has no results.csv; finish that experiment first")


def _require_baseline(run: Run) -> None:
    inits: dict[Setting, set[str]] = {}
    for row in run.work.results:
        inits.setdefault(Setting.of(row), set()).add(row["init"])
    for setting, names in inits.items():
        if BASELINE not in names:
            raise UserError(
                f"{str(run.work.path)!r}, {setting_name(setting)}: no recipient of {BASELINE!r}, the baseline that all "
                "runs must share; there are "
                f"{', '.join(sorted(names))}: add it to config.recipients.inits and run it again"
            )


def _names(directories: Iterable[Path]) -> list[str]:
    """The last parts of the paths, as few as tell them apart."""
    directories = list(directories)
    for length in range(1, max(len(path.parts) for path in directories) + 1):
        names = ["/".join(path.parts[-length:]) for path in directories]
        if len(set(names)) == len(names):
            return names
    return list(map(str, directories))
