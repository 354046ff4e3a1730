"""Recursive feature machines on vectors against their definitions, and in scikit-learn's hands."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits, load_wine
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from agop_jax.core.compilation import TooLarge
from agop_jax.core.errors import UserError
from agop_jax.features.matrix import FeatureMatrix
from agop_jax.rfm import RFM, RFMClassifier, blocks, solvers
from agop_jax.rfm.kernels import ArcCosine, Radial, kernel_block, squared_distances
from agop_jax.rfm.pivots import partial_cholesky
from agop_jax.rfm.rounds import Machine, mapped

KERNELS = {
    "laplace": lambda: Radial(jnp.asarray(1.5)),
    "between": lambda: Radial(jnp.asarray(1.5), 1.4),
    "gaussian": lambda: Radial(jnp.asarray(1.5), 2.0),
    "arc-cosine": ArcCosine,
}


def low_rank(seed, count=400, size=8):
    """The regression of the paper's notebook: x_0 x_1 where x_5 > 0."""
    inputs = np.random.default_rng(seed).normal(0, 0.5, (count, size))
    return inputs, inputs[:, 0] * inputs[:, 1] * (inputs[:, 5] > 0)


def machine(kernel, positions=1, diagonal=False, outputs=3):
    """In float64, with an M that is not the identity."""
    random = np.random.default_rng(0)
    patches = jnp.asarray(random.normal(size=(11, positions, 4)))
    factor = jnp.asarray(random.uniform(0.5, 1.5, 4) if diagonal else random.normal(size=(4, 4)))
    weights = jnp.asarray(random.normal(size=(11, outputs)))
    return Machine(kernel, factor, mapped(patches, factor), weights), patches


def by_loops(kernel, factor, x, z):
    """The kernel of two stacks of patches, from its formula."""
    total = 0.0
    for u, v in zip(np.asarray(x) @ factor, np.asarray(z) @ factor, strict=True):
        if isinstance(kernel, Radial):
            total += np.exp(-((np.linalg.norm(u - v) / float(kernel.bandwidth)) ** kernel.exponent))
        else:
            lengths = np.linalg.norm(u) * np.linalg.norm(v)
            angle = np.arccos(np.clip(u @ v / lengths, -1, 1))
            total += lengths * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / np.pi
    return total


@pytest.mark.parametrize("name", KERNELS)
def test_the_kernel_is_that_of_a_double_loop(x64, name):
    own, patches = machine(KERNELS[name](), positions=2)
    loops = [[by_loops(own.kernel, np.asarray(own.factor), x, z) for z in patches] for x in patches]
    np.testing.assert_allclose(kernel_block(own.kernel, own.points, own.points), loops, rtol=1e-7)
    np.testing.assert_allclose(own(patches), np.array(loops) @ own.weights, rtol=1e-7)


def test_the_arc_cosine_kernel_is_that_of_infinitely_many_filters(x64):
    """2 E[relu(w u) relu(w v)] over 200,000 filters: a standard error of below 1 %."""
    u, v = jax.random.normal(jax.random.key(0), (2, 5))
    drawn = jax.nn.relu(jax.random.normal(jax.random.key(1), (200_000, 5)) @ jnp.stack([u, v], 1))
    mean = 2 * (drawn[:, 0] * drawn[:, 1]).mean()
    np.testing.assert_allclose(ArcCosine().values(u[None], v[None])[0, 0], mean, rtol=0.03)


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("positions", [1, 3])
@pytest.mark.parametrize("name", KERNELS)
def test_the_agop_is_that_of_jacrev(x64, name, positions, diagonal):
    """With respect to each patch of each training input, and centred."""
    own, patches = machine(KERNELS[name](), positions, diagonal)
    predict = lambda one: (kernel_block(own.kernel, mapped(one[None], own.factor), own.points) @ own.weights)[0]
    gradients = jax.vmap(jax.jacrev(predict))(patches)  # inputs, outputs, positions, k
    pick = jnp.diagonal if diagonal else lambda matrix: matrix
    for centred in (False, True):
        mean = gradients.mean((0, 2), keepdims=True) if centred else 0
        plain = jnp.einsum("nlpi,nlpj->ij", gradients - mean, gradients - mean) / len(patches)
        np.testing.assert_allclose(own.agop(centred), pick(plain), rtol=1e-10, atol=1e-10 * float(jnp.abs(plain).max()))


@pytest.mark.parametrize("rows", [1, 3, 4, 11])
def test_blocks_of_any_size_give_the_same(x64, monkeypatch, rows):
    own, patches = machine(Radial(jnp.asarray(1.5)), positions=2)
    wholes = own.agop(), own(patches)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", rows * 11 * 8)
    for found, whole in zip((own.agop(), own(patches)), wholes, strict=True):
        np.testing.assert_allclose(found, whole, rtol=1e-12)


