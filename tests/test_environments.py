"""Where rows come from: an environment is recorded once, and every row names its own."""

import csv
import json

import pytest

from agop_jax.core import files
from agop_jax.core.errors import UserError
from agop_jax.experiments import environments, experiment
from agop_jax.experiments.config import experiment_config, shrink
from agop_jax.results.work import read_environments


def run(directory, seeds: int) -> str:
    config = experiment_config()
    config.model.features = (4, 6)
    shrink(config, inits=("kaiming_normal",))
    config.donor.train.steps = config.train.steps = 2
    config.features.num_images = 16
    config.recipients.seeds, config.ansatz.draws = seeds, 0
    return experiment.run(config, directory)


def lines(directory) -> list[dict]:
    return [json.loads(line) for line in (directory / "environments.jsonl").read_text().splitlines()]


def keys(directory, name: str = "results.csv") -> list[str]:
    with (directory / name).open() as file:
        return [row["environment"] for row in csv.DictReader(file)]


@pytest.mark.slow
def test_rows_keep_the_environment_that_computed_them(tmp_path, monkeypatch):
    """Two versions and a machine: nobody's rows are claimed by the newest."""
    monkeypatch.setattr(experiment, "describe_donor", lambda *arguments: None)
    plain = environments.environment()
    run(tmp_path, 1)
    run(tmp_path, 1)
    assert len(lines(tmp_path)) == 1
    monkeypatch.setattr(environments, "environment", lambda: {**plain, "jax": "9.9.9"})
    run(tmp_path, 2)
    monkeypatch.setattr(environments, "environment", lambda: {**plain, "device": "8 x gpu (H100)"})
    run(tmp_path, 3)
    run(tmp_path, 3)
    recorded = lines(tmp_path)
    assert [(line["jax"], line["device"]) for line in recorded] == [
        (plain["jax"], plain["device"]),
        ("9.9.9", plain["device"]),
        (plain["jax"], "8 x gpu (H100)"),
    ]
    assert keys(tmp_path) == [line["environment"] for line in recorded]
    assert files.read_json(tmp_path / "donor.json")["environment"] == recorded[0]["environment"]
    page = (tmp_path / "report.html").read_text()
    assert page.count('<dl class="environment">') == 3
    assert "8 x gpu (H100)" in page
    assert page.count("1 recipients") == 3


def test_rows_of_versions_that_recorded_none(tmp_path):
    """They keep what `environment.json` said of them, and without it nothing is claimed."""
    (tmp_path / "environment.json").write_text(json.dumps({"jax": "0.1"}))
    rows = [{"environment": ""}, {}, {"environment": "0123abcd"}]
    line = {"environment": "0123abcd", "jax": "0.2"}
    (tmp_path / "environments.jsonl").write_text(json.dumps(line) + "\n")
    assert read_environments(tmp_path, rows) == [{"recipients": 2, "jax": "0.1"}, {"recipients": 1, **line}]
    (tmp_path / "environment.json").unlink()
    assert read_environments(tmp_path, rows)[0] == {"recipients": 2, "device": "not recorded"}
    (tmp_path / "environments.jsonl").write_text("{broken\n")
    with pytest.raises(UserError, match=r"environments\.jsonl: wanted one JSON object with 'environment' a line"):
        read_environments(tmp_path, rows)
