"""The factored matrices against plain dense numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agop_jax.features.layer import LayerFeatures
from agop_jax.features.matrix import FeatureMatrix


def factor(k, r, seed=0, stack=()):
    """With a mean, so that Pearson and cosine differ."""
    return np.random.default_rng(seed).normal(0.5, 1, (*stack, k, r))


def low_rank(k=6, r=3, seed=0, stack=()):
    return FeatureMatrix.from_factor(jnp.asarray(factor(k, r, seed, stack)))


def matrix_power(dense, exponent):
    values, vectors = np.linalg.eigh(dense)
    return vectors * np.maximum(values, 0) ** exponent @ vectors.T


CASES = {  # each a function, since float64 must be on before an array is made
    "low rank": low_rank,
    "full rank": lambda: low_rank(4, 9, seed=1),
    "floor": lambda: low_rank(seed=2).add_floor(0.7),
    "isotropic": lambda: FeatureMatrix.isotropic(6, 3.0, jnp.float64),
    "one by one": lambda: low_rank(1, 1, seed=3),
    "one by one of rank 0": lambda: FeatureMatrix.isotropic(1, 2.0, jnp.float64),
}


@pytest.fixture(params=CASES)
def matrix(request, x64):
    return CASES[request.param]()


@pytest.mark.parametrize(("k", "r"), [(6, 3), (3, 6), (5, 5), (1, 1), (1, 4)])
def test_a_factor_gives_its_own_product(x64, k, r):
    a = factor(k, r)
    found = FeatureMatrix.from_factor(jnp.asarray(a))
    np.testing.assert_allclose(found.dense(), a @ a.T, atol=1e-12)
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(min(k, r)), atol=1e-12)
    assert found.size == k
    assert (np.diff(found.values) <= 0).all()


def test_a_dense_matrix_survives_and_what_is_negative_by_rounding_is_clipped(x64):
    a = factor(5, 2)
    np.testing.assert_allclose(FeatureMatrix.from_dense(jnp.asarray(a @ a.T)).dense(), a @ a.T, atol=1e-12)
    clipped = FeatureMatrix.from_dense(jnp.diag(jnp.array([2.0, -1e-9, 1.0])))
    np.testing.assert_array_equal(clipped.values, [2, 1, 0])


def test_rank_deficient_factors_have_zero_eigenvalues(x64):
    a = np.repeat(factor(5, 1), 3, axis=1)  # rank 1 in three columns
    found = FeatureMatrix.from_factor(jnp.asarray(a))
    np.testing.assert_allclose(found.values[1:], 0, atol=1e-12)
    np.testing.assert_allclose(found.power(0.5).dense() @ found.power(0.5).dense(), a @ a.T, atol=1e-12)


def test_small_eigenvalues_keep_their_relative_accuracy():
    """Singular values 1 and 1e-4 of a factor, each within 1e-7 in float32. The product has eigenvalues 1 and 1e-8, of
    which an eigh within 1e-7 would know nothing."""
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    found = FeatureMatrix.from_factor(jnp.asarray(turn * [1, 1e-4] @ turn, jnp.float32))
    np.testing.assert_allclose(found.values, [1, 1e-8], rtol=1e-2)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_power(matrix, exponent):
    expected = matrix_power(np.asarray(matrix.dense()), exponent)
    np.testing.assert_allclose(matrix.power(exponent).dense(), expected, atol=1e-7)  # a root turns 1e-16 into 1e-8


@pytest.mark.parametrize("exponent", [0.0, -1.0])
def test_a_power_that_would_fill_the_null_space_is_refused(exponent):
    with pytest.raises(ValueError, match="wanted an exponent above 0"):
        low_rank().power(exponent)


def test_trace_scale_and_normalize(matrix):
    dense = np.asarray(matrix.dense())
    np.testing.assert_allclose(matrix.trace, np.trace(dense))
    np.testing.assert_allclose(matrix.scale(3.0).dense(), 3 * dense)
    np.testing.assert_allclose(matrix.normalize().trace, 1)
    np.testing.assert_allclose(matrix.normalize(5.0).dense(), 5 * dense / np.trace(dense))


def test_a_zero_matrix_stays_zero_when_normalized():
    zero = FeatureMatrix.from_factor(jnp.zeros((4, 2))).normalize(2.0)
    np.testing.assert_array_equal(zero.dense(), np.zeros((4, 4)))


def test_add_floor_and_mix(matrix):
    dense, identity = np.asarray(matrix.dense()), np.eye(matrix.size)
    np.testing.assert_allclose(matrix.add_floor(0.3).dense(), dense + 0.3 * identity)
    mixed = 0.25 * dense + 0.75 * np.trace(dense) / matrix.size * identity
    np.testing.assert_allclose(matrix.mix(0.25).dense(), mixed)
    np.testing.assert_allclose(matrix.mix(0.25).trace, matrix.trace)


def test_isotropic_is_a_multiple_of_the_identity():
    np.testing.assert_allclose(FeatureMatrix.isotropic(4, 2.0).dense(), 0.5 * np.eye(4))


def test_a_rotation_keeps_the_spectrum_and_nothing_else(matrix):
    rotated = matrix.rotate(jax.random.key(0))
    spectra = [np.linalg.eigvalsh(np.asarray(m.dense())) for m in (rotated, matrix)]
    np.testing.assert_allclose(*spectra, atol=1e-12)
    unmoved = np.allclose(rotated.dense(), matrix.dense())
    assert unmoved == (matrix.size == 1 or matrix.values.size == 0)  # only multiples of the identity stay


def test_rotations_are_uniform(x64):
    """Haar means E[v v^T] = I / k for each eigenvector and E[v] = 0: a QR without the signs fails the second.

    4,000 draws of entries of variance 1/3 and of squares of variance 4/45 (Beta(1/2, 1)): bounds at 5 standard errors.
    """
    start = FeatureMatrix(jnp.eye(3)[:, :1], jnp.ones(1))
    draws = jax.vmap(lambda key: start.rotate(key).vectors[:, 0])(jax.random.split(jax.random.key(0), 4000))
    np.testing.assert_allclose(draws.mean(0), 0, atol=5 * np.sqrt(1 / 3 / 4000))
    np.testing.assert_allclose((draws**2).mean(0), 1 / 3, atol=5 * np.sqrt(4 / 45 / 4000))


PAIRS = {
    "low rank, low rank": lambda: (low_rank(6, 3, 0), low_rank(6, 2, 1)),
    "floor, low rank": lambda: (low_rank(6, 3, 0).add_floor(0.4), low_rank(6, 2, 1)),
    "floor, floor": lambda: (low_rank(6, 3, 0).add_floor(0.4), low_rank(6, 6, 1).add_floor(2.0)),
    "isotropic, low rank": lambda: (FeatureMatrix.isotropic(6, 2.0, jnp.float64), low_rank(6, 3, 2)),
    "isotropic, isotropic": lambda: tuple(FeatureMatrix.isotropic(6, trace, jnp.float64) for trace in (1.0, 9.0)),
    "itself": lambda: (low_rank(6, 3, 0), low_rank(6, 3, 0)),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_correlations_are_those_of_the_dense_entries(x64, pair):
    left, right = PAIRS[pair]()
    a, b = (np.asarray(m.dense()).ravel() for m in (left, right))
    found = left.correlate(right)
    np.testing.assert_allclose(found.pearson, np.corrcoef(a, b)[0, 1], atol=1e-6)
    np.testing.assert_allclose(found.cosine, a @ b / np.linalg.norm(a) / np.linalg.norm(b), atol=1e-6)
    np.testing.assert_allclose(left.inner(right), a @ b)


def test_pearson_is_zero_where_nothing_varies(x64):
    """numpy says NaN for one entry; a table of layers wants a number."""
    assert low_rank(1, 1).correlate(low_rank(1, 1, 1)) == (0, pytest.approx(1))
    zero = FeatureMatrix.from_factor(jnp.zeros((6, 2)))
    assert zero.correlate(low_rank()) == (0, 0)


def test_matrices_of_two_sizes_do_not_correlate():
    with pytest.raises(ValueError, match="one size, got 6 and 5"):
        low_rank(6).correlate(low_rank(5))


@pytest.mark.parametrize("name", ["low rank", "floor", "isotropic", "one by one"])
def test_samples_have_the_matrix_as_their_covariance(x64, name):
    """Entry (i, j) of a sample covariance of N Gaussian draws has variance (M_ii M_jj + M_ij^2) / N (Wishart)."""
    m, num = CASES[name](), 100_000
    draws = np.asarray(m.sample(jax.random.key(1), num))
    assert draws.shape == (num, m.size)
    dense = np.asarray(m.dense())
    diagonal = np.diag(dense)
    standard_error = np.sqrt((np.outer(diagonal, diagonal) + dense**2) / num)
    assert (np.abs(draws.T @ draws / num - dense) <= 5 * standard_error).all()
    assert (np.abs(draws.mean(0)) <= 5 * np.sqrt(diagonal / num)).all()


def test_samples_of_a_low_rank_matrix_stay_in_its_span(x64):
    m = low_rank(6, 2)
    draws = m.sample(jax.random.key(0), 10)
    np.testing.assert_allclose(draws @ m.vectors @ m.vectors.T, draws, atol=1e-12)


def test_leading_axes_hold_independent_matrices(x64):
    @jax.jit
    def results(a, b):
        m = FeatureMatrix.from_factor(a).power(0.5).mix(0.5).normalize(2.0)
        return m.dense(), m.trace, m.correlate(FeatureMatrix.from_factor(b))

    a, b = (jnp.asarray(factor(4, r, seed=r, stack=(2, 3))) for r in (2, 3))
    together = results(a, b)
    for at in np.ndindex(2, 3):
        jax.tree.map(
            lambda all_, one, at=at: np.testing.assert_allclose(all_[at], one), together, results(a[at], b[at])
        )


def test_draws_for_a_stack_have_one_more_axis_and_their_own_noise():
    twins = FeatureMatrix(jnp.stack([jnp.eye(3)] * 2), jnp.ones((2, 3)), jnp.ones(2))
    draws = twins.sample(jax.random.key(0), 4)
    assert draws.shape == (2, 4, 3)
    assert not np.allclose(*draws)
    assert not np.allclose(*twins.rotate(jax.random.key(0)).vectors)


def test_it_passes_through_jit_and_vmap(x64):
    a = jnp.asarray(factor(4, 2, 0, (3,)))
    found = jax.jit(jax.vmap(lambda x: FeatureMatrix.from_factor(x).power(0.5)))(a)
    np.testing.assert_allclose(found.dense(), FeatureMatrix.from_factor(a).power(0.5).dense(), atol=1e-12)


OPERATIONS = {
    "from_factor": lambda a, b: FeatureMatrix.from_factor(a).power(0.5).normalize().values,
    "correlate": lambda a, b: FeatureMatrix.from_factor(a).mix(0.5).correlate(FeatureMatrix.from_factor(b)),
    "sample": lambda a, b: FeatureMatrix.from_factor(a).mix(0.5).sample(jax.random.key(0), 4),
    "rotate": lambda a, b: FeatureMatrix.from_factor(a).rotate(jax.random.key(0)),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_k_by_k_array_is_made(largest_intermediate, operation):
    """k = 1000, r = 8: the factors have 8,000 elements, a dense matrix would have a million."""
    a = jnp.zeros((1000, 8))
    assert largest_intermediate(OPERATIONS[operation], a, a) == 8000


def test_the_measure_of_intermediates_sees_a_dense_matrix(largest_intermediate):
    a = jnp.zeros((1000, 8))
    assert largest_intermediate(jax.jit(lambda a: FeatureMatrix.from_factor(a).dense().sum()), a) == 1_000_000


@pytest.mark.parametrize("name", CASES)
def test_numpy_sees_the_matrix_itself(name, x64):
    matrix = CASES[name]()
    dense = np.asarray(matrix.dense())
    np.testing.assert_array_equal(np.asarray(matrix), dense)
    assert np.asarray(matrix).shape == matrix.shape == dense.shape
    assert np.asarray(matrix).dtype == matrix.dtype == np.float64
    assert np.asarray(matrix, np.float32).dtype == np.float32
    np.testing.assert_array_equal(np.eye(matrix.size) @ matrix, dense)  # as numpy asks for it by itself
    own = np.array(matrix)
    own[:] = 0  # a copy, which can be written
    np.testing.assert_array_equal(np.asarray(matrix), dense)
    with pytest.raises(ValueError, match="always a copy"):
        np.array(matrix, copy=False)
    with pytest.raises(TypeError, match="'FeatureMatrix' and 'FeatureMatrix'"):
        matrix * matrix  # neither the product of the matrices nor that of their entries


def test_stacks_are_leading_axes_of_the_array():
    matrix = low_rank(stack=(2, 3))
    assert matrix.shape == np.asarray(matrix).shape == (2, 3, 6, 6)


def test_entries_lie_in_the_order_of_the_kernel():
    """Rows, columns, channels of a patch: W W^T summed over filters, entry by entry."""
    kernel = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    layer = LayerFeatures(jnp.asarray(kernel), jnp.eye(5), 1, "conv")
    expected = np.einsum("abcf,deuf->abcdeu", kernel, kernel)
    np.testing.assert_allclose(np.asarray(layer.nfm).reshape(2, 3, 4, 2, 3, 4), expected, atol=1e-5)


def test_features_are_shown_in_a_line_without_numbers():
    layer = LayerFeatures(jnp.ones((3, 3, 4, 6)), jnp.eye(6), 16, "block/conv")
    assert repr(layer) == "LayerFeatures('block/conv', kernel (3, 3, 4, 6), NFM and AGOP (36, 36), 16 examples)"
    assert repr(layer.nfm) == "FeatureMatrix(shape (36, 36), rank 6, float32)"
    assert repr(layer.nfm.add_floor(0.1)) == "FeatureMatrix(shape (36, 36), rank 6, float32, floor)"
    grouped = LayerFeatures(jnp.ones((2, 3, 3, 4, 6)), jnp.ones((2, 3, 2, 2)), 1, "scan", groups=3, stacked=1)
    assert "(2, 3, 36, 36)" in repr(grouped)
    assert repr(grouped.nfm).startswith("FeatureMatrix(shape (2, 3, 36, 36)")
    assert "NFM (36, 36)" in repr(layer.replace(matrices=("nfm",)))
