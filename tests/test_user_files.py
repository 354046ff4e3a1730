"""A work directory may hold its user's own files: no start, run, kill or resume touches any of them."""

import hashlib
import os
import signal
import time
from pathlib import Path

import pytest
from forked import Program

from agop_jax.core.errors import UserError
from agop_jax.experiments import experiment, leftovers, workdir
from agop_jax.experiments.config import experiment_config, shrink
from agop_jax.training.resumable import remove_checkpoints

# every pattern by which a program may take a file for its own leftover, in the places where this one writes and others
MINE = (
    "thesis.tmp-old/chapter.tex",
    "thesis.tmp-0a1b2c3d/chapter.tex",
    "donor.tmp-old/weights.npz",
    "donor.tmp-0A1B2C3D/weights.npz",
    "features.tmp-12345678.bak/x",
    "my_features.tmp-12345678/x",
    "notes/.draft.tmp",
    "notes/.results.csv.123.tmp",
    "notes/donor.tmp-0a1b2c3d/x",
    ".draft.tmp",
    ".draft.123.tmp",
    ".results.csv.tmp",
    ".results.csv.old.tmp",
    ".results.csv.123.tmp~",
    "results.csv.123.tmp",
    ".thesis.csv.99.tmp",
    ".lock.123.tmp",
    ".git/index.lock",
    "metrics/.mine.jsonl.12.tmp",
    "metrics/mine.jsonl",
    "metrics/notes/.donor.jsonl.12.tmp",
    "filters/.mine.npz.12.tmp",
    "filters/mine.npz",
    "recipients/mine.safetensors",
    "recipients/.mine.safetensors.12.tmp",
    "figures/.photo.png.12.tmp",
    "figures/photo.png",
    "figures/.donor.pdf.12.tmp",
    "figures/donor_photo.png",
    "figures/.donor_photo.png.12.tmp",
    "figures/accuracy_of_my_model.svg",
    "figures/.learning_curves_old.png.12.tmp",
    "figures/loss_gap_explained.png",
    "figures/.filters.png.12.tmp/x",
    "metrics/donor.jsonl.bak",
    ".results.csv.00.tmp",
    ".results.csv.-1.tmp",
    "features_untrained.tmp-deadbeef.txt",
    "donor.tmp-0a1b2c3/x",
    "donor.tmp-0a1b2c3d4/x",
    "donor.tmp-0a1b2c3d (copy)/x",
    "größe/.résumé.tmp",
    "tensorboard/mine/events.out.tfevents.1.host",
    "tensorboard/donor/notes.txt",
    "checkpoints/mine/1/state",
    "checkpoints/donor/notes.txt",
    "checkpoints/donor/best/model.pt",
    "checkpoints/12/model.pt",
    "checkpoints.tmp-0a1b2c3d/x",
    "features_mine/metadata.json",
    "donor.bak/metadata.json",
    "tmp/x",
    "x.tmp/y",
    "environment.json.bak",
    "run[1]/{a}/*.txt",
)
UNFINISHED = (
    "donor.tmp-0a1b2c3d/arrays/x",
    "features.tmp-12345678/arrays/x",
    "features_untrained.tmp-deadbeef/metadata.json",
    ".results.csv.123.tmp",
    ".learning_rates.csv.1.tmp",
    ".report.html.99999.tmp",
    ".environments.jsonl.7.tmp",
    "metrics/.donor.jsonl.123.tmp",
    "metrics/.matched_spectrum-he_agop@lsuv_n500_w0.5_s3.jsonl.123.tmp",
    "filters/.he_nfm@mix=0.5_n1150_w1_s0.npz.123.tmp",
    "recipients/.he_nfm@mix=0.5_n1150_w1_s0.safetensors.123.tmp",
    "figures/.donor_heat_maps.svg.123.tmp",
    "figures/.accuracy_n500_w1.png.123.tmp",
    "figures/.accuracy_by_train_size_at_width_1.svg.1.tmp",
    "figures/.accuracy_by_width_with_500_images.png.1.tmp",
    "figures/.loss_gap_n500_w1e-05.svg.1.tmp",
)


