"""Interrupted runs end as uninterrupted ones do, bit for bit; nothing is left half written.

`AGOP_JAX_KILLS=20 pytest tests/test_crash.py` kills a sweep twenty times; the default is small to keep the suite short.
"""

import contextlib
import csv
import errno
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from forked import Program

from agop_jax import models
from agop_jax.core import arrays
from agop_jax.core.errors import UserError
from agop_jax.data import Pipeline, load, subset
from agop_jax.experiments import donors
from agop_jax.experiments.config import experiment_config
from agop_jax.experiments.settings import Config
from agop_jax.training import Settings, Trainer
from agop_jax.training.device_data import DeviceData
from agop_jax.training.resumable import Stopped, stoppable, train_resumable

KILLS = int(os.environ.get("AGOP_JAX_KILLS", "2"))
KILLS_A_SWEEP = 4  # more of them find a sweep that is done
TIMED = ("seconds", "images_per_second", "draw_seconds")  # wall clock, the only columns that may differ


def start(workdir: Path) -> Program:
    overrides = {
        "recipients.inits": "('kaiming_normal','coupled_nfm@untrained')",
        "recipients.learning_rates": "(0.05,0.1)",
        "donor.train.steps": "600",
        "train.steps": "30",
        "save_every": "0.5",
        "ansatz.draws": "0",
        "pictures.layers": "Conv_0",
    }
    flags = [f"--config.{name}={value}" for name, value in overrides.items()]
    return Program("--config=configs/digits.py:quick", f"--workdir={workdir}", *flags)


