"""The ansatz report against dense matrices in float64, a simulated null, and constructions whose answer is known."""

import flax.linen as nn
import jax
import networks
import numpy as np
import pytest
from scipy import stats

from agop_jax import ansatz_report, extract
from agop_jax.analysis import ansatz
from agop_jax.analysis.ansatz import Side, Spectrum, Study, rotated, similarity
from agop_jax.core import files
from agop_jax.core.errors import UserError
from agop_jax.features.extraction import Extractor
from agop_jax.results import tables

RNG = np.random.default_rng(0)
SIZE, FILTERS = 12, 5


def positive(size, seed, spread=1.0):
    """A positive definite matrix whose eigenvalues spread over `spread` decades or so."""
    rng = np.random.default_rng(seed)
    q = stats.ortho_group.rvs(size, random_state=rng)
    return q * 10 ** rng.uniform(-spread, 0, size) @ q.T


def dense_power(matrix, power):
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.maximum(values, 0) ** power @ vectors.T


def dense(a, b):
    """Pearson and cosine by their definitions over all entries."""
    return np.corrcoef(a.ravel(), b.ravel())[0, 1], (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())


@pytest.mark.parametrize("size", [SIZE, 3])  # k above and below the number of filters
@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_equals_the_dense_correlation(size, power):
    matrix, delta, gram = RNG.normal(size=(size, FILTERS)), RNG.normal(size=(size, FILTERS)), positive(FILTERS, 1)
    agop = dense_power(matrix @ gram @ matrix.T, 1.0)
    rank = min(size, FILTERS)
    agop_power = sum(v**power * np.outer(u, u) for v, u in list(zip(*_eigen(agop), strict=True))[-rank:])
    for factor in (matrix, delta):
        found = similarity(factor[None], Spectrum.of(Side(matrix[None], gram[None])), np.array([power]))
        np.testing.assert_allclose([found.pearson[0], found.cosine[0]], dense(factor @ factor.T, agop_power), atol=1e-6)


