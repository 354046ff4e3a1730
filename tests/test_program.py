"""The program as its user meets it: what it leaves, what it keeps, what it says when something is wrong."""

import csv
import fcntl
import json
import os
import shutil
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from forked import call, program


def contents(workdir: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(workdir)): p.read_bytes() for p in workdir.rglob("*") if p.is_file() and p.name != ".lock"
    }


def rows(workdir: Path) -> list[dict[str, str]]:
    with (workdir / "results.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("digits")
    done = call(workdir)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "kaiming_normal" in done.stdout
    return workdir


def test_leaves_what_the_readme_promises(finished):
    for name in ("config.json", "environments.jsonl", "results.csv", "summary.csv", "report.html", "donor.json"):
        assert (finished / name).stat().st_size > 0, name
    assert len(rows(finished)) == 6  # 3 inits x 2 seeds
    assert len(list((finished / "metrics").glob("*.jsonl"))) == 7  # and the donor
    assert len(list((finished / "figures").glob("*.png"))) >= 4
    assert (finished / "features" / "metadata.json").exists()
    assert list((finished / "tensorboard" / "donor").iterdir())


def test_leaves_what_the_donor_learned(finished):
    with (finished / "ansatz.csv").open() as file:
        layers = {(row["layer"], row["comparison"]) for row in csv.DictReader(file)}
    comparisons = ("trained", "centred", "untrained", "centred_both", "initial")
    assert layers == {(f"Conv_{i}", c) for i in range(3) for c in comparisons}  # what recipients.layers selects
    shown = [entry["name"] for entry in json.loads((finished / "gallery.json").read_text())["entries"]]
    assert shown == ["donor_heat_maps", "donor_eigenvectors", "donor_transforms", "donor_feature_maps"]
    assert all((finished / "figures" / f"{name}.png").stat().st_size > 0 for name in shown)
    page = (finished / "report.html").read_text()
    assert "What the donor learned" in page
    assert "A picture through the square root" in page


@pytest.mark.slow
def test_another_picture_is_drawn_anew(finished, tmp_path):
    """In colour and of another size, for a donor of grey 8 x 8 images; nothing but pictures and page changes."""
    workdir, photograph = tmp_path / "copy", tmp_path / "photograph.png"
    shutil.copytree(finished, workdir)
    matplotlib.image.imsave(photograph, np.random.default_rng(0).random((20, 30, 3)))
    before = contents(workdir)
    assert call(workdir, f"--config.pictures.image={photograph}").returncode == 0
    changed = {name for name, data in contents(workdir).items() if data != before.get(name)}
    drawn = {f"figures/donor_{name}.{kind}" for name in ("transforms", "feature_maps") for kind in ("png", "svg")}
    assert changed == drawn | {"gallery.json", "config.json", "report.html"}


@pytest.mark.slow
def test_second_call_redoes_nothing_and_more_seeds_only_add(finished, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(finished, workdir)
    before, donor = contents(workdir), (workdir / "donor" / "metadata.json").stat().st_mtime_ns
    assert call(workdir).returncode == 0
    after = contents(workdir)
    assert after == before
    assert call(workdir, "--config.recipients.seeds=3").returncode == 0
    assert (workdir / "donor" / "metadata.json").stat().st_mtime_ns == donor
    assert [row for row in rows(workdir) if int(row["seed"]) < 2] == rows(finished)
    assert len(rows(workdir)) == 9


def refused(workdir: Path, *flags: str, config: str = "configs/digits.py:quick") -> str:
    """The one line of an error, after checking that it is one and that nothing in the directory changed."""
    before = contents(workdir)
    done = call(workdir, *flags, config=config)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("agop_jax: ")]
    assert len(lines) == 1, done.stderr
    assert contents(workdir) == before
    return lines[0]


BAD = {
    "config field": (["--config.modell.name=lenet5"], ["modell", "model"]),
    "config type": (["--config.train.steps=many"], ["many"]),
    "data set": (["--config.data.name=digit"], ["unknown data set 'digit'", "Did you mean 'digits'"]),
    "data file": (["--config.data.name=npz:/nowhere.npz"], ["no file '/nowhere.npz'"]),
    "init": (["--config.recipients.inits=('kaiming',)"], ["unknown init 'kaiming'", "kaiming_normal"]),
    "layer": (["--config.recipients.layers=conv"], ["'conv' matches no layer", "Conv_0, Conv_1, Conv_2, Dense_0"]),
    "model": (["--config.model.name=vgg"], ["unknown model 'vgg'", "vgg11"]),
    "field of another model": (
        ["--config.model.name=vgg11"],
        ["unknown field of model 'vgg11' 'features'", "set the field: --config.model.features=()"],
    ),
    "too small": (["--config.model.name=small_cnn", "--config.data.validation=2.0"], ["a fraction from 0, below 1"]),
    "method": (["--config.features.method=grams"], ["unknown method 'grams'", "Did you mean 'gram'"]),
    "picture": (["--config.pictures.image=/nowhere.png"], ["'/nowhere.png' is no readable picture"]),
    "diverging donor": (["--config.donor.learning_rate=1e30"], ["diverged", "lower config.donor.learning_rate"]),
}


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "said"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(flags, said, tmp_path):
    done = call(tmp_path, *flags)
    assert done.returncode == 2, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("agop_jax: ")]
    assert len(lines) == 1
    assert "Traceback" not in done.stderr
    for words in said:
        assert words in lines[0]
    assert not (tmp_path / "donor").exists() or "matches no layer" in said[0]  # only that needs the donor
    assert not (tmp_path / "results.csv").exists()