def write(directory: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(f"contents of {name}")


def hashes(directory: Path) -> dict[str, str]:
    return {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in MINE}


def test_a_start_removes_what_it_named_and_nothing_else(tmp_path):
    write(tmp_path, MINE + UNFINISHED)
    (tmp_path / "donor.tmp-00000000").symlink_to(tmp_path / "thesis.tmp-old")
    before = hashes(tmp_path)
    leftovers.remove_unfinished(tmp_path)
    assert hashes(tmp_path) == before
    assert not [name for name in UNFINISHED if (tmp_path / name).exists()]
    assert (tmp_path / "donor.tmp-00000000").is_symlink()


def test_checkpoints_go_and_what_lies_beside_them_stays(tmp_path):
    checkpoint = ("donor/3/_CHECKPOINT_METADATA", "donor/3/state/d/x", "donor/4.orbax-checkpoint-tmp/state/x")
    write(tmp_path, (*checkpoint, "donor/7/model.pt", "donor/notes.txt", "donor/best/3/_CHECKPOINT_METADATA"))
    remove_checkpoints(tmp_path / "donor")
    left = sorted(path.relative_to(tmp_path / "donor").as_posix() for path in (tmp_path / "donor").rglob("*.*"))
    assert left == ["7/model.pt", "notes.txt"]
    assert (tmp_path / "donor/best/3/_CHECKPOINT_METADATA").exists()
    write(tmp_path, ("nfm/3/_CHECKPOINT_METADATA",))
    remove_checkpoints(tmp_path / "nfm")
    assert not (tmp_path / "nfm").exists()


def small(directory: Path, **fields):
    config = experiment_config()
    config.model.features = (4, 6)
    shrink(config, inits=("kaiming_normal", "nfm"))
    config.donor.train.steps = config.train.steps = 2
    config.features.num_images = config.recipients.num_images = 16
    config.stages = "donor,features,recipients"
    config.ansatz.draws = 0
    config.update_from_flattened_dict(fields)
    return experiment.run(config, directory)


@pytest.mark.slow
def test_ten_runs_a_kill_and_a_resume_touch_nothing(tmp_path, monkeypatch):
    """Also runs with another config, which give up the checkpoints of the one before."""
    monkeypatch.setattr(experiment, "describe_donor", lambda *arguments: None)
    write(tmp_path, MINE)
    before = hashes(tmp_path)
    options = ("--config=configs/digits.py:quick", "--config.donor.train.steps=100000", "--config.save_every=0.1")
    checkpoints = lambda: {*(tmp_path / "checkpoints" / "donor").glob("*/_CHECKPOINT_METADATA")}
    for end in (signal.SIGKILL, signal.SIGTERM):
        earlier, process = checkpoints(), Program(*options, f"--workdir={tmp_path}")
        while len(checkpoints() - earlier) < 2:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        process.send_signal(end)
        process.communicate()
        assert hashes(tmp_path) == before, end
    for seeds in (1, 1, 2, 2, 3, 3, 3):
        small(tmp_path, **{"recipients.seeds": seeds})
        assert hashes(tmp_path) == before
    small(tmp_path, **{"recipients.seeds": 3, "stages": "report"})
    assert hashes(tmp_path) == before
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["12", "donor", "mine"]


@pytest.mark.parametrize(
    "name", ["config.json", "results.csv", "report.html", "figures/filters.png", "metrics/donor.jsonl"]
)
def test_a_file_of_the_users_that_would_be_replaced_is_named(name, tmp_path):
    write(tmp_path, (name,))
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=f"{name}' was not written by this program, which would replace it"):
        small(tmp_path)
    assert (tmp_path / name).read_text() == "{}"
    assert not (tmp_path / "donor").exists()


def test_a_lock_of_the_users_is_left_alone(tmp_path):
    (tmp_path / ".lock").write_text("locked by another program, pid 7")
    with pytest.raises(UserError, match=r"\.lock' was not written by this program"), workdir.locked(tmp_path):
        pass
    assert (tmp_path / ".lock").read_text() == "locked by another program, pid 7"
