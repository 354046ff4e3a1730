"""What tests/test_devices.py runs in a process of its own, since JAX counts its devices once: 8 of them, on one CPU.

Prints one line of JSON: the largest relative difference of each comparison between eight devices and one.
"""

import itertools
import json
import os
import pathlib
import signal
import tempfile
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from shared_context import share

from agop_jax import extract
from agop_jax.core import devices
from agop_jax.core.errors import UserError
from agop_jax.data import Dataset, Pipeline, Split, load
from agop_jax.experiments import donors
from agop_jax.experiments.config import experiment_config
from agop_jax.experiments.recipients import Comparison, Trained
from agop_jax.experiments.settings import Config
from agop_jax.experiments.sweep import Sweep
from agop_jax.experiments.sweep_tables import Cell
from agop_jax.results.tables import read_results
from agop_jax.rfm import RFM, ConvRFM
from agop_jax.training import Run, Settings, Trainer, train
from agop_jax.training.device_data import DeviceData
from agop_jax.training.resumable import Stopped, stoppable

STEPS = 50
RECIPIENT_STEPS = 4
FEATURES = (
    ("gram", 8, "float64"),
    ("gram", 13, "float64"),
    ("probe", 13, "float64"),
    ("patch_jacobian", 13, "float64"),
    ("gram", 13, "float32"),
)
MACHINES = (("cholesky", 1), ("cg", 1), ("cholesky", 9))


