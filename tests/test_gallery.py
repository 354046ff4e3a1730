"""What is drawn of a donor, of images of any number of channels; and that no picture ends an experiment."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from agop_jax.core.errors import UserError
from agop_jax.experiments import experiment, gallery
from agop_jax.experiments.config import experiment_config, shrink
from agop_jax.results import feature_figures
from agop_jax.training.resumable import Stopped

DRAWN = ["donor_heat_maps", "donor_eigenvectors", "donor_transforms", "donor_feature_maps"]
RNG = np.random.default_rng(0)


def write_file(path, channels, **more):
    """24 images of this many channels in classes 1 to 3, 6 test images, and other arrays."""
    labels = np.arange(24) % 3 + 1
    draw = lambda n: RNG.integers(0, 256, (n, 8, 8, channels), dtype=np.uint8)
    np.savez(path, train_images=draw(24), train_labels=labels, test_images=draw(6), test_labels=labels[:6], **more)
    return f"npz:{path}"


def make_config(name, **fields):
    """A tiny network, of which everything is done in seconds."""
    config = experiment_config()
    config.model.features = (4, 6)
    shrink(config, inits=("kaiming_normal",))
    config.donor.train.steps = config.train.steps = 2
    config.donor.train.batch_size = config.train.batch_size = 8
    config.features.num_images, config.recipients.seeds, config.ansatz.draws = 8, 1, 0
    config.data.name = name
    config.update_from_flattened_dict(fields)
    return config


def entries(path):
    return json.loads((path / "gallery.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("channels", [2, 4, 5, 13])
def test_images_of_any_number_of_channels_are_drawn(channels, tmp_path):
    config = make_config(write_file(tmp_path / "file.npz", channels), stages="donor,features")
    experiment.run(config, tmp_path / "run")
    assert [entry["name"] for entry in entries(tmp_path / "run")["entries"]] == DRAWN
    assert "note" not in entries(tmp_path / "run")


@pytest.mark.parametrize(
    ("channels", "titles"),
    [
        (1, ["picture"]),
        (2, ["channel 0", "channel 1"]),
        (3, ["picture"]),
        (4, ["channel 0", "channel 2", "channel 3"]),
        (13, ["channel 0", "channel 6", "channel 12"]),
    ],
)
def test_a_picture_of_many_channels_is_shown_in_grey(channels, titles):
    picture = RNG.integers(0, 256, (5, 7, channels), dtype=np.uint8)
    figure = feature_figures.transform_grid(picture, {"Conv_0": np.ones((5, 7))})
    assert [axes.get_title(loc="left") for axes in figure.axes] == [*titles, "Conv_0"]
    for title, axes in zip(titles, figure.axes, strict=False):
        shown = np.asarray(axes.images[0].get_array())
        wanted = picture if channels == 3 else picture[..., int(title.split()[-1]) if channels > 1 else 0]
        np.testing.assert_array_equal(shown, wanted)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished experiment in a folder of an odd name, on data with validation images of their own."""
    folder = tmp_path_factory.mktemp("gallery") / "run[1] {a}*?"
    folder.mkdir()
    own = {"val_images": RNG.integers(0, 256, (6, 8, 8, 2), dtype=np.uint8), "val_labels": np.arange(6) % 3 + 1}
    name = write_file(folder / "file.npz", 2, **own, site=np.array(["a"]))
    experiment.run(make_config(name), folder / "work")
    return folder / "work"


@pytest.mark.slow
def test_the_page_says_which_data_were_used(whole):
    described = json.loads((whole / "data.json").read_text())
    assert described["classes"] == ["1", "2", "3"]
    assert described["images"] == {"train": 24, "validation": 6, "test": 6}
    assert described["origins"] == {"train": "train_images", "validation": "val_images", "test": "test_images"}
    assert described["unused"] == ["site"]
    page = (whole / "report.html").read_text()
    assert "3 classes: 1, 2, 3" in page.replace("<wbr>", "")
    assert "train: 24, train_images; validation: 6, val_images; test: 6, test_images" in page.replace("<wbr>", "")
    assert "<b>Not used:</b> site" in page