def _eigen(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return values, vectors.T


def test_equals_feature_matrix_correlate(x64):
    model = networks.NETWORKS["residual"]
    variables = networks.random_variables(model, "float64")
    images = networks.images().astype(np.float64)
    rows = ansatz_report(model, variables, images, draws=1, resamples=0)
    features = extract(model, variables, images, progress=False)
    for row in (row for row in rows if row["comparison"] == "trained"):
        layer = features[row["layer"]]
        found = layer.nfm.correlate(layer.agop.power(row["power"]))
        np.testing.assert_allclose([row["pearson"], row["cosine"]], [found.pearson, found.cosine], atol=1e-6)


def test_the_null_has_the_simulated_mean():
    """Against dense matrices turned by SciPy's Haar rotations: an independent draw of the same distribution."""
    matrix, gram = RNG.normal(size=(SIZE, FILTERS)), positive(FILTERS, 2)
    side, rng, draws = Side(matrix[None], gram[None]), np.random.default_rng(3), 2000
    null = [similarity(matrix[None], Spectrum.of(rotated(side, rng)), np.ones(1)) for _ in range(draws)]
    rotations = stats.ortho_group.rvs(FILTERS, size=draws, random_state=4)
    simulated = np.array([dense(matrix @ matrix.T, matrix @ q @ gram @ q.T @ matrix.T) for q in rotations])
    for column, found in enumerate(("pearson", "cosine")):
        values = np.array([getattr(draw, found)[0] for draw in null])
        error = np.sqrt((values.var() + simulated[:, column].var()) / draws)
        assert abs(values.mean() - simulated[:, column].mean()) < 4 * error
        assert error < 0.01  # so that the line before says something


def test_the_null_keeps_the_eigenvalues_and_averages_to_isotropic():
    """E Q S Q^T = (tr S / f) I, by Haar invariance."""
    gram, rng = positive(FILTERS, 5), np.random.default_rng(6)
    grams = np.stack([rotated(Side(np.eye(FILTERS)[None], gram[None]), rng).gram[0] for _ in range(4000)])
    np.testing.assert_allclose(np.linalg.eigvalsh(grams[0]), np.linalg.eigvalsh(gram), atol=1e-12)
    np.testing.assert_allclose(grams.mean(0), np.trace(gram) / FILTERS * np.eye(FILTERS), atol=0.02)


def aligned(power):
    """W and S with W W^T = (W S W^T)^power: the ansatz itself. With W = U D, S = D^(2 / power - 2)."""
    values = np.geomspace(0.2, 1, FILTERS)
    basis = np.linalg.qr(np.random.default_rng(7).normal(size=(SIZE, FILTERS)))[0]
    return basis * values, np.diag(values ** (2 / power - 2))


@pytest.mark.parametrize("power", [0.25, 0.5, 1.5])
def test_finds_the_power_of_the_ansatz(power):
    matrix, gram = aligned(power)
    found = similarity(matrix[None], Spectrum.of(Side(matrix[None], gram[None])), ansatz.CANDIDATES)
    assert found.pearson.max() == pytest.approx(1, abs=1e-4)
    assert ansatz.CANDIDATES[found.pearson.argmax()] == pytest.approx(power, rel=0.01)


def test_a_permuted_matrix_fails_to_correlate():
    """Rows of W in random order: the same numbers, and nothing left of the alignment."""
    matrix, gram = aligned(0.5)
    side = Side(matrix[None], gram[None])
    true = similarity(matrix[None], Spectrum.of(side), np.array([0.5])).pearson[0]
    permuted = [np.random.default_rng(i).permutation(matrix) for i in range(200)]
    wrong = [similarity(w[None], Spectrum.of(side), np.array([0.5])).pearson[0] for w in permuted]
    assert true == pytest.approx(1, abs=1e-9)
    assert np.percentile(wrong, 95) < 0.5


@pytest.fixture(scope="module")
def report():
    model = networks.NETWORKS["residual"]
    before, after = (networks.random_variables(model, seed=seed) for seed in (1, 2))
    return ansatz_report(model, after, networks.images(9), before, draws=20, resamples=20, batch_size=2)


def test_rows_are_those_of_the_results_file(report, tmp_path):
    files.write_rows(tmp_path / "ansatz.csv", report)
    read = files.read_table(tmp_path / "ansatz.csv", tables.ANSATZ_COLUMNS)
    assert [list(row) for row in read] == [list(tables.ANSATZ_COLUMNS)] * len(report)
    comparisons = [(row["layer"], row["comparison"], row["power"]) for row in read if not row["fitted"]]
    assert comparisons[:9] == [
        *(("Conv_0", name, p) for name in ("trained", "centred", "untrained", "centred_both") for p in (0.5, 1.0)),
        ("Conv_0", "initial", 1.0),
    ]


def test_interval_and_null_are_in_order(report):
    for row in report:
        assert abs(row["pearson"]) < 1 + 1e-9
        assert row["comparison"] == "initial" or row["null_pearson_mean"] <= row["null_pearson_95"]
        assert not row["fitted"] or row["power_low"] <= row["power_high"]


def test_logits_of_the_head_are_trivial(report):
    """At the last Dense S is the identity, AGOP and NFM are one matrix, and so is every draw of the null."""
    (row,) = [
        r
        for r in report
        if (r["layer"], r["comparison"], r["power"]) == ("Dense_0", "trained", 1.0) and not r["fitted"]
    ]
    assert row["pearson"] == pytest.approx(1, abs=1e-6)
    assert row["null_pearson_95"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", ["scan", "tokens"])
def test_groups_and_steps_are_averaged(name):
    model = networks.NETWORKS[name]
    variables = networks.random_variables(model)
    parts = Extractor(model, variables, networks.images()).batches(variables)
    study = Study(powers=(1.0,), draws=2, resamples=0, rng=np.random.default_rng(0))
    for path, layer in parts[0].items():
        row = study.layer(path, parts, None, known=False)[0]
        assert row["cosine"] == pytest.approx(float(np.mean(layer.nfm.correlate(layer.agop).cosine)), abs=1e-4)


def test_without_a_start_an_untrained_network_is_drawn(report):
    model = networks.NETWORKS["batch_norm"]
    rows = ansatz_report(model, networks.random_variables(model), networks.images(), draws=1, resamples=0)
    assert {row["comparison"] for row in rows} == {"trained", "untrained"}
    assert all(np.isnan(row["power_low"]) for row in rows)  # one batch


def test_the_extractor_equals_extract():
    """Also for variables other than those it was made with; 7 images in batches of 3 leave one alone."""
    model, images = networks.NETWORKS["residual"], networks.images(7)
    made_with, used = (networks.random_variables(model, seed=seed) for seed in (1, 2))
    extractor = Extractor(model, made_with, images, batch_size=3)
    assert [part["Conv_0"].count for part in extractor.batches(used)] == [3, 3, 1]
    expected = extract(model, used, images, batch_size=7, progress=False)
    for path, layer in extractor(used).items():
        assert layer.count == 7
        np.testing.assert_allclose(layer.gradient_gram, expected[path].gradient_gram, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"powers": (0.0,)}, "above 0"), ({"layers": "conv"}, "matches no layer"), ({"outputs": "loss"}, "needs labels")],
)
def test_bad_input_says_what_was_wanted(options, said):
    model = networks.NETWORKS["tokens"]
    with pytest.raises(UserError, match=said):
        ansatz_report(model, networks.random_variables(model), networks.images(), **options)


def test_a_layer_that_is_zero_correlates_with_nothing():
    model = nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(4), nn.Dense(3)])
    variables = jax.tree.map(np.zeros_like, jax.jit(model.init)(jax.random.key(0), networks.images()))
    rows = ansatz_report(model, variables, networks.images(), draws=1, resamples=0)
    assert {row["pearson"] for row in rows if row["comparison"] == "trained"} == {0.0}
