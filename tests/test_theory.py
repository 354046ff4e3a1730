"""Deep linear networks and FACT: identities that proofs give, and what fails where their assumptions do."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agop_jax import extract
from agop_jax.analysis import ansatz, theory
from agop_jax.analysis.ansatz import Side, Spectrum, similarity
from agop_jax.core.errors import UserError

SIZE, OUTPUTS, EXAMPLES = 10, 4, 64
POWERS = np.array([1.0, 1 / 2, 1 / 3, 1 / 4])


def regression():
    """Targets x T with singular values 2, 1, 0.5 and 0.25 of T."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(n, OUTPUTS)))[0] for n in (SIZE, OUTPUTS))
    images = rng.normal(size=(EXAMPLES, 1, 1, SIZE)).astype(np.float32)
    teacher = left * np.array([2.0, 1.0, 0.5, 0.25]) @ right.T
    return jnp.asarray(images), jnp.asarray(images.reshape(EXAMPLES, SIZE) @ teacher, jnp.float32)


def trained_layer(depth, start, steps=1500):
    """Features of the first layer after gradient descent with a small rate."""
    model = theory.DeepLinear((SIZE,) * (depth - 1) + (OUTPUTS,))
    images, targets = regression()
    variables, losses = theory.descend(
        model, start(model), images, targets, loss=theory.squared, steps=steps, rate=0.02
    )
    assert losses[-1] < 0.05 * losses[0]  # it has learned, so that the matrices are not those of the start
    return extract(model, variables, images, progress=False)["Dense_0"]


def balanced(model):
    return theory.balanced_start(jax.random.key(1), SIZE, model.widths, scale=0.3)


def relative_error(layer, power):
    nfm, agop = np.asarray(layer.nfm.dense()), np.asarray(layer.agop.power(power).dense())
    return np.linalg.norm(nfm - agop) / np.linalg.norm(nfm)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_balanced_deep_linear_networks_have_the_power_of_their_depth(depth):
    """W_1 W_1^T = AGOP^(1/L), the matrices themselves and not only in direction."""
    layer = trained_layer(depth, balanced)
    errors = [relative_error(layer, power) for power in POWERS]
    assert errors[depth - 1] < 0.01
    assert min(error for i, error in enumerate(errors) if i != depth - 1) > 0.1
    side = Side(np.asarray(layer.matrix, float)[None], np.asarray(layer.gradient_gram, float)[None])
    found = similarity(side.matrix, Spectrum.of(side), ansatz.CANDIDATES)
    assert ansatz.CANDIDATES[found.pearson.argmax()] == pytest.approx(1 / depth, rel=0.03)
    among = similarity(side.matrix, Spectrum.of(side), POWERS).pearson
    assert among.argmax() == depth - 1
    assert among[depth - 1] > 0.9999


def test_a_large_unbalanced_start_breaks_the_identity():
    """The proof needs balance; without it the same code says so."""
    layer = trained_layer(2, lambda model: jax.jit(model.init)(jax.random.key(0), regression()[0]))
    assert relative_error(layer, 0.5) > 0.1


@pytest.mark.parametrize("widths", [(4, 4, 4), (12, 7, 5)])
def test_the_balanced_start_is_balanced(widths):
    params = theory.balanced_start(jax.random.key(0), 6, widths, scale=0.1)["params"]
    kernels = [params[f"Dense_{i}"]["kernel"] for i in range(3)]
    for before, after in itertools.pairwise(kernels):
        np.testing.assert_allclose(before.T @ before, after @ after.T, atol=1e-7)
    assert max(jnp.linalg.norm(kernel, 2) for kernel in kernels) == pytest.approx(0.1, rel=1e-5)


def test_a_width_below_the_rank_is_refused():
    with pytest.raises(UserError, match="no width below 4"):
        theory.balanced_start(jax.random.key(0), 6, (3, 4), scale=0.1)


class SmoothCNN(nn.Module):
    """Smooth, so that gradient descent comes to rest."""

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Conv(5, (3, 3), strides=2)(x))
        x = nn.tanh(nn.Conv(6, (2, 2), padding="VALID")(x))
        return nn.Dense(3)(x.mean((1, 2)))


@pytest.fixture(scope="module")
def converged():
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(24, 6, 6, 2)).astype(np.float32), np.arange(24) % 3
    images[labels == 1, :, :3] += 1  # something to be learned, or weight decay makes everything zero
    images[labels == 2, 3:] += 1
    model, images, labels = SmoothCNN(), jnp.asarray(images), jnp.asarray(labels)
    start = jax.jit(model.init)(jax.random.key(0), images)
    variables, losses = theory.descend(
        model, start, images, labels, steps=3000, rate=0.5, momentum=0.9, weight_decay=5e-3
    )
    assert losses[-1] < 0.5 * losses[0]
    return model, start, variables, images, labels


@pytest.mark.slow
def test_fact_holds_where_training_has_converged(converged):
    model, start, variables, images, labels = converged
    after = theory.fact(model, variables, images, labels, 5e-3)
    before = theory.fact(model, start, images, labels, 5e-3)
    assert list(after) == ["Conv_0", "Conv_1", "Dense_0"]
    for path, layer in after.items():
        assert layer.relative_error < 1e-2
        assert before[path].relative_error > 0.5
        nfm = layer.matrix @ layer.matrix.T
        direct = jnp.linalg.norm(nfm - layer.dense) / jnp.linalg.norm(nfm)
        assert direct < 1e-2


@pytest.mark.slow
def test_the_wrong_weight_decay_does_not_fit(converged):
    model, _, variables, images, labels = converged
    assert theory.fact(model, variables, images, labels, 1e-2)["Conv_0"].relative_error > 0.4


def test_fact_by_its_definition(converged):
    """-(1 / (lambda n)) sum over images and positions of patch (dl/dpatch)^T, from explicit patches."""
    model, start, _, images, labels = converged
    kernel, bias = start["params"]["Conv_0"]["kernel"], start["params"]["Conv_0"]["bias"]
    patches = jnp.stack(  # 6 x 6 with stride 2 and padding 'SAME': one row below, one column right
        [
            jnp.pad(images, ((0, 0), (0, 1), (0, 1), (0, 0)))[:, i : i + 3, j : j + 3]
            for i in (0, 2, 4)
            for j in (0, 2, 4)
        ],
        axis=1,
    ).reshape(24, 9, 18)

    class Rest(nn.Module):
        @nn.compact
        def __call__(self, patches):
            x = nn.tanh(patches @ kernel.reshape(18, 5) + bias).reshape(len(patches), 3, 3, 5)
            x = nn.tanh(nn.Conv(6, (2, 2), padding="VALID", name="Conv_1")(x))
            return nn.Dense(3, name="Dense_0")(x.mean((1, 2)))

    losses = lambda p: theory.CROSS_ENTROPY(Rest().apply(start, p), labels).sum()
    gradients = jax.grad(losses)(patches)
    expected = -jnp.einsum("npi,npj->ij", patches, gradients) / (5e-3 * 24)
    found = theory.fact(model, start, images, labels, 5e-3)["Conv_0"].dense
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * float(jnp.abs(expected).max()))


def test_no_weight_decay_is_refused(converged):
    model, _, variables, images, labels = converged
    with pytest.raises(UserError, match="above 0"):
        theory.fact(model, variables, images, labels, 0.0)