def test_the_donors_own_data_are_named(tmp_path):
    config = make_config(write_file(tmp_path / "a.npz", 3), stages="donor")
    config.donor.data = write_file(tmp_path / "b.npz", 3)
    experiment.run(config, tmp_path / "run")
    donor = json.loads((tmp_path / "run" / "data.json").read_text())["donor"]
    assert (donor["name"], donor["images"]["train"]) == (config.donor.data, 19)
    experiment.run(config, tmp_path / "run")  # they compare as the same


FAULTS = {
    "own": (UserError("no such layer"), "no such layer"),
    "other": (ZeroDivisionError("division by zero\nof much"), "division by zero"),
    "silent": (MemoryError(), "MemoryError"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("error", "said"), FAULTS.values(), ids=FAULTS)
def test_nothing_of_the_gallery_ends_a_run(error, said, tmp_path, monkeypatch, caplog):
    def fail(*_, **__):
        raise error

    config = make_config(write_file(tmp_path / "file.npz", 2))
    note = f"There are no pictures of the donor's features: {said}"
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, logger="absl"):
        patch.setattr(feature_figures, "transform_grid", fail)
        experiment.run(config, tmp_path / "run")
    assert entries(tmp_path / "run")["note"] == note
    assert note in caplog.text
    assert note.replace("'", "&#39;") in (tmp_path / "run" / "report.html").read_text()
    experiment.run(config, tmp_path / "run")  # what went wrong is tried again
    assert [entry["name"] for entry in entries(tmp_path / "run")["entries"]] == DRAWN
    assert note.replace("'", "&#39;") not in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.slow
def test_a_damaged_gallery_is_drawn_anew(tmp_path):
    config = make_config(write_file(tmp_path / "file.npz", 1), stages="donor,features")
    experiment.run(config, tmp_path / "run")
    (tmp_path / "run" / "gallery.json").write_text("{")
    experiment.run(config, tmp_path / "run")
    assert [entry["name"] for entry in entries(tmp_path / "run")["entries"]] == DRAWN


def test_a_signal_still_stops(monkeypatch, tmp_path):
    def stop(*_, **__):
        raise Stopped(15)

    monkeypatch.setattr(feature_figures, "transform_grid", stop)
    config = make_config(write_file(tmp_path / "file.npz", 1), stages="donor,features")
    with pytest.raises(Stopped):
        experiment.run(config, tmp_path / "run")


def test_a_field_turns_the_gallery_off(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("drawn")

    monkeypatch.setattr(gallery, "_drawn", fail)
    fields = {"stages": "donor,features", "pictures.enabled": False, "pictures.image": "/nowhere.png"}
    experiment.run(make_config(write_file(tmp_path / "file.npz", 5), **fields), tmp_path / "run")
    assert not (tmp_path / "run" / "gallery.json").exists()


@pytest.mark.slow
def test_the_gallery_may_be_turned_off_later(whole):
    before = entries(whole)
    name = json.loads((whole / "data.json").read_text())["name"]
    experiment.run(make_config(name, **{"pictures.enabled": False}), whole)
    assert entries(whole) == before


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_picture_for_a_donor_of_other_channels_is_refused_at_once(channels, mode, tmp_path):
    Image.new(mode, (8, 8)).save(tmp_path / "x.png")
    config = make_config(write_file(tmp_path / "file.npz", channels), **{"pictures.image": str(tmp_path / "x.png")})
    said = (
        f"pictures.image: the donor takes images of {channels} channels, '{tmp_path}/x.png' is a picture in grey or RGB"
    )
    with pytest.raises(UserError) as error:
        experiment.run(config, tmp_path / "run")
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "mode"), [(1, "RGB"), (3, "L"), (3, "I;16")])
def test_a_picture_for_a_donor_of_grey_or_colour_is_drawn(channels, mode, tmp_path):
    levels = np.full((8, 8), 32768, np.uint16)
    picture = Image.fromarray(levels) if mode == "I;16" else Image.new(mode, (8, 8))
    picture.save(tmp_path / "x[1].tiff")
    fields = {"pictures.image": str(tmp_path / "x[1].tiff"), "stages": "donor,features"}
    experiment.run(make_config(write_file(tmp_path / "file.npz", channels), **fields), tmp_path / "run")
    assert [entry["name"] for entry in entries(tmp_path / "run")["entries"]] == DRAWN
