"""JAX's own switches: training works under each of them, and the program under those of the environment."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import agop_jax
from agop_jax.data import Dataset, Pipeline, Split
from agop_jax.training import Run, Settings, Trainer, train
from agop_jax.training.device_data import DeviceData
from agop_jax.training.resumable import train_resumable

MODES = {
    "enable_x64": lambda: jax.enable_x64(True),
    "rank_promotion": lambda: jax.numpy_rank_promotion("raise"),
    "dtype_promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "debug_nans": lambda: jax.debug_nans(True),
    "disable_jit": lambda: jax.disable_jit(True),
    "transfer_guard": lambda: jax.transfer_guard("disallow"),
}


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x)))
        return nn.Dense(3)(x.mean((1, 2)))  # no dropout: JAX draws other masks where its default is float64


@pytest.fixture(scope="module")
def dataset():
    random = np.random.default_rng(0)
    images = lambda n: random.integers(0, 256, (n, 8, 8, 1)).astype(np.uint8)
    split = lambda n: Split(images(n), (np.arange(n) % 3).astype(np.int32))
    return Dataset(
        "random", split(40), split(9), split(7), 3, np.full(1, 0.5, np.float32), np.full(1, 0.25, np.float32)
    )


@pytest.fixture(scope="module")
def variables():
    return jax.jit(Net().init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


def trained(dataset: Dataset, variables, settings: Settings, directory: Path | None = None) -> Run:
    """From here on JAX's switches hold: making the trainer, the data, the run and its evaluations."""
    trainer = Trainer(Net(), Pipeline.of(dataset, rgb=True, resize=10), settings)
    data, state = DeviceData.of(dataset, trainer.mesh), trainer.start(variables)
    if directory is None:
        return train(trainer, Run(state), data, np.arange(40), 0.05, 1)
    return train_resumable(trainer, state, data, np.arange(40), 0.05, 1, directory, lambda run, step: None, 0.0)


def losses(run: Run) -> list[float]:
    return [record["validation_loss"] for record in run.history]


SETTINGS = {
    "sgd": {"weight_decay": 1e-3},
    "adam": {"optimizer": "adam"},
    "constant": {"schedule": "constant"},
    "bfloat16": {"precision": "bfloat16"},
}


SLOWER = [pytest.param(mode, marks=pytest.mark.slow if mode == "disable_jit" else ()) for mode in MODES]


@pytest.mark.parametrize("fields", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("mode", SLOWER)
def test_training_under_every_switch(mode, fields, dataset, variables):
    """The same losses, but for rounding, and a state whose types stay."""
    settings = Settings(steps=4, batch_size=8, **fields)
    plain = trained(dataset, variables, settings)
    with MODES[mode]():
        run = trained(dataset, variables, settings)
    coarse = fields.keys() & {"precision", "optimizer"}  # Adam divides by the root of what may be rounding
    np.testing.assert_allclose(losses(run), losses(plain), rtol=2**-5 if coarse else 1e-3)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(run.state)} <= {"float32", "int32"}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["enable_x64", "disable_jit"])
def test_checkpoints_under_a_switch(mode, dataset, variables, tmp_path):
    settings = Settings(steps=4, batch_size=8)
    with MODES[mode]():
        run = trained(dataset, variables, settings, tmp_path / "run")
    np.testing.assert_allclose(losses(run), losses(trained(dataset, variables, settings)), rtol=1e-4)
    assert not (tmp_path / "run").exists()


def test_a_step_under_strict_promotion_leaves_the_callers_switches_alone(dataset, variables):
    with contextlib.ExitStack() as stack:
        stack.enter_context(MODES["dtype_promotion"]())
        trained(dataset, variables, Settings(steps=1, batch_size=8))
        with pytest.raises(Exception, match="promotion"):
            jnp.ones(2, jnp.float32) + jnp.ones(2, jnp.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize(
    "switch", ["JAX_ENABLE_X64=1", "JAX_NUMPY_RANK_PROMOTION=raise", "JAX_TRANSFER_GUARD=disallow"]
)
def test_the_program_trains_a_donor_under_a_switch(switch, tmp_path):
    name, value = switch.split("=")
    options = ("--config=configs/digits.py:quick", "--config.stages=donor", "--config.model.features=4,6")
    command = [sys.executable, "-m", "agop_jax.main", *options, f"--workdir={tmp_path}"]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, env={**os.environ, name: value}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "donor" / "metadata.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_features_and_draws_under_every_switch(mode):
    """The same numbers as without it; one cotangent of `probe` has no spread, which is told by NaN and is no error."""
    model, key = Biasless(), jax.random.key(0)
    images = jax.random.normal(key, (4, 6, 6, 3), jnp.float32)
    variables = model.init(key, images)

    slow = mode == "disable_jit"  # operation by operation

    def results():
        exact = agop_jax.extract(model, variables, images, progress=False)
        if slow:
            return [layer.gradient_gram for layer in exact.values()]
        probed = agop_jax.extract(model, variables, images, method="probe", num_probes=1, progress=False)
        donor = agop_jax.Donor(model, variables, images)
        draw = lambda method: agop_jax.initialize(model, variables, images, exact, method, key=key, donor=donor)
        draws = [draw(method)["params"] for method in ("he_nfm", "lsuv", "coupled_agop", "copy")]
        grams = [layer.gradient_gram for features in (exact, probed) for layer in features.values()]
        return jax.tree.leaves((grams, draws))

    expected = results()
    with MODES[mode]():
        found = results()
    for a, b in zip(expected, found, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        if mode != "enable_x64":  # JAX draws other numbers where its default is float64
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(a).max())
        assert np.isfinite(b).all()


class Biasless(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), use_bias=False)(x))
        x = nn.relu(nn.Conv(5, (3, 3), use_bias=False)(x)).mean((1, 2))
        return nn.Dense(3, use_bias=False)(x)
