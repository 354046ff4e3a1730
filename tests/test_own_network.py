"""A network of the user's own in an experiment, as docs/experiment.md has it."""

from functools import partial

import flax.linen as nn
import pytest

from agop_jax.experiments import config, run
from agop_jax.experiments.settings import Config
from agop_jax.models import MODELS
from agop_jax.results.tables import read_results


class Mine(nn.Module):
    num_classes: int
    width: float = 1.0

    @nn.compact
    def __call__(self, x):
        for channels in (4, 8):
            x = nn.relu(nn.Conv(round(channels * self.width), (3, 3), strides=2)(x))
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


@pytest.mark.slow
def test_a_network_from_a_config_file(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "mine", partial(Mine))
    own = config.experiment_config()
    config.shrink(own, inits=("kaiming_normal", "selected"))
    own.model.name, own.stages = "mine", "donor,features,recipients"
    own.recipients.widths = (1.0, 2.0)
    own.pictures.enabled, own.ansatz.draws = False, 0
    run(own, tmp_path)
    rows = read_results(tmp_path / "results.csv")
    assert {(row["init"], row["width"]) for row in rows} == {
        (init, width) for init in ("kaiming_normal", "selected") for width in (1.0, 2.0)
    }


def test_a_field_that_the_config_file_has_set_is_unset_by_an_empty_list():
    own = config.experiment_config()
    own.model.features = (4, 4)
    own.model.name, own.model.features = "lenet5", ()
    assert Config.of(own).model.fields == {}
