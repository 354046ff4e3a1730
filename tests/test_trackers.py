"""Trackers of experiments: a stand-in with the calls that Weights & Biases and trackio share, and trackio itself."""

import json
import sys
import types

import pytest
from test_stages import make_config

from agop_jax.core.errors import UserError
from agop_jax.experiments import experiment, trackers
from agop_jax.experiments.settings import Config


class StandIn(types.ModuleType):
    """Keeps what it is given; steps must not go back, as both trackers ask."""

    def __init__(self, name):
        super().__init__(name)
        self.logged, self.started, self.ended, self.last = [], [], 0, -1

    def init(self, *, project, name, config):
        self.started.append((project, name, config))
        return self

    def log(self, values, step=None):
        assert step is None or step >= self.last
        self.last = self.last if step is None else step
        json.dumps({key: getattr(value, "data", value) for key, value in values.items()}, allow_nan=False)
        self.logged.append((step, values))

    def finish(self):
        self.ended += 1

    class Table:
        def __init__(self, columns, data):
            self.columns, self.data = columns, data

    class Html:
        def __init__(self, data):
            self.data = data


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A work directory with its page, and what a stand-in heard on the way."""
    directory, heard = tmp_path_factory.mktemp("run") / "digits", StandIn("wandb")
    config = make_config("donor,features,recipients,report", track="wandb")
    config.ansatz.draws, config.pictures.enabled = 0, False
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "wandb", heard)
        experiment.run(config, directory)
    return directory, heard


def test_curves_tables_and_page_are_logged(finished):
    directory, heard = finished
    assert [(project, name) for project, name, _ in heard.started] == [("agop_jax", "digits")]
    assert heard.started[0][2]["recipients"]["inits"] == ["kaiming_normal", "nfm"]
    assert heard.ended == 1
    curves = {(step, key): value for step, values in heard.logged if step is not None for key, value in values.items()}
    for name in ("donor", "nfm_n1150_w1_s0"):
        for line in (directory / "metrics" / f"{name}.jsonl").read_text().splitlines():
            record = json.loads(line)
            assert curves[record["step"], f"{name}/validation_loss"] == record["validation_loss"]
            assert ((record["step"], f"{name}/train_loss") in curves) == (record["train_loss"] is not None)
    (results,), (summary,), (page,) = (
        [values[key] for step, values in heard.logged if step is None and key in values]
        for key in ("results", "summary", "report")
    )
    assert len(results.data) == len(summary.data) == 2
    assert dict(zip(results.columns, results.data[1], strict=True))["init"] == "nfm"
    assert dict(zip(summary.columns, summary.data[0], strict=True))["n"] == 1
    assert page.data == str(directory / "report.html")


def test_a_tracker_that_fails_is_one_line(finished, capsys, monkeypatch):
    broken = StandIn("wandb")
    monkeypatch.setattr(broken, "log", lambda *_, **__: 1 / 0)
    trackers.track(broken, finished[0])
    assert (
        capsys.readouterr().err == f"config.track: wandb failed (division by zero); the results are in {finished[0]}\n"
    )
    assert broken.ended == 1


def test_none_is_imported_unless_asked_for(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    assert trackers.tracker("") is None
    with pytest.raises(UserError, match="config.track='wandb' needs the package wandb: pip install wandb"):
        experiment.run(make_config("donor", track="wandb"), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="config.track: wanted wandb or trackio, or nothing, got 'mlflow'"):
        Config.of(make_config("donor", track="mlflow"))


def test_trackio_itself(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    trackio = pytest.importorskip("trackio", reason="logs to trackio: pip install trackio")
    monkeypatch.setattr(trackers, "say", lambda line: pytest.fail(line))
    trackers.track(trackio, finished[0])
    run = next(iter(trackio.Api().runs("agop_jax")))
    assert run.name == "digits"
    logged = {key for record in trackio.sqlite_storage.SQLiteStorage.get_logs("agop_jax", run.name) for key in record}
    assert {"donor/validation_loss", "nfm_n1150_w1_s0/validation_accuracy", "results", "summary", "report"} <= logged
