"""The training loop against the same loop written out in numpy, and its bookkeeping."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agop_jax.core.errors import UserError
from agop_jax.data import Pipeline, Split, batch_indices
from agop_jax.training import Run, Settings, Trainer, train
from agop_jax.training.device_data import DeviceData
from agop_jax.training.loop import accuracy_at
from agop_jax.training.settings import due

PIPELINE = Pipeline((0.5,), (0.25,))


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x.reshape(len(x), -1))


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(nn.relu(x).mean((1, 2))))


@pytest.fixture(scope="module")
def pictures():
    random = np.random.default_rng(0)
    split = lambda n: Split(
        jnp.asarray(random.integers(0, 256, (n, 4, 4, 1)), jnp.uint8), jnp.asarray(random.integers(0, 3, n), jnp.int32)
    )
    return DeviceData(split(40), split(7), split(9))


def run(trainer, data, seed=0, rate=0.05, init=0):
    variables = jax.jit(trainer.model.init)(jax.random.key(init), jnp.zeros((1, 4, 4, 1)))
    return train(trainer, Run(trainer.start(variables)), data, np.arange(40), rate, seed)


def by_hand(data, settings, rate, seed, variables):
    """Softmax regression, SGD with momentum, L2 in the gradient, cosine decay: heavy ball as in PyTorch."""
    w, b = (np.asarray(variables["params"]["Dense_0"][name], np.float64) for name in ("kernel", "bias"))
    trace_w, trace_b = np.zeros_like(w), np.zeros_like(b)
    for step in range(settings.steps):
        chosen = batch_indices(np.arange(40), settings.batch_size, step, seed)
        x = (np.asarray(data.train.images, np.float64)[chosen].reshape(len(chosen), -1) / 255 - 0.5) / 0.25
        logits = x @ w + b
        probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        error = (probabilities - np.eye(3)[np.asarray(data.train.labels)[chosen]]) / len(chosen)
        trace_w = settings.momentum * trace_w + x.T @ error + settings.weight_decay * w
        trace_b = settings.momentum * trace_b + error.sum(0) + settings.weight_decay * b
        decayed = rate * (1 + np.cos(np.pi * step / settings.steps)) / 2
        w, b = w - decayed * trace_w, b - decayed * trace_b
    return w, b


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_sgd_is_the_loop_written_out(weight_decay, pictures):
    settings = Settings(steps=13, batch_size=8, weight_decay=weight_decay)
    trainer = Trainer(Linear(), PIPELINE, settings)
    variables = jax.jit(Linear().init)(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    done = run(trainer, pictures, seed=5)
    w, b = by_hand(pictures, settings, 0.05, 5, variables)
    found = done.state.variables["params"]["Dense_0"]
    np.testing.assert_allclose(found["kernel"], w, atol=2e-5)
    np.testing.assert_allclose(found["bias"], b, atol=2e-5)


def test_one_compilation_for_all_inits_seeds_and_rates(pictures):
    trainer = Trainer(Linear(), PIPELINE, Settings(steps=3, batch_size=8))
    for init, seed, rate in ((0, 0, 0.1), (1, 0, 0.1), (0, 1, 0.1), (0, 0, 0.3)):
        run(trainer, pictures, seed, rate, init)
    assert trainer.traces == 1


def test_same_seed_same_bits(pictures):
    trainer = Trainer(Normalised(), Pipeline((0.5,), (0.25,), pad=1, flip=True), Settings(steps=6, batch_size=8))
    first, again, other = run(trainer, pictures), run(trainer, pictures), run(trainer, pictures, seed=1)
    jax.tree.map(np.testing.assert_array_equal, first.state, again.state)
    same = [np.array_equal(*leaves) for leaves in zip(*map(jax.tree.leaves, (first.state, other.state)), strict=True)]
    assert not all(same)


def test_batch_norm_learns_statistics_in_training_and_uses_them_in_evaluation(pictures):
    trainer = Trainer(Normalised(), PIPELINE, Settings(steps=4, batch_size=8))
    done = run(trainer, pictures)
    assert float(jnp.abs(done.state.variables["batch_stats"]["BatchNorm_0"]["mean"]).max()) > 0
    assert trainer.evaluate(done.state.variables, pictures.test) == trainer.evaluate(
        done.state.variables, pictures.test
    )


def test_evaluation_masks_the_padding(pictures):
    trainer = Trainer(Linear(), PIPELINE, Settings(steps=1, batch_size=8))
    variables = jax.jit(Linear().init)(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    logits = np.asarray(Linear().apply(variables, PIPELINE(pictures.validation.images)), np.float64)
    labels = np.asarray(pictures.validation.labels)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(7), labels]
    loss, accuracy = trainer.evaluate(variables, pictures.validation)
    assert loss == pytest.approx(losses.mean(), rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(1) == labels).mean(), abs=1e-12)


def test_history_and_accuracy_at(pictures):
    trainer = Trainer(Linear(), PIPELINE, Settings(steps=50, batch_size=8))
    history = run(trainer, pictures).history
    assert [record["step"] for record in history] == [0, 3, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50]
    assert history[0]["train_loss"] is None
    assert accuracy_at(history, 50, 20) == history[3]["validation_accuracy"]
    assert accuracy_at(history[:3], 50, 100) == history[2]["validation_accuracy"]


def test_bfloat16_passes_keep_float32_parameters(pictures):
    """The same run to the 8 bits of bfloat16's mantissa, which its loss shows and that of float32 does not."""
    runs = {}
    for precision in ("float32", "bfloat16"):
        trainer = Trainer(Normalised(), PIPELINE, Settings(steps=6, batch_size=8, precision=precision))
        runs[precision] = run(trainer, pictures)
    wanted, found = runs["float32"], runs["bfloat16"]
    kept = jax.tree.leaves((found.state.variables, found.state.optimizer.inner_state))
    assert {leaf.dtype for leaf in kept} == {jnp.dtype("float32")}
    losses = [[record["train_loss"] for record in done.history[1:]] for done in (wanted, found)]
    np.testing.assert_allclose(*losses, rtol=2**-5)
    assert losses[0] != losses[1]


