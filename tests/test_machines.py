"""Recursive feature machines in an experiment: as the source of a donor, and as an init of recipients."""

import json

import numpy as np
import pytest

from agop_jax import load_features
from agop_jax.core.errors import UserError
from agop_jax.experiments import experiment
from agop_jax.experiments.config import experiment_config, shrink
from agop_jax.experiments.settings import Config
from agop_jax.results.tables import read_results


def small(*inits):
    config = experiment_config()
    shrink(config, inits)
    config.model.features = (4, 6)
    config.donor.train.steps = config.train.steps = 2
    config.rfm.positions, config.rfm.iterations, config.ansatz.draws = 4, 1, 0
    return config


@pytest.mark.slow
def test_a_donor_from_machines_and_recipients_from_their_own(tmp_path):
    """No network is trained for the donor; each recipient's machine sees its own images and draws by its own key."""
    config = small("kaiming_normal", "convrfm", "he_agop")
    config.donor.source, config.recipients.seeds = "rfm:", 1
    experiment.run(config, tmp_path)
    donor = json.loads((tmp_path / "donor.json").read_text())
    assert donor["source"] == "rfm:"
    assert donor["seconds"] > 0
    assert "recursive feature machines drew the donor" in (tmp_path / "report.html").read_text()
    features = load_features(tmp_path / "features")
    np.testing.assert_allclose(features["Conv_0"].agop.trace, 2, rtol=1e-3)
    assert [row["init"] for row in read_results(tmp_path / "results.csv")] == ["kaiming_normal", "convrfm", "he_agop"]
    entries = [entry["name"] for entry in json.loads((tmp_path / "gallery.json").read_text())["entries"]]
    assert entries[-2:] == ["machine_matrices", "machine_rounds"]
    assert all(row["draw_seconds"] > 0 for row in read_results(tmp_path / "results.csv"))
    filters = np.load(next((tmp_path / "filters").glob("convrfm*")))
    assert filters["initial"].shape == features["Conv_0"].kernel.shape
    assert not np.allclose(filters["initial"], features["Conv_0"].kernel)  # of its own images and key


def test_what_a_machine_cannot_draw_is_refused_before_anything_is_trained(tmp_path):
    config = small("convrfm")
    config.recipients.layers = ".*"
    with pytest.raises(UserError, match="init 'convrfm', layer 'Dense_0': it draws convolutions alone"):
        experiment.run(config, tmp_path)
    assert not (tmp_path / "donor").exists()


@pytest.mark.parametrize(("field", "value"), [("kernel", "laplace"), ("ridge", -1.0), ("num_images", 1)])
def test_options_out_of_range_are_refused(field, value):
    config = experiment_config()
    config.rfm[field] = value
    with pytest.raises(UserError, match=f"config.rfm.{field}: wanted"):
        Config.of(config)
