"""The config from the command line to frozen dataclasses; what is wrong with it is said before anything is trained."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from agop_jax.core.errors import UserError
from agop_jax.experiments import donors, experiment
from agop_jax.experiments.config import experiment_config, shrink
from agop_jax.experiments.settings import Config
from agop_jax.experiments.workdir import local_directory

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))


def parse(*arguments: str, file: str = "digits.py") -> Config:
    """What the program makes of a command line."""
    argv = ["program", f"--config={CONFIGS[0].with_name(file)}", *arguments]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    return Config.of(values.config)


def changed(**fields) -> Config:
    config = experiment_config()
    config.update_from_flattened_dict(fields)
    return Config.of(config)


def test_the_defaults_survive_the_way_through_a_config_dict():
    assert Config.of(experiment_config()) == Config()
    assert changed().to_dict()["train"]["steps"] == 200
    hash(changed(**{"model.features": (4, 6)}).train)


@pytest.mark.parametrize(
    ("argument", "field", "value"),
    [
        ("recipients.inits=kaiming_normal,nfm,copy", "inits", ("kaiming_normal", "nfm", "copy")),
        ("recipients.inits=('kaiming_normal','nfm')", "inits", ("kaiming_normal", "nfm")),
        (
            "recipients.inits=matched_spectrum:he_agop,he_nfm@mix=0.5",
            "inits",
            ("matched_spectrum:he_agop", "he_nfm@mix=0.5"),
        ),
        ("recipients.inits=nfm", "inits", ("nfm",)),
        ("recipients.learning_rates=0.1,0.2", "learning_rates", (0.1, 0.2)),
        ("recipients.learning_rates=1e-3", "learning_rates", (0.001,)),
        ("recipients.widths=1,2", "widths", (1.0, 2.0)),
        ("recipients.train_sizes=[100, 200]", "train_sizes", (100, 200)),
    ],
)
def test_a_comma_list_is_a_list(argument, field, value):
    found = getattr(parse(f"--config.{argument}").recipients, field)
    assert found == value
    assert list(map(type, found)) == list(map(type, value))


@pytest.mark.parametrize(
    ("text", "outputs"),
    [("0,1,2", (0, 1, 2)), ("(3, 1)", (3, 1)), ("[7]", (7,)), ("5", (5,)), ("loss", "loss"), ("logits", "logits")],
)
def test_class_indices_on_the_command_line(text, outputs):
    for file in ("digits.py", "original_vgg11_mnist.py"):  # whose own outputs are class indices
        assert parse(f"--config.features.outputs={text}", file=file).features.outputs == outputs


def test_fields_of_the_chosen_model_on_the_command_line():
    config = parse("--config.model.width=0.5", "--config.model.features=4,6")
    assert config.model.to_dict() == {"name": "small_cnn", "features": (4, 6), "width": 0.5}
    network = config.model.network(10, width=2.0)
    assert (network.width, network.features) == (1.0, (4, 6))
    assert parse("--config.model.name=vgg11", "--config.model.head=classic", file="mnist.py").model.fields == {
        "head": "classic"
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model.widht=0.5"], ["'widht'", "Did you mean 'width'", "features", "patch_size"]),
        (["model.name=lenet5", "model.depth=3"], ["field of model 'lenet5'", "'depth'"]),
        (["train.stepz=3"], ["'stepz'", "Did you mean 'steps'", "batch_size, evaluation_share, momentum"]),
        (["recipients.init=nfm"], ["'init'", "Did you mean 'inits'"]),
        (["donor.train.rate=1"], ["'rate'", "weight_decay"]),
    ],
)
def test_a_wrong_field_lists_the_right_ones(arguments, words):
    with pytest.raises(UserError) as error:
        parse(*(f"--config.{argument}" for argument in arguments))
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_mode_that_means_nothing_is_refused(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for mode in ("quck", "Quick", "1"):
        with pytest.raises(UserError, match=f"unknown mode of the config file '{mode}'.*Known: .*quick"):
            module.get_config(mode)


BAD = {
    "seed": (-1, "config.seed: wanted a whole number from 0"),
    "save_every": (-1.0, "config.save_every: wanted 0 or more, got -1.0"),
    "stages": ("recipients,pge", "unknown stage 'pge'"),
    "data.validation": (1.0, "config.data.validation: wanted a fraction from 0, below 1"),
    "data.pad": (-2, "config.data.pad: wanted 0 or more, got -2"),
    "donor.learning_rate": (-0.1, "config.donor.learning_rate: wanted a number above 0, got -0.1"),
    "donor.init": ("he_nmf", "unknown init 'he_nmf'"),
    "donor.train.steps": (0, "config.donor.train: wanted steps and batch_size of 1 or more, got 0"),
    "donor.mean": ((0.5,), "config.donor.mean: wanted none without config.donor.source"),
    "model.features": ((4, 0), r"model 'small_cnn': wanted features of 1 or more, got \(4, 0\)"),
    "model.width": (float("nan"), "model width: wanted a factor above 0, got nan"),
    "train.steps": (0, "config.train: wanted steps and batch_size of 1 or more, got 0"),
    "train.weight_decay": (-1.0, "config.train: wanted a momentum .* weight_decay of 0 or more, got 0.9 and -1.0"),
    "train.optimizer": ("sdg", "config.train: unknown optimizer 'sdg'"),
    "features.num_images": (0, "config.features.num_images: wanted 1 or more, got 0"),
    "features.batch_size": (-8, "config.features.batch_size: wanted 1 or more, got -8"),
    "features.method": ("grams", "unknown method 'grams'"),
    "features.outputs": (
        "logit",
        "needed 'logits', 'loss', class indices or a function of .*, got 'logit'",
    ),
    "ansatz.powers": ((), r"config.ansatz.powers: wanted one or more numbers above 0, got \(\)"),
    "ansatz.draws": (-1, "config.ansatz.draws: wanted 0 or more"),
    "pictures.layers": ("Conv_(", r"config.pictures.layers: 'Conv_\(' is not a regular expression"),
    "recipients.layers": ("Conv_[", r"config.recipients.layers: 'Conv_\[' is not a regular expression"),
    "recipients.inits": ((), "config.recipients.inits: wanted one or more"),
    "recipients.learning_rates": ((0.1, -0.1), "config.recipients.learning_rates: wanted numbers above 0"),
    "recipients.outer_rates": (1, "config.recipients.outer_rates: wanted 0 where learning_rates has one rate"),
    "recipients.widths": ((0.0,), "config.recipients.widths: wanted factors above 0"),
    "recipients.train_sizes": ((-5,), "config.recipients.train_sizes: wanted numbers of images"),
    "recipients.num_images": (0, "config.recipients.num_images: wanted 1 or more, got 0"),
    "recipients.devices": (-1, "config.recipients.devices: wanted 0 or more"),
    "donor.source": ("npz:gs://bucket/donor.npz", "config.donor.source: wanted a path on this machine, got the URL"),
    "data.name": ("folder:s3://bucket/pictures", "config.data.name: wanted a path on this machine, got the URL"),
}


@pytest.mark.parametrize(("field", "value", "message"), [(field, *case) for field, case in BAD.items()], ids=BAD)
def test_every_number_and_name_is_checked(field, value, message):
    with pytest.raises(UserError, match=message) as error:
        changed(**{field: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("inits", ("nfm", "copy", "nfm"), "none of them twice"),
        ("widths", (1.0, 1.0000001), "factors that differ in their first six digits"),
        ("inits", ("kaiming_normal@untrained",), "'untrained' does not fit: it is for methods with a donor"),
        ("widths", ("wide",), "config.recipients.widths: wanted a finite number, got 'wide'"),
        ("train_sizes", (0.5,), "config.recipients.train_sizes: wanted a whole number, got 0.5"),
        ("learning_rates", (float("nan"),), "config.recipients.learning_rates: wanted a finite number, got nan"),
    ],
)
def test_every_item_of_a_list_is_checked(name, values, message):
    with pytest.raises(UserError, match=message):
        changed(**{f"recipients.{name}": values})


def test_a_donor_that_would_need_a_donor_or_images_is_refused():
    for init in ("nfm", "lsuv", "coupled_nfm", "copy", "orthogonal@lsuv"):
        with pytest.raises(UserError, match="config.donor.init: wanted an init that needs neither a donor nor images"):
            changed(**{"donor.init": init})


@pytest.fixture
def untrained_only(monkeypatch):
    """Fails a test that trains anything or extracts features."""

    def train(*arguments):
        raise AssertionError("it was trained")

    monkeypatch.setattr(donors, "train_donor", train)


WIDE, COUPLED = {"recipients.widths": (1.0, 2.0)}, {"recipients.inits": ("coupled_nfm",)}
UNFIT = {
    "layer": ({"recipients.layers": "conv"}, "matches no layer. Layers: Conv_0, Conv_1, Dense_0"),
    "pictures": ({"pictures.layers": "nothing"}, "'nothing' matches no layer. Layers: Conv_0, Conv_1"),
    "copy, wider": (WIDE | {"recipients.inits": ("copy",)}, "init 'copy': layer 'Conv_0': .*'copy' needs the same"),
    "nfm, wider": (WIDE | {"recipients.inits": ("nfm",)}, r"init 'nfm': layer 'Conv_1': the donor's kernel is"),
    "control, wider": (WIDE | {"recipients.inits": ("matched_isotropic",)}, "layer 'Conv_1': the donor's kernel is"),
    "spaced, wider": (WIDE | {"recipients.inits": ("copy_spaced",)}, "'copy_spaced' needed at most the donor's 4"),
    "delta, narrower": (
        {"recipients.inits": ("delta_orthogonal",), "model.features": (6, 4)},
        "init 'delta_orthogonal': layer 'Conv_1': .*at least as many filters",
    ),
    "coupled, other size": (COUPLED | {"donor.resize": 10}, r"the donor \(10, 10\), the recipient \(8, 8\)"),
    "no factor": (
        COUPLED | {"features.method": "patch_jacobian", "recipients.inits": ("matched_spectrum:coupled_agop",)},
        "needs gradient Gram matrices, which config.features.method 'patch_jacobian' does not give",
    ),
    "train_sizes": ({"recipients.train_sizes": (10**6,)}, "train_size: wanted 1 to 1150"),
    "batch_size": ({"recipients.train_sizes": (32,)}, "config.train: batch_size 64 is larger than .* 32 images"),
    "donor's batch": ({"donor.train.batch_size": 5000}, "config.donor.train: batch_size 5000 is larger"),
    "devices": ({"recipients.devices": 99}, "config.recipients.devices: wanted 0 for all, or 1 to"),
    "class": ({"features.outputs": "3,10"}, r"class indices from 0 to 9, got \[3, 10\]"),
    "size": ({"model.name": "lenet5", "model.features": None}, "lenet5: wanted images of at least 16 x 16, got 8 x 8"),
    "size of another model": (
        {"model.name": "alexnet", "model.features": None},
        "alexnet: wanted images of at least 63 x 63",
    ),
    "donor's data": ({"donor.data": "digit"}, "unknown data set 'digit'"),
}


@pytest.mark.parametrize(("fields", "message"), UNFIT.values(), ids=UNFIT)
def test_shapes_are_checked_before_the_donor_is_trained(fields, message, tmp_path, untrained_only):
    config = experiment_config()
    config.model.features = (4, 6)
    shrink(config, inits=("kaiming_normal",))
    config.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=message):
        experiment.run(config, tmp_path)
    assert not (tmp_path / "donor").exists()


def test_what_fits_goes_on_to_training(tmp_path, untrained_only):
    """Every init that this donor and these widths allow."""
    config = experiment_config()
    config.model.features = (4, 6)
    shrink(config, inits=("kaiming_normal", "coupled_nfm", "copy_tiled", "spatial", "first_layer_nfm", "lsuv"))
    config.recipients.widths = (1.0, 2.0)
    with pytest.raises(AssertionError, match="it was trained"):
        experiment.run(config, tmp_path)


def test_a_large_network_is_checked_within_seconds(tmp_path, untrained_only):
    """Thirteen inits of a VGG11 at 224 x 224, whose factorisations alone would take minutes."""
    config = experiment_config()
    config.model.name, config.data.resize, config.data.rgb = "vgg11", 224, True
    shrink(config, inits=("nfm", "agop", "he_nfm", "he_sqrt_agop", "matched_spectrum", "copy", "coupled_agop", "nope"))
    config.recipients.inits = config.recipients.inits[:-1]
    with pytest.raises(AssertionError, match="it was trained"):
        experiment.run(config, tmp_path)


def test_places_where_no_directory_can_be(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for path in (file, file / "run", file / "a" / "b"):
        with pytest.raises(UserError, match=f"--workdir: wanted a directory, but '{file}' is a file"):
            local_directory(path)
    for url in ("gs://bucket/run", "s3://bucket", "HTTPS://host/run"):
        with pytest.raises(UserError, match="--workdir: wanted a path on this machine, got the URL"):
            local_directory(url)
    with pytest.raises(UserError, match="--workdir: .* cannot be a directory"):
        local_directory(tmp_path / ("x" * 300) / "run")
    assert local_directory(tmp_path / "new[1] {a}*?" / "run") == tmp_path / "new[1] {a}*?" / "run"
    assert file.read_text() == "mine"


def test_a_directory_that_cannot_be_made(untrained_only):
    """Root may write anywhere but there."""
    with pytest.raises(UserError, match="--workdir: '/proc/agop' cannot be written"):
        experiment.run(experiment_config(), "/proc/agop")


def test_a_dangling_link_is_no_directory(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="--workdir: wanted a directory, but .*link' is a file"):
        local_directory(tmp_path / "link" / "run")


def test_numbers_of_numpy_are_numbers():
    assert changed(**{"recipients.learning_rates": tuple(map(float, np.logspace(-2, -1, 2)))}).recipients