def finish(workdir: Path) -> None:
    process = start(workdir)
    _, errors = process.communicate()
    assert process.returncode == 0, errors[-2000:]


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return [{name: value for name, value in row.items() if name not in TIMED} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[Path, float]:
    """A finished sweep, and about how long one takes once compiled code is kept."""
    workdir = tmp_path_factory.mktemp("whole")
    start = time.monotonic()
    finish(workdir)
    return workdir, 0.7 * (time.monotonic() - start)  # the rest loads modules and compiles


def assert_same(found: Path, wanted: Path) -> None:
    for name in ("results.csv", "learning_rates.csv", "fits.csv", "spectra.csv"):
        assert table(found / name) == table(wanted / name), name
    for metrics in sorted((wanted / "metrics").iterdir()):
        assert (found / "metrics" / metrics.name).read_bytes() == metrics.read_bytes(), metrics.name
    for name in ("donor", "features", "features_untrained"):
        trees = arrays.load_arrays(found / name)[0], arrays.load_arrays(wanted / name)[0]
        jax.tree.map(np.testing.assert_array_equal, *trees)
    assert not [path for path in found.rglob("*") if ".tmp" in path.name]
    assert not any((found / "checkpoints").iterdir())


def stage(workdir: Path) -> str:
    """What a program was at when it was killed, told from what it left."""
    for made, at in (("donor", "donor"), ("features_untrained", "features"), ("report.html", "recipients, report")):
        if not (workdir / made).exists():
            return at
    return "end"


def kill_at(workdir: Path, seconds: float) -> bool:
    """Kill -9 so long after the start; whether there was something left to kill."""
    process = start(workdir)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    alive = process.poll() is None
    process.kill()
    process.wait()
    return alive


@pytest.mark.slow
def test_killed_at_random_moments(uninterrupted, tmp_path, record_testsuite_property):
    """Kill -9 from the start to the last recipient: in donor training, extraction, saving, recipients."""
    wanted, seconds = uninterrupted
    moments, killed = random.Random(0), []
    for number in itertools.count():
        workdir = tmp_path / str(number)
        for kill in range(min(KILLS_A_SWEEP, KILLS - len(killed))):
            # the first early, in the donor's training; the others find what was saved, and get further
            if not kill_at(workdir, moments.uniform(0.15, 0.3 + 0.15 * kill) * seconds):
                break
            killed.append(stage(workdir))
        finish(workdir)
        assert_same(workdir, wanted)
        if len(killed) == KILLS:
            break
    record_testsuite_property("killed in", str(Counter(killed)))
    print(f"killed in {Counter(killed)}, {number + 1} sweeps")


@pytest.mark.slow
def test_sigterm_saves_and_exits_cleanly(uninterrupted, tmp_path):
    wanted, _ = uninterrupted
    process = start(tmp_path)
    while not (tmp_path / "checkpoints" / "donor").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "agop_jax: stopped by SIGTERM: the same command continues from here" in errors
    assert "Traceback" not in errors
    finish(tmp_path)
    assert_same(tmp_path, wanted)


@pytest.fixture(scope="module")
def setting():
    return small_setting()


def small_setting():
    dataset = load("digits", validation=0.2)
    trainer = Trainer(
        models.create("small_cnn", 10, features=(4, 8)), Pipeline.of(dataset, pad=1, flip=True), Settings(steps=24)
    )
    variables = jax.jit(trainer.model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    return trainer, variables, DeviceData.of(dataset, trainer.mesh), subset(dataset.train, 200, 0)


def run(setting, directory, on_step=lambda run, step: None, save_every=1e9):
    trainer, variables, data, indices = setting
    return train_resumable(trainer, trainer.start(variables), data, indices, 0.1, 3, directory, on_step, save_every)


@pytest.mark.parametrize("moment", [1, 7, 12, 23])
def test_stopped_and_resumed_run_is_the_same_run(moment, setting, tmp_path):
    """With augmentation, momentum and the running means of the history."""
    wanted = run(setting, tmp_path / "whole")

    def stop(_, step):
        if step == moment:
            os.kill(os.getpid(), signal.SIGTERM)

    with stoppable(), pytest.raises(Stopped):
        run(setting, tmp_path / "stopped", stop)
    assert (tmp_path / "stopped").exists()
    resumed = run(setting, tmp_path / "stopped")
    assert not (tmp_path / "stopped").exists()
    assert resumed.history == wanted.history
    jax.tree.map(np.testing.assert_array_equal, resumed.state, wanted.state)


@pytest.mark.parametrize("name", ["run[1]", "a{b}*?", "back\\slash"])
def test_a_stopped_run_goes_on_in_every_path(name, setting, tmp_path):
    """Brackets and the like are characters of a name, and no pattern."""

    def stop(_, step):
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    with stoppable(), pytest.raises(Stopped):
        run(setting, tmp_path / name / "checkpoints", stop)
    steps = []
    run(setting, tmp_path / name / "checkpoints", lambda _, step: steps.append(step))
    assert steps[0] == 8
    assert not list((tmp_path / name).iterdir())


def test_damaged_checkpoint_is_named(setting, tmp_path):
    with stoppable(), pytest.raises(Stopped):
        run(setting, tmp_path / "run", lambda _, step: os.kill(os.getpid(), signal.SIGTERM))
    for file in (tmp_path / "run").rglob("*"):
        if file.is_file() and "about" not in file.parts:
            file.write_bytes(b"")
    left = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(
        UserError, match=r"run/1' cannot be read \(.+\): restore its files, or move .*run' elsewhere"
    ) as error:
        run(setting, tmp_path / "run")
    assert "delete" not in str(error.value)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == left


@pytest.mark.parametrize("moment", [1, 12])
def test_a_run_goes_on_after_the_disk_was_full(moment, setting, tmp_path, monkeypatch):
    """By the free bytes, before Orbax begins; the checkpoint before stays."""
    wanted, space = run(setting, tmp_path / "whole"), shutil.disk_usage(tmp_path)

    def fill(_, step):
        if step == moment:
            monkeypatch.setattr(shutil, "disk_usage", lambda _: space._replace(free=100_000))

    with pytest.raises(UserError, match=r"run' needs 1\.\d MiB, its disk has 0\.1 MiB left: make room there"):
        run(setting, tmp_path / "run", fill, save_every=0.0)
    assert [path.name for path in sorted((tmp_path / "run").iterdir(), key=str)] == (["10", "11"] if moment > 1 else [])
    monkeypatch.undo()
    resumed = run(setting, tmp_path / "run")
    assert resumed.history == wanted.history
    jax.tree.map(np.testing.assert_array_equal, resumed.state, wanted.state)


def test_a_quota_that_orbax_meets_is_one_error(setting, tmp_path, monkeypatch):
    """The free bytes of a disk do not tell of quotas. TensorStore quotes what the system says."""
    monkeypatch.setattr(ocp.CheckpointManager, "save", fail_for_quota)
    with pytest.raises(UserError, match="run' cannot be written, its disk or your quota is full: make room there"):
        run(setting, tmp_path / "run", save_every=0.0)


def test_features_for_which_there_is_no_space_are_not_extracted(tmp_path, monkeypatch):
    config = experiment_config()
    config.model.features = (4, 6)
    config = Config.of(config)
    dataset = load("digits", validation=0.2)
    donor, space = donors.untrained_donor(config, dataset), shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: space._replace(free=0))
    monkeypatch.setattr(donors, "extract", None)
    with pytest.raises(UserError, match=r"needs 1\.\d MiB, its disk has 0\.0 MiB left"):
        donors.donor_network(config, dataset, donor, tmp_path / "to be made" / "features")


def fail_for_quota(*_, **__):
    raise ValueError(f"RESOURCE_EXHAUSTED: Error writing local file: {os.strerror(errno.EDQUOT)} [os_error_code='122']")


OTHER_DEVICES = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import jax
import test_crash as crash
from agop_jax.core import devices
assert jax.device_count() == 8
stop = lambda _, step: crash.os.kill(crash.os.getpid(), crash.signal.SIGTERM) if step == 7 else None
with devices.only(jax.devices()[int(sys.argv[2]):]), crash.stoppable():
    try:
        crash.run(crash.small_setting(), Path(sys.argv[1]), stop)
    except crash.Stopped:
        print("stopped")
"""


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 5], ids=["all eight", "the last three"])
def test_a_checkpoint_of_other_devices_goes_on_here(first, setting, tmp_path):
    """Devices 5 to 7 do not exist in the process that goes on."""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", OTHER_DEVICES, str(tmp_path / "run"), str(first), str(Path(__file__).parent)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "stopped", done.stderr[-2000:]
    assert (tmp_path / "run" / "7").is_dir()
    steps = []
    resumed = run(setting, tmp_path / "run", lambda _, step: steps.append(step))
    assert steps[0] == 8
    wanted = run(setting, tmp_path / "whole")
    losses = [[record["validation_loss"] for record in one.history] for one in (resumed, wanted)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