class Net(nn.Module):
    """With statistics over the batch and noise, which must not see how the batch is divided."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(6, (3, 3))(x)))
        x = nn.relu(nn.Conv(8, (3, 3), strides=2)(x)).mean((1, 2))
        return nn.Dense(5)(nn.Dropout(0.2, deterministic=not train)(x))


def pictures(count: int) -> Split:
    random = np.random.default_rng(count)
    return Split(random.integers(0, 256, (count, 8, 8, 3)).astype(np.uint8), (np.arange(count) % 5).astype(np.int32))


def losses(batch_size: int) -> np.ndarray:
    """Training loss of each step, then validation loss and accuracy."""
    dataset = Dataset("random", pictures(203), pictures(61), pictures(13), 5, np.full(3, 0.5), np.full(3, 0.25))
    trainer = Trainer(Net(), Pipeline.of(dataset, pad=1, flip=True), Settings(STEPS, batch_size, weight_decay=1e-3))
    data = DeviceData.of(dataset, trainer.mesh)
    run = Run(trainer.start(jax.jit(Net().init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))))
    sums = []
    train(trainer, run, data, np.arange(203), 0.02, 1, lambda run, step: sums.append(float(run.state.loss_sum)))
    return np.array([*sums, *trainer.evaluate(run.state.variables, data.test)])


def features(batch_size: int, method: str, dtype: str) -> dict[str, np.ndarray]:
    images = (pictures(29).images / 255 - 0.5).astype(dtype)
    variables = jax.jit(Net().init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    variables = jax.tree.map(lambda leaf: leaf.astype(dtype), variables)
    found = extract(Net(), variables, images, batch_size=batch_size, method=method, progress=False)
    values = {path: layer.agop.dense() for path, layer in found.items()}
    errors = {f"{path} error": layer.standard_error for path, layer in found.items() if method == "probe"}
    return {path: np.asarray(value) for path, value in {**values, **errors}.items()}


def machine(solver: str, positions: int) -> list[np.ndarray]:
    """M and the predictions of a recursive feature machine on 53 points, whose rows 8 does not divide."""
    inputs = np.random.default_rng(0).normal(size=(53, 6, 5, 1))
    targets = (inputs[:, 0, 0] * inputs[:, 1, 1])[:, 0]
    options = {"iterations": 2, "dtype": "float64", "solver": solver, "rank": 20, "tolerance": 1e-9, "progress": False}
    if positions == 1:
        inputs, fitted = inputs.reshape(53, -1), RFM(**options)
    else:
        fitted = ConvRFM(positions=positions, **options)
    return [np.asarray(fitted.fit(inputs, targets).M_.dense()), fitted.predict(inputs[:13])]


def sweeps(path: pathlib.Path, number: int, **changes) -> Callable[[], Sweep]:
    """Makes a sweep in this directory, whose recipients have so many devices each; 0: all."""
    config = experiment_config()
    config.model.features = (4, 6)
    config.features.num_images, config.train.steps, config.save_every = 32, RECIPIENT_STEPS, 1e9
    config.recipients.update(inits=("nfm", "default", "lsuv"), seeds=2, learning_rates=(0.05, 0.1), devices=number)
    config.update_from_flattened_dict(changes)
    dataset, settings = load("digits", validation=0.2), Config.of(config)
    donor = donors.donor_network(settings, dataset, donors.untrained_donor(settings, dataset), path / "features")
    return lambda: Sweep(path, settings, dataset, {0: {"trained": donor}})


def recipients(path: pathlib.Path, number: int, **changes) -> list[dict]:
    """The rows of a sweep."""
    sweep = sweeps(path, number, **changes)()
    sweep.run()
    traces = [place.trainers[1.0, RECIPIENT_STEPS].traces for place in sweep.places]
    assert set(traces) == {1}, traces  # all took part
    return read_results(path / "results.csv")


def stopped_recipients(path: pathlib.Path) -> list[dict]:
    """The rows of a sweep that is stopped in the middle of a run, and made again."""
    make = sweeps(path, 4)
    sweep = make()
    trainer = sweep.places[0].trainers[1.0, RECIPIENT_STEPS]
    step, calls = trainer.step, itertools.count(1)

    def step_and_signal(*args):
        if next(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args)

    trainer.step = step_and_signal
    with stoppable():
        try:
            sweep.run()
            raise AssertionError("it was not stopped")
        except Stopped:
            assert len(sweep.tables.results) < 6  # the other place may have been ahead
            assert list((path / "checkpoints").glob("*/*"))  # of the stop: no other was due
    make().run()
    return read_results(path / "results.csv")


def error_at_once(path: pathlib.Path) -> str:
    """What a sweep says when the second init fails after its first run, while another trains for hours."""
    sweep = sweeps(path, 4, **{"train.steps": 10**7})()
    train_one = sweep._train

    def train_or_fail(comparison: Comparison, cell: Cell, *others) -> Trained:
        if cell.init == "default":
            raise UserError("broken")
        return train_one(comparison, cell, *others)

    sweep._train = train_or_fail
    try:
        sweep.run()
    except UserError as error:
        return str(error)
    return "nothing"


def same(rows: list[dict], others: list[dict]) -> bool:
    """One order, and numbers alike but for rounding."""
    told = ("init", "seed", "learning_rate", "steps")
    alike = all(np.isclose(a["test_loss"], b["test_loss"], rtol=1e-4) for a, b in zip(rows, others, strict=True))
    return alike and [[row[name] for name in told] for row in rows] == [[row[name] for name in told] for row in others]


def difference(many, one) -> float:
    """The largest over the arrays, each relative to its norm."""
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(many, one, strict=True))


def main() -> None:
    share()
    found = {"devices": jax.device_count()}
    for batch_size in (16, 12, 7):
        many = losses(batch_size)
        with devices.only(jax.devices()[:1]):
            found[f"losses {batch_size}"] = difference([many], [losses(batch_size)])
    for method, batch_size, dtype in FEATURES:
        with jax.enable_x64(dtype == "float64"):
            many = features(batch_size, method, dtype)
            with devices.only(jax.devices()[:1]):
                one = features(batch_size, method, dtype)
        found[f"{method} {batch_size} {dtype}"] = difference(many.values(), one.values())
    for solver, positions in MACHINES:
        many = machine(solver, positions)
        with devices.only(jax.devices()[:1]):
            found[f"machine {solver} {positions}"] = difference(many, machine(solver, positions))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        at_once = recipients(path / "at once", 4, save_every=0.0)  # after each step, so that they save at once
        found["recipients at once"] = same(at_once, recipients(path / "in turn", 0))
        found["recipients stopped"] = same(stopped_recipients(path / "stopped"), at_once)
        found["error at once"] = error_at_once(path / "error")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
