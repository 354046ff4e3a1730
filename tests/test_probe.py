"""The random method: unbiased, with the error it says it has."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agop_jax.core.networks import open_network
from agop_jax.features import grams, taps
from agop_jax.features.extraction import extract

POOL = 8192  # random cotangents an image, for the tests of the distribution
N, CLASSES = 3, 8


class Network(nn.Module):
    """Two groups, so that the error adds up over matrices; a head that no tap sees."""

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Conv(6, (2, 2), feature_group_count=2, padding="VALID")(x))
        return x.reshape(len(x), -1) @ self.param("head", nn.initializers.normal(1.0), (24, CLASSES))


IMAGES = np.random.default_rng(0).normal(size=(N, 3, 3, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def variables():
    return jax.jit(Network().init)(jax.random.key(1), IMAGES)


@pytest.fixture(scope="module")
def run(variables):
    return lambda **options: extract(Network(), variables, IMAGES, progress=False, **options)["Conv_0"]


@pytest.fixture(scope="module")
def exact(run):
    return run()


@pytest.fixture(scope="module")
def passes(variables):
    """Gram matrices of single random cotangents, (POOL, groups, filters, filters), summed over the images."""
    images = jnp.asarray(IMAGES)
    tapped, pair = taps.tap(open_network(Network(), variables), images), (variables["params"], {})

    def one(key):
        cotangents = jax.random.rademacher(key, (1, N, CLASSES), jnp.float32)
        logits = lambda logits, labels: logits
        return grams.gradient_grams(tapped, logits, pair, images, jnp.zeros(N, int), cotangents)["Conv_0"]

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(2), POOL)))


def agops(grams, layer):
    """W S W^T over leading axes, per image."""
    return np.einsum("gkc,...gcd,gld->...gkl", layer.matrix, grams / N, layer.matrix)


def squared_errors(passes, exact, num_probes):
    """|estimate - AGOP|_F^2 of each of the POOL / num_probes independent estimates."""
    estimates = passes.reshape(-1, num_probes, *passes.shape[1:]).mean(1)
    return ((agops(estimates, exact) - agops(N * exact.gradient_gram, exact)) ** 2).sum((-3, -2, -1))


def squared_standard_errors(passes, exact, num_probes):
    variance = lambda group: grams.probe_variance(exact.matrix, group) / N**2
    return np.asarray(jax.jit(jax.vmap(variance))(passes.reshape(-1, num_probes, *passes.shape[1:])))


def test_the_error_falls_with_the_root_of_the_number_of_probes(passes, exact):
    """The slope of log error on log m is -1/2.

    The error at m is a root mean square over 8192 / m estimates, whose squares have a coefficient of variation of 0.6.
    The last, over 32, has a relative standard error of 0.6 / 2 / sqrt(32) = 5 % and a weight of 0.14 in the slope over
    log(m) = 0 ... 5.5: a standard error below 0.01; bound at 4.
    """
    numbers = np.array([1, 4, 16, 64, 256])
    errors = [np.sqrt(squared_errors(passes, exact, m).mean()) for m in numbers]
    slope = np.polyfit(np.log(numbers), np.log(errors), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.04)


def test_the_mean_of_all_probes_is_the_exact_matrix(passes, exact):
    """Each entry within 5 of its standard errors over the pool; of the diagonal too, which is random here."""
    standard_error = passes.std(0) / np.sqrt(POOL)
    assert (np.abs(passes.mean(0) - N * exact.gradient_gram) <= 5 * standard_error + 1e-4).all()
    assert (standard_error > 1e-3).all()


@pytest.mark.parametrize("num_probes", [2, 16])
def test_the_standard_error_is_unbiased(passes, exact, num_probes):
    """The mean of its square is that of the squared error, over 512 estimates or more.

    The relative standard error of the second is 0.6 / sqrt(512) = 3 % at most, of the first less; bound at 3 of them.
    """
    ratio = squared_errors(passes, exact, num_probes).mean() / squared_standard_errors(passes, exact, num_probes).mean()
    assert ratio == pytest.approx(1, abs=0.09)


def test_the_standard_error_covers_the_error(passes, exact):
    """512 estimates of 16 probes: err^2 / se^2 has mean 1 (0.6 / sqrt(512) = 3 % of chance, and 3 % because se^2 in the
    denominator is random too), and err <= 2 se in 95 % of them or more."""
    ratios = squared_errors(passes, exact, 16) / squared_standard_errors(passes, exact, 16)
    assert ratios.mean() == pytest.approx(1, abs=0.12)
    assert (ratios <= 4).mean() >= 0.95


@pytest.mark.slow
def test_extract_states_these_errors(run, exact):
    """Sum of err^2 over sum of se^2 over eight keys, in two batches, the second padded.

    A wrong power of the number of images (3) or of probes (8) would move it to 1/3, 3, 1/8 or 8. Its relative standard
    error is 0.6 / sqrt(8) = 21 %.
    """
    layers = [run(method="probe", num_probes=8, key=jax.random.key(key), batch_size=2) for key in range(8)]
    errors = [np.linalg.norm(agops(N * (layer.gradient_gram - exact.gradient_gram), exact)) for layer in layers]
    stated = [float(layer.standard_error) for layer in layers]
    assert 0.4 < np.sum(np.square(errors)) / np.sum(np.square(stated)) < 2.5


def test_a_key_gives_one_result_and_another_key_another(run):
    first, again, other = (run(method="probe", key=jax.random.key(key)) for key in (3, 3, 4))
    np.testing.assert_array_equal(first.gradient_gram, again.gradient_gram)
    assert not np.allclose(first.gradient_gram, other.gradient_gram)


def test_batches_draw_their_own_cotangents(variables):
    """With the cotangents of the first batch for the second, equal images would give what one of them gives."""
    options = {"method": "probe", "batch_size": 1, "progress": False}
    once, twice = (
        extract(Network(), variables, np.repeat(IMAGES[:1], repeats, axis=0), **options)["Conv_0"] for repeats in (1, 2)
    )
    assert (once.count, twice.count) == (1, 2)
    assert not np.allclose(once.gradient_gram, twice.gradient_gram)


def test_one_probe_knows_nothing_of_its_error(run):
    layer = run(method="probe", num_probes=1)
    assert np.isnan(layer.standard_error)
    assert np.isfinite(layer.gradient_gram).all()


def test_one_output_needs_no_luck(run):
    """The square of a random sign is 1: with the loss as the only output, the estimate is exact."""
    options = {"outputs": "loss", "labels": np.array([0, 5, 2])}
    probed, expected = run(method="probe", **options), run(**options)
    np.testing.assert_allclose(probed.gradient_gram, expected.gradient_gram, rtol=1e-5)
    np.testing.assert_allclose(probed.standard_error, 0, atol=1e-6)


def test_padding_has_no_cotangents():
    """S of a last Dense layer is the mean of v v^T, whose diagonal is 1 for any signs: 6 / 5 if the padding counted."""
    model, images = nn.Sequential([lambda x: x.mean((1, 2)), nn.Dense(4)]), np.ones((5, 1, 1, 2), np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    layer = extract(model, variables, images, method="probe", batch_size=2, progress=False)["layers_1"]
    np.testing.assert_allclose(np.diag(layer.gradient_gram), 1, rtol=1e-6)


@pytest.mark.parametrize("outputs", [1, 2, 5, 8])
def test_cotangents_of_one_image_are_random_signs(outputs):
    """E[v v^T] = I at any place: over 4096 keys, each entry within 5 of its standard errors of 1 / 64."""
    keys = jax.random.split(jax.random.key(0), 4096)
    found = jax.jit(jax.vmap(lambda key: grams.balanced_cotangents(key, jnp.array([11]), outputs)[0]))(keys)
    assert set(np.unique(found)) == {-1.0, 1.0}
    np.testing.assert_allclose(found.T @ found / 4096, np.eye(outputs), atol=5 / 64)


@pytest.mark.parametrize(("outputs", "order"), [(1, 1), (2, 2), (5, 8), (8, 8)])
def test_cotangents_of_many_images_add_up_to_the_identity(outputs, order):
    found = grams.balanced_cotangents(jax.random.key(1), 3 + jnp.arange(2 * order), outputs)
    np.testing.assert_array_equal(found.T @ found, 2 * order * np.eye(outputs))


@pytest.mark.parametrize("batch_size", [3, 8])
def test_what_all_images_share_adds_no_error(batch_size):
    """A linear network has one Jacobian: over 8 images, as many as 5 outputs need, the estimate is exact."""
    model, images = nn.Sequential([nn.Conv(3, (2, 2)), lambda x: x.mean((1, 2)), nn.Dense(5)]), IMAGES.repeat(3, 0)[:8]
    variables = jax.jit(model.init)(jax.random.key(0), images)
    options = {"batch_size": batch_size, "progress": False}
    exact = extract(model, variables, images, **options)
    for path, layer in extract(model, variables, images, method="probe", **options).items():
        np.testing.assert_allclose(layer.gradient_gram, exact[path].gradient_gram, rtol=1e-4, atol=1e-5)
        assert float(layer.standard_error) < 1e-4