def test_unknown_precision_is_named():
    with pytest.raises(ValueError, match="unknown precision 'float16'.*Known: bfloat16, float32"):
        Settings(steps=1, precision="float16")


def test_evaluation_of_large_images_takes_small_batches(pictures):
    """At 2048 x 2048 no image fits the number of pixels, so each is a batch of its own."""
    trainer = Trainer(Linear(), Pipeline((0.5,), (0.25,), resize=2048), Settings(steps=1))
    seen = []
    trainer.batch_sums = lambda variables, split, indices, weights: seen.append(len(indices)) or (0.0, 0.0)
    trainer.evaluate({}, pictures.validation)
    assert seen == [1] * 7


def test_diverged_run_stops_early(pictures):
    """At the first evaluation that sees it: 5 % of the budget for a rate that overflows in the first steps."""
    trainer = Trainer(Linear(), PIPELINE, Settings(steps=100, batch_size=8))
    done = run(trainer, pictures, rate=1e38)
    assert done.diverged
    assert int(done.state.step) == 5
    assert trainer.evaluate(done.state.variables, pictures.test)[1] == 0


def test_run_that_starts_from_nan_is_not_trained(pictures):
    trainer = Trainer(Normalised(), PIPELINE, Settings(steps=100, batch_size=8))
    variables = jax.jit(trainer.model.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    variables["params"]["Dense_0"]["kernel"] *= jnp.nan
    done = train(trainer, Run(trainer.start(variables)), pictures, np.arange(40), 0.1, 0)
    assert done.diverged
    assert int(done.state.step) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "sdg"}, "unknown optimizer 'sdg'. Did you mean 'sgd'"),
        ({"schedule": "cos"}, "unknown schedule 'cos'.*constant, cosine"),
        ({"steps": 0}, "steps and batch_size of 1 or more, got 0"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(UserError, match=message):
        Settings(**{"steps": 1, **change})


def test_batch_larger_than_the_training_set(pictures):
    with pytest.raises(UserError, match="batch_size 64 is larger than the training set of 40 images"):
        run(Trainer(Linear(), PIPELINE, Settings(steps=1, batch_size=64)), pictures)


def test_adamw_is_the_loop_written_out(pictures):
    """Loshchilov & Hutter 2019, algorithm 2: moments of the bare gradient, decay beside it; both times the rate."""
    settings = Settings(steps=6, batch_size=8, optimizer="adamw", weight_decay=0.3, schedule="constant")
    trainer = Trainer(Linear(), PIPELINE, settings)
    variables = jax.jit(Linear().init)(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    done = run(trainer, pictures, seed=5)
    parts = {name: np.asarray(variables["params"]["Dense_0"][name], np.float64) for name in ("kernel", "bias")}
    first, second = ({name: np.zeros_like(part) for name, part in parts.items()} for _ in range(2))
    for step in range(settings.steps):
        chosen = batch_indices(np.arange(40), settings.batch_size, step, 5)
        x = (np.asarray(pictures.train.images, np.float64)[chosen].reshape(len(chosen), -1) / 255 - 0.5) / 0.25
        logits = x @ parts["kernel"] + parts["bias"]
        error = (
            np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - np.eye(3)[np.asarray(pictures.train.labels)[chosen]]
        )
        gradient = {"kernel": x.T @ error / len(chosen), "bias": error.mean(0)}
        for name, part in parts.items():
            first[name] = 0.9 * first[name] + 0.1 * gradient[name]
            second[name] = 0.999 * second[name] + 0.001 * gradient[name] ** 2
            mean, power = first[name] / (1 - 0.9 ** (step + 1)), second[name] / (1 - 0.999 ** (step + 1))
            parts[name] = part - 0.05 * (mean / (np.sqrt(power) + 1e-8) + 0.3 * part)
    for name, part in parts.items():
        np.testing.assert_allclose(done.state.variables["params"]["Dense_0"][name], part, atol=1e-4)


@pytest.mark.parametrize(("steps", "batch_size", "share"), [(50, 64, 0.1), (250, 64, 0.1), (7, 8, 0.5)])
def test_evaluations_on_the_way_cost_at_most_their_share(steps, batch_size, share):
    settings = Settings(steps=steps, batch_size=batch_size, evaluation_share=share)
    assert len(due(steps)) * settings.curve_images <= share * 3 * steps * batch_size
    assert settings.curve_images == int(share * 3 * steps * batch_size / len(due(steps)))


def test_evaluations_on_the_way_use_a_fixed_part_of_every_class(pictures, monkeypatch):
    """And the last one all: 9 images in the order of their classes, of which 3 are used."""
    images, labels = np.asarray(pictures.test.images), np.repeat(np.arange(3, dtype=np.int32), 3)
    data = DeviceData(pictures.train, Split(jnp.asarray(images), jnp.asarray(labels)), pictures.test)
    settings = Settings(steps=10, batch_size=8, evaluation_share=0.15)
    assert settings.curve_images == 3
    trainer, seen = Trainer(Linear(), PIPELINE, settings), []
    batch_sums = trainer.batch_sums

    def observed(variables, split, indices, weights):
        seen.append(np.asarray(indices)[np.asarray(weights)].tolist())
        return batch_sums(variables, split, indices, weights)

    monkeypatch.setattr(trainer, "batch_sums", observed)
    done = run(trainer, data)
    assert seen == [[0, 3, 6]] * len(due(10)) + [list(range(9))]
    last, variables = done.history[-1], done.state.variables
    assert (last["validation_loss"], last["validation_accuracy"]) == trainer.evaluate(variables, data.validation)
    assert last["curve_accuracy"] == trainer.evaluate(variables, data.validation, 3)[1]


def test_a_run_that_diverges_is_judged_on_the_whole_validation_set(pictures):
    trainer = Trainer(Linear(), PIPELINE, Settings(steps=40, batch_size=8, evaluation_share=0.01))
    broken = jax.tree.map(
        lambda leaf: leaf * jnp.nan, jax.jit(Linear().init)(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    )
    done = train(trainer, Run(trainer.start(broken)), pictures, np.arange(40), 0.05, 0)
    assert done.diverged
    assert done.history[-1]["validation_accuracy"] == 0.0


@pytest.mark.parametrize("share", [0.0, -1.0, float("inf")])
def test_an_evaluation_share_is_a_positive_number(share):
    with pytest.raises(UserError, match="evaluation_share above 0"):
        Settings(steps=1, evaluation_share=share)
