"""Extract only; later train only, from what is stored, here or in another work directory."""

import csv
import json
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from agop_jax import load_features
from agop_jax.core.errors import UserError
from agop_jax.experiments import donors, experiment, workdir
from agop_jax.experiments.config import experiment_config, shrink
from agop_jax.experiments.settings import Config
from agop_jax.training import trainer


def make_config(stages: str, **fields):
    """Tiny networks on digits shown at 12 x 12."""
    config = experiment_config()
    config.model.features = (4, 6)
    shrink(config, inits=("kaiming_normal", "nfm"))
    config.donor.train.steps = config.train.steps = 2
    config.features.num_images, config.recipients.seeds = 16, 1
    config.data.resize = 12
    config.stages = stages
    config.update_from_flattened_dict(fields)
    return config


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    """A work directory after --config.stages=donor,features."""
    directory = tmp_path_factory.mktemp("extracted")
    assert "donor, features" in experiment.run(make_config("features,donor"), directory)
    return directory


def test_extract_only(extracted):
    """Features at the donor's size: the resize reached it, and its constants are stored."""
    assert not (extracted / "results.csv").exists()
    assert not (extracted / "report.html").exists()
    assert list(load_features(extracted / "features")) == ["Conv_0", "Conv_1", "Dense_0"]
    about = json.loads((extracted / "features" / "metadata.json").read_text())["metadata"]
    described = json.loads((extracted / "data.json").read_text())
    assert about["pipeline"]["resize"] == 12
    np.testing.assert_allclose(about["pipeline"]["mean"], described["mean"])
    dataset = experiment.load_data(Config.of(make_config("donor")), "digits")
    np.testing.assert_allclose(described["std"], dataset.std)
    assert (described["shape"], described["images"]["train"]) == ([8, 8, 1], 1150)


def rows(directory):
    with (directory / "results.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_train_only_from_what_is_stored(extracted, tmp_path, monkeypatch):
    """In the same directory, coupled inits among them, and in another one from its features: the same recipients."""
    directory = tmp_path / "same"
    shutil.copytree(extracted, directory)
    before = contents(directory / "donor") | contents(directory / "features")
    monkeypatch.setattr(donors, "extract", None)  # no stage left to extract in
    monkeypatch.setattr(trainer, "EVALUATION_BATCH", 100)
    config = make_config("recipients,report")
    config.recipients.inits = ("kaiming_normal", "nfm", "coupled_nfm")
    experiment.run(config, directory)
    assert contents(directory / "donor") | contents(directory / "features") == before
    assert (directory / "report.html").exists()
    other = tmp_path / "other"
    source = {"features.source": str(extracted / "features")}
    experiment.run(make_config("recipients,report", **source), other)
    assert not (other / "donor").exists()
    found = {row["init"]: row["test_loss"] for row in rows(other)}
    assert found == {row["init"]: row["test_loss"] for row in rows(directory) if row["init"] in found}
    with pytest.raises(UserError, match="holds results of another config: features.source"):
        experiment.run(make_config("recipients"), other)
    for init in ("coupled_nfm", "nfm@untrained"):
        config = make_config("recipients", **source)
        config.recipients.inits = (init,)
        with pytest.raises(UserError, match=f"'{init}' needs the donor as a network, config.features.source has"):
            experiment.run(config, tmp_path / "refused")


def test_data_that_changed_under_its_results_are_refused(extracted, tmp_path):
    """A folder with other pictures, or constants from a sample where all images fitted before; not rounding."""
    directory = tmp_path / "copy"
    shutil.copytree(extracted, directory)
    described = json.loads((directory / "data.json").read_text())
    rounded = {**described, "mean": [described["mean"][0] * (1 + 1e-9)], "streamed": True}
    (directory / "data.json").write_text(json.dumps(rounded))
    experiment.run(make_config("donor"), directory)
    assert json.loads((directory / "data.json").read_text()) == described
    (directory / "data.json").write_text(json.dumps({**described, "measured": 9, "mean": [0.5]}))
    before = contents(directory)
    now = described["mean"]
    message = (
        f"holds results from other data: mean (was [0.5], now {now}), measured (was 9, now 1150): restore the data"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        experiment.run(make_config("donor,features"), directory)
    changed = {path.name for path, content in contents(directory).items() if before.get(path) != content}
    assert changed == {".lock"}


def test_a_work_directory_of_an_older_version_goes_on(extracted, tmp_path):
    """Its data.json has kept less: no names of classes, and not which of the source's images were used."""
    directory = tmp_path / "copy"
    shutil.copytree(extracted, directory)
    described = json.loads((directory / "data.json").read_text())
    older = {name: described[name] for name in described.keys() - {"classes", "origins", "unused"}}
    (directory / "data.json").write_text(json.dumps(older))
    experiment.run(make_config("donor"), directory)
    assert json.loads((directory / "data.json").read_text()) == described
    (directory / "data.json").write_text(json.dumps({**described, "classes": list("abcdefghij")}))
    with pytest.raises(UserError, match=r"holds results from other data: classes \(was \['a', "):
        experiment.run(make_config("donor"), directory)


def test_checkpoints_of_other_data_are_not_continued(tmp_path):
    """Of a run that ended before it had results."""
    config, data = make_config("donor").to_dict(), {"measured": 9, "mean": [0.5]}
    checkpoint = tmp_path / "checkpoints" / "donor" / "1"
    checkpoint.mkdir(parents=True)
    for _ in range(2):
        workdir.claim(tmp_path, config, data)
        assert checkpoint.exists()
    workdir.claim(tmp_path, config, {"measured": 9, "mean": [0.6]})
    assert not checkpoint.exists()


def test_the_ansatz_of_other_layers_is_not_kept(tmp_path):
    config, file = make_config("donor,features"), tmp_path / "ansatz.csv"
    workdir.claim(tmp_path, config.to_dict(), {})
    file.touch()
    config.recipients.seeds += 1
    workdir.claim(tmp_path, config.to_dict(), {})
    assert file.exists()
    config.recipients.layers = "Conv_0"
    workdir.claim(tmp_path, config.to_dict(), {})
    assert not file.exists()


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("donor,recipients", "leaves out 'features', and '.*features' is not there"),
        ("recipients", "leaves out 'donor', and '.*donor' is not there: run --config.stages=donor"),
        ("features", "leaves out 'donor'"),
        ("report", "results.csv"),
        ("extract", "unknown stage 'extract'"),
        (" , ", "wanted one or more of donor, features, recipients, report, got none"),
    ],
)
def test_stages_that_cannot_be(stages, message, tmp_path):
    with pytest.raises(UserError, match=message):
        experiment.run(make_config(stages), tmp_path)
    assert not (tmp_path / "donor").exists()


def test_features_that_are_not_there(extracted, tmp_path):
    shutil.copytree(extracted / "donor", tmp_path / "donor")
    with pytest.raises(UserError, match="leaves out 'features', and '.*features' is not there"):
        experiment.run(make_config("recipients"), tmp_path)
    with pytest.raises(UserError, match="'/no/such/metadata.json' is missing"):
        experiment.run(make_config("recipients", **{"features.source": "/no/such"}), tmp_path / "new")


def test_a_donor_may_see_another_size():
    config = Config.of(make_config("donor", **{"donor.resize": 10}))
    dataset = experiment.load_data(config, "digits")
    pipelines = [donors.pipeline_for(config, dataset, side) for side in (config.donor.resize, 0)]
    assert [pipeline(jnp.zeros((1, 8, 8, 1), jnp.uint8)).shape for pipeline in pipelines] == [
        (1, 10, 10, 1),
        (1, 12, 12, 1),
    ]
