"""Every file in `configs/` runs in its mode 'quick', on random images of the shape of its data set."""

import csv
import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest

from agop_jax.experiments import experiment
from agop_jax.experiments.settings import Config
from agop_jax.results import setting_names
from agop_jax.results.tables import Setting
from agop_jax.training import trainer

FOLDER = Path(__file__).parent.parent / "configs"
CONFIGS = sorted(FOLDER.glob("*.py"))
STUDY = sorted(path for path in (FOLDER / "study").glob("*.py") if path.stem != "base")
# height, width, channels and classes of the data sets; flowers as the configs resize them
SHAPES = {
    "mnist": (28, 1, 10),
    "fashion_mnist": (28, 1, 10),
    "cifar10": (32, 3, 10),
    "cifar100": (32, 3, 100),
    "svhn_cropped": (32, 3, 10),
    "oxford_flowers102": (64, 3, 102),
    "tiny_imagenet": (64, 3, 200),
}
# one of each protocol makes its page and pictures, too; for those of the others nothing depends on the config
WITH_PAGE = ("cifar10", "cifar_transfer", "digits", "original_vgg11_cifar10")


def read(path: Path, mode: str):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(mode)


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory):
    """name of a data set -> 'npz:FILE' with random images of its shape, every class among them."""
    folder = tmp_path_factory.mktemp("data")

    def write(name: str, count: int) -> str:
        side, channels, classes = SHAPES[name]
        random, labels = np.random.default_rng(0), np.arange(max(count, 2 * classes)) % classes
        images = lambda n: random.integers(0, 256, (n, side, side, channels), dtype=np.uint8)
        test = {"test_images": images(classes), "test_labels": np.arange(classes)}
        np.savez(folder / name, train_images=images(len(labels)), train_labels=labels, **test)
        return f"npz:{folder / name}.npz"

    return write


def known(name: str) -> str:
    """The data set that a name in a config stands for: 'npz:cifar10.npz' is a user's file of CIFAR-10."""
    return Path(name.removeprefix("npz:")).stem


# the other configs differ from these in the data set alone
EVERY_RUN = ("digits", "cifar10", "cifar_transfer", "original_vgg11_cifar10", "longer")
RUNS = [
    pytest.param(
        path,
        id="-".join(path.relative_to(FOLDER).parts),
        marks=pytest.mark.slow if path.stem in EVERY_RUN else pytest.mark.long,
    )
    for path in (*CONFIGS, *STUDY)
]


@pytest.mark.parametrize("path", RUNS)
def test_quick_run(path, stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "EVALUATION_BATCH", 50)  # the stand-ins are small
    config = read(path, "quick")
    count = 2 * max(*config.recipients.train_sizes, 100)
    for field in (config.data, config.donor):
        key = "name" if field is config.data else "data"
        if known(field[key]) in SHAPES:
            field[key] = stand_in(known(field[key]), count)
    config.data.size = 0  # the stand-in is decoded already
    if path.stem not in WITH_PAGE:
        config.stages = "donor,features,recipients"
        monkeypatch.setattr(experiment, "describe_donor", lambda *arguments: None)
    table = experiment.run(config, tmp_path)
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["init"] for row in rows} == set(config.recipients.inits)
    assert all(np.isfinite(float(row["test_loss"])) for row in rows)
    if path.stem in WITH_PAGE:
        assert "kaiming_normal" in table
        assert (tmp_path / "report.html").exists()


def test_modes_and_questions():
    """What the page shows on top is what the file asks; the plain mode differs from 'quick'."""
    for path in (*CONFIGS, *STUDY):
        config = read(path, "")
        assert config.question
        assert config.question.endswith("?")
        assert config.to_json() != read(path, "quick").to_json()
        assert f"--config={path.relative_to(FOLDER.parent)}" in path.read_text()


def test_every_setting_of_the_study_is_a_config():
    """With the baselines that `compare` needs, and names that tell its settings apart."""
    configs = [Config.of(read(path, "")) for path in STUDY]
    assert len(configs) >= 6
    facts = []
    for path, config in zip(STUDY, configs, strict=True):
        assert {"kaiming_normal", "lsuv"} <= {*config.recipients.inits}
        assert any(init.startswith("copy") for init in config.recipients.inits)  # of which kind depends on the width
        assert config.recipients.seeds >= 5
        assert len(config.donor_seeds) == (1 if path.stem == "rainbow_mixing" else 3)
        settings = itertools.product(config.recipients.train_sizes, config.recipients.widths, config.budgets)
        facts += [setting_names.facts(config.to_dict(), Setting(*setting)) for setting in settings]
    distinct = {tuple(own.items()) for own in facts}
    assert len(distinct) >= len(facts) - 2  # a few inits of one setting have leaves of their own


def test_the_original_protocol_is_the_stated_one():
    """20 epochs of 40,000 images in batches of 64 are 12,500 steps."""
    config = read(CONFIGS[0].with_name("original_vgg11_cifar10.py"), "")
    assert (config.train.steps, config.train.batch_size, config.data.resize) == (12_500, 64, 224)
    assert (config.train.momentum, config.train.weight_decay, config.train.schedule) == (0.9, 5e-4, "constant")
    assert (tuple(config.recipients.learning_rates), config.recipients.seeds) == ((1e-3,), 3)
    assert config.donor.source == "hub:timm/vgg11.tv_in1k"
    assert (config.data.pad, config.data.flip, config.data.validation) == (0, False, 0.2)