@pytest.mark.slow
def test_missing_flags_and_files(tmp_path):
    assert "unknown config file 'configs/digit.py'. Did you mean 'configs/digits.py'?" in refused(
        tmp_path, config="configs/digit.py:quick"
    )
    assert "unknown config file 'nowhere/x.py'. Known: none." in refused(tmp_path, config="nowhere/x.py")
    done = program()
    assert done.returncode == 2
    assert "--config is missing" in done.stderr


@pytest.mark.slow
def test_a_mode_that_means_nothing_runs_nothing(tmp_path):
    said = refused(tmp_path, config="configs/digits.py:quck")
    assert "unknown mode of the config file 'quck'. Did you mean 'quick'? Known: quick." in said
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_another_config_leaves_the_results_alone(finished):
    assert "train.steps (was 20, now 21)" in refused(finished, "--config.train.steps=21")


@pytest.mark.slow
def test_a_mended_config_goes_on_in_the_same_workdir(tmp_path):
    """What a failed call left binds nobody: nothing that depends on the changed fields was finished."""
    stages, one = "--config.stages=donor,features,recipients", "--config.recipients.inits=('nfm',)"
    assert call(tmp_path, stages, one, "--config.donor.learning_rate=1e30").returncode == 2
    assert call(tmp_path, stages, one, "--config.recipients.layers=conv").returncode == 2
    assert call(tmp_path, stages, one).returncode == 0


@pytest.mark.slow
def test_damaged_features_are_named(finished, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(finished, workdir)
    file = next(
        path for path in (workdir / "features" / "arrays").rglob("*") if path.stat().st_size > 1000 and path.is_file()
    )
    file.write_bytes(file.read_bytes()[:100])
    done = call(workdir, "--config.recipients.seeds=3")
    assert done.returncode == 2
    assert str(file) in done.stderr
    assert rows(workdir) == rows(finished)


@pytest.mark.slow
def test_second_process_on_one_workdir_refuses(finished):
    with (finished / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "in use by another process" in refused(finished)


@pytest.mark.slow
def test_images_of_another_type_are_named(tmp_path):
    random = np.random.default_rng(0)
    file = tmp_path / "floats.npz"
    np.savez(file, images=random.normal(size=(20, 8, 8, 1)), labels=np.arange(20) % 2)
    assert "wanted uint8 images" in refused(tmp_path / "run", f"--config.data.name=npz:{file}")


def test_lenet_on_real_mnist(tmp_path):
    folder = os.environ.get("AGOP_JAX_DATA")
    if not folder or not (Path(folder) / "mnist.npz").exists():
        pytest.skip("set AGOP_JAX_DATA to a folder with mnist.npz")
    done = call(tmp_path, f"--config.data.name=npz:{folder}/mnist.npz", config="configs/mnist.py:quick")
    assert done.returncode == 0, done.stderr[-2000:]
    assert {row["init"] for row in rows(tmp_path)} == {"kaiming_normal", "nfm", "copy"}