def test_memory_does_not_grow_with_the_number_of_rows(largest_intermediate, monkeypatch):
    """A block has one row here: neither the kernel matrix nor all gradients of all pairs exist at once."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1)
    points, weights = jnp.zeros((300, 1, 4)), jnp.zeros((300, 2))
    moments = lambda *arguments: blocks.gradient_moments(Radial(jnp.asarray(1.0)), *arguments)
    assert largest_intermediate(moments, points, points, weights) <= 300 * 2 * 5


def test_a_point_has_no_distance_to_itself():
    """Though the rounding of float32 would give it one."""
    points = 100 + np.random.default_rng(0).normal(size=(50, 600)).astype(np.float32)
    assert not jnp.diagonal(squared_distances(jnp.asarray(points), jnp.asarray(points))).any()


@pytest.mark.parametrize("options", [{}, {"exponent": 2.0}, {"exponent": 1.3}, {"diagonal": True}, {"centred": True}])
def test_features_are_found(options):
    """The three coordinates that matter, in diag(M); 300 other inputs are predicted better than without features."""
    inputs, targets = low_rank(0)
    others, truth = low_rank(1, 300)
    plain, fitted = (RFM(bandwidth=5, iterations=rounds, **options).fit(inputs, targets) for rounds in (0, 3))
    diagonal = np.diagonal(fitted.M_.dense())
    assert diagonal[[0, 1, 5]].sum() > 0.95 * diagonal.sum()
    assert fitted.score(others, truth) > plain.score(others, truth) + 0.1
    np.testing.assert_allclose(fitted.M_.trace, 8, rtol=1e-5)
    assert isinstance(fitted.M_, FeatureMatrix)


def test_without_rounds_it_is_kernel_ridge_regression():
    from sklearn.kernel_ridge import KernelRidge

    inputs, targets = low_rank(0, 60)
    gaussian = KernelRidge(alpha=1e-2, kernel="rbf", gamma=1 / 4).fit(inputs, targets - targets.mean())
    own = RFM(bandwidth=2, exponent=2, ridge=1e-2, iterations=0, dtype="float64").fit(inputs, targets)
    np.testing.assert_allclose(own.predict(inputs), gaussian.predict(inputs) + targets.mean(), rtol=1e-8)


def test_units_of_targets_change_nothing():
    inputs, targets = low_rank(0, 100)
    one, other = (RFM(5, iterations=2, dtype="float64").fit(inputs, scale * targets + 7) for scale in (1, 1000))
    np.testing.assert_allclose(one.M_.dense(), other.M_.dense(), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(1000 * (one.predict(inputs) - 7), other.predict(inputs) - 7, atol=1e-5)


def test_several_targets_come_as_columns():
    inputs, targets = low_rank(0, 100)
    both = RFM(5, iterations=1).fit(inputs, np.stack([targets, -targets], 1)).predict(inputs)
    np.testing.assert_allclose(both[:, 0], -both[:, 1], atol=1e-5)


def test_the_round_that_does_best_on_validation_data_is_kept():
    """Labels of noise: later rounds are no better than the first, and the last is not taken for being last."""
    random = np.random.default_rng(0)
    inputs, labels = random.normal(size=(120, 6)), random.integers(0, 2, 120)
    fitted = RFMClassifier(3, iterations=4).fit(inputs[:80], labels[:80], (inputs[80:], labels[80:]))
    scores = [row["score"] for row in fitted.history_]
    assert fitted.best_round_ == int(np.argmax(scores))
    assert fitted.score(inputs[80:], labels[80:]) == max(scores)
    assert RFMClassifier(3, iterations=1).fit(inputs, labels).best_round_ == 1


def test_a_classifier_in_a_pipeline_and_a_grid():
    inputs, labels = load_wine(return_X_y=True)
    names = np.array(["red", "rosé", "white"])[labels]
    grid = GridSearchCV(
        make_pipeline(StandardScaler(), RFMClassifier(iterations=1)), {"rfmclassifier__bandwidth": [5.0, 10.0]}, cv=2
    ).fit(inputs, names)
    assert grid.best_score_ > 0.95
    chances = grid.predict_proba(inputs)
    np.testing.assert_allclose(chances.sum(1), 1, rtol=1e-6)
    assert (chances >= 0).all()
    assert (grid.classes_[chances.argmax(1)] == grid.predict(inputs)).all()
    assert clone(grid.best_estimator_).get_params()["rfmclassifier__iterations"] == 1


@pytest.mark.long
@pytest.mark.parametrize(
    "estimator", [RFM(iterations=1), RFMClassifier(iterations=1)], ids=lambda one: type(one).__name__
)
def test_scikit_learn_takes_it_for_one_of_its_own(estimator):
    """All its checks but two that ask 1e-7 of float32, and one that passes values of types that are refused here."""
    from sklearn.utils.estimator_checks import check_estimator

    results = check_estimator(estimator, on_fail=None, on_skip=None)
    failed = {one["check_name"] for one in results if one["status"] == "failed"}
    checked = {"check_do_not_raise_errors_in_init_or_set_params"}
    assert failed <= {"check_methods_subset_invariance", "check_methods_sample_order_invariance"} | checked


def test_digits_are_read():
    inputs, labels = load_digits(return_X_y=True)
    train, test, y, truth = train_test_split(inputs / 16, labels, train_size=500, random_state=0)
    assert RFMClassifier(iterations=2).fit(train, y).score(test, truth) > 0.94


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_conjugate_gradients_solve_what_cholesky_solves(exponent):
    inputs, targets = low_rank(0, 300)
    options = {"bandwidth": 5, "exponent": exponent, "ridge": 1e-2, "iterations": 2, "dtype": "float64"}
    exact = RFM(solver="cholesky", **options).fit(inputs, targets)
    near = RFM(solver="cg", rank=150, tolerance=1e-9, progress=False, **options).fit(inputs, targets)
    assert max(row["residual"] for row in near.history_) < 1e-8
    np.testing.assert_allclose(near.predict(inputs), exact.predict(inputs), atol=1e-6)
    np.testing.assert_allclose(near.M_.dense(), exact.M_.dense(), atol=1e-5)


def test_the_factor_is_exact_at_its_pivots_and_preconditions(x64):
    """Fewer steps than without, and what is left of the diagonal is what is stated."""
    inputs, targets = low_rank(0, 300)
    kernel, points = Radial(jnp.asarray(5.0)), jnp.asarray(inputs)[:, None]
    whole = np.asarray(kernel_block(kernel, points, points))
    near = partial_cholesky(kernel, points, 120)
    left = whole - np.asarray(near.factor @ near.factor.T)
    np.testing.assert_allclose(np.trace(left), near.residual, rtol=1e-6)
    assert np.linalg.eigvalsh(left).min() > -1e-8
    assert (np.abs(left).max(0) < 1e-8).sum() >= 120
    solve = lambda rank: solvers.Solver("cg", rank, 1e-6, 1000, progress=False)(
        kernel, points, jnp.asarray(targets)[:, None], 1e-2
    )
    assert solve(120).steps < solve(1).steps / 2


def test_steps_that_do_not_suffice_are_reported(caplog):
    inputs, targets = low_rank(0, 100)
    fitted = RFM(solver="cg", rank=1, steps=1, iterations=0, progress=False).fit(inputs, targets)
    assert fitted.history_[0]["residual"] > 1e-3
    assert "conjugate gradients: residual" in caplog.text


def test_the_solver_is_chosen_by_size():
    choose = lambda count, memory: solvers.chosen_method("auto", (count, 64, 1), 4, memory, 100)
    assert choose(10_000, 1) == "cholesky"
    assert choose(30_000, 1) == "cg"


X, Y = low_rank(0, 20)
BAD = {
    "row 3 has NaN": (RFM(), np.where(np.arange(20)[:, None] == 3, np.nan, X), Y),
    "row 0 has infinity": (RFM(), X, np.where(np.arange(20) == 0, np.inf, Y)),
    "needed targets that differ": (RFM(), X, np.ones(20)),
    "got 1 class, 'a'": (RFMClassifier(), X, np.full(20, "a")),
    "needed 2 rows or more": (RFM(), X[:1], Y[:1]),
    "ridge: needed more than 0, since X has rows that are repeated": (RFM(ridge=0), np.concatenate([X, X]), [*Y, *Y]),
    "requires y to be passed": (RFM(), X, None),
    "one target a row": (RFM(), X, Y[:5]),
    "bandwidth: needed above 0, got 0": (RFM(bandwidth=0), X, Y),
    "exponent: needed above 0 and at most 2, got 3": (RFM(exponent=3), X, Y),
    "unknown solver 'chol'. Did you mean 'cholesky'?": (RFM(solver="chol"), X, Y),
    "is not positive definite in float32": (RFM(exponent=2, bandwidth=100, ridge=0), X, Y),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused_in_one_line(message):
    estimator, inputs, targets = BAD[message]
    with pytest.raises(UserError) as error:
        estimator.fit(inputs, targets)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("solver", "remedy"), [("cholesky", "use solver='cg'"), ("cg", "lower rank")])
def test_what_does_not_fit_is_refused_before_it_starts(solver, remedy):
    with pytest.raises(TooLarge, match=f"20 rows by solver '{solver}' need 0.1. GiB of memory.*{remedy}"):
        RFM(solver=solver, memory=0.01).fit(X, Y)


def test_prediction_refuses_another_number_of_features():
    with pytest.raises(ValueError, match="X has 7 features, but RFM is expecting 8"):
        RFM(iterations=0).fit(X, Y).predict(X[:, :7])
