"""What a finished experiment left in its work directory, read whole."""

import json
import os
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agop_jax.core.errors import UserError
from agop_jax.core.files import Row, read_header, read_json, read_optional_table, read_text, unreadable_reason
from agop_jax.results.tables import (
    ANSATZ_COLUMNS,
    ENVIRONMENT,
    FIT_COLUMNS,
    SPECTRUM_COLUMNS,
    Curves,
    read_metrics,
    read_optional_rates,
    read_results,
    recipient_name,
    recipient_of,
)
from agop_jax.results.verdicts import POINT, VARIANCES

Kernels = tuple[np.ndarray, np.ndarray]  # first layer before and after training, (kh, kw, cin, cout)


@dataclass(frozen=True)
class Work:
    """What a finished experiment left in its directory; what it did not write is empty."""

    path: Path
    config: Row
    budget: int  # config.train.steps
    data: Row  # of data.json
    environments: list[Row]
    results: list[Row]
    curves: Curves
    donors: dict[int, Row]
    donor_curve: list[Row]
    rates: list[Row]
    fits: list[Row]
    spectra: list[Row]
    ansatz: list[Row]
    gallery: list[Row]
    filters: dict[str, Kernels]

    @property
    def test_images(self) -> int:
        """Of the recipients' test set; 0 where an older version has not written it."""
        return int(self.data.get("images", {}).get("test", 0))

    @property
    def margin(self) -> float:
        """The largest difference of accuracies that does not matter, as a fraction."""
        return float(self.config.get("statistics", {}).get("margin", 1.0)) * POINT

    @property
    def judged(self) -> dict[str, Any]:
        """Options of `statistics.compare`, as the config has them; versions before had no such section."""
        variance = str(self.config.get("statistics", {}).get("variance", VARIANCES[0]))
        resolution = 1 / self.test_images if self.test_images else 0.0
        return {"variance": variance, "margin": self.margin, "resolution": resolution}


def read_work(path: str | os.PathLike) -> Work:
    """Everything the report needs, or a `UserError` that names the file that is damaged."""
    path = Path(path)
    read_header(path / "results.csv")  # an unfinished experiment lacks this one, and is told so first
    config = read_json(path / "config.json")
    budget = int(config.get("train", {}).get("steps", 0))
    rows = read_results(path / "results.csv", budget)
    name = lambda row: recipient_name(*recipient_of(row), budget)
    donors = _read_donors(path, config.get("seed", 0))
    return Work(
        path=path,
        config=config,
        budget=budget,
        data=read_json(path / "data.json") if (path / "data.json").exists() else {},
        environments=read_environments(path, rows),
        results=rows,
        curves={recipient_of(row): _optional_metrics(path, name(row)) for row in rows},
        donors=donors,
        donor_curve=_optional_metrics(path, "donor"),
        rates=read_optional_rates(path / "learning_rates.csv", budget or rows[0]["budget"]),
        fits=read_optional_table(path / "fits.csv", FIT_COLUMNS),
        spectra=read_optional_table(path / "spectra.csv", SPECTRUM_COLUMNS),
        gallery=read_json(path / "gallery.json")["entries"] if (path / "gallery.json").exists() else [],
        ansatz=read_optional_table(path / "ansatz.csv", ANSATZ_COLUMNS),
        filters=_read_filters(path, [(row["init"], name(row)) for row in rows]),
    )


def _read_donors(path: Path, own: int) -> dict[int, Row]:
    """{seed: contents of donor.json}. The donor of the experiment's own seed comes first."""
    further = path / "donors"
    seeds = [int(folder.name) for folder in further.iterdir() if folder.name.isdigit()] if further.is_dir() else []
    files = {own: path / "donor.json", **{seed: further / str(seed) / "donor.json" for seed in sorted(seeds)}}
    return {seed: read_json(file) for seed, file in files.items() if file.exists()}


def read_environments(path: Path, results: Sequence[Row]) -> list[Row]:
    """The environments that recipients were trained in, each with their number.

    `environment.json` is what versions before `environments.jsonl` left: it speaks for the rows that name none.
    """
    counts = Counter(row.get(ENVIRONMENT, "") for row in results)
    known = _environment_lines(path / "environments.jsonl")
    if (path / "environment.json").exists():
        known[""] = read_json(path / "environment.json")
    missing = {"device": "not recorded"}
    return [{"recipients": count, **known.get(key, missing)} for key, count in counts.items()]


def _environment_lines(path: Path) -> dict[str, Row]:
    if not path.exists():
        return {}
    try:
        lines = [json.loads(line) for line in read_text(path).splitlines()]
        return {line[ENVIRONMENT]: line for line in lines}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: wanted one JSON object with {ENVIRONMENT!r} a line ({error!r})") from error


def _optional_metrics(path: Path, name: str) -> list[Row]:
    file = path / "metrics" / f"{name}.jsonl"
    return read_metrics(file) if file.exists() else []


def _read_filters(path: Path, recipients: Sequence[tuple[str, str]]) -> dict[str, Kernels]:
    """{init: filters of its first recipient whose filters were kept}."""
    filters: dict[str, Kernels] = {}
    for init, name in recipients:
        file = path / "filters" / f"{name}.npz"
        if init in filters or not file.exists():
            continue
        try:
            with np.load(file, allow_pickle=False) as arrays:
                filters[init] = arrays["initial"], arrays["trained"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            reason = unreadable_reason(error)
            raise UserError(f"{file}: wanted the arrays 'initial' and 'trained' ({reason})") from error
    return filters
