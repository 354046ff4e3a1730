"""Whitened, selected, Rainbow and the copies to other widths, each against its definition on a case worked by hand."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import slow_draws

import agop_jax
from agop_jax import models
from agop_jax.core.networks import open_network
from agop_jax.features.taps import tap
from agop_jax.initializers import coupling, scaling, whitening
from agop_jax.initializers.copies import Copy, transform
from agop_jax.initializers.coupling import fit_basis
from agop_jax.initializers.model import initialization
from agop_jax.initializers.plan import Plan
from agop_jax.initializers.registry import get_method
from agop_jax.initializers.selection import pursuit
from agop_jax.initializers.whitening import Spectrum


class Small(nn.Module):
    """Two convolutions with biases, one of them strided, and a head."""

    width: int = 4
    groups: int = 1
    norm: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.Conv(self.width, (3, 3))(x))
        x = nn.Conv(6, (3, 3), strides=2, feature_group_count=self.groups)(x)
        x = nn.BatchNorm(use_running_average=not train)(x) if self.norm else x
        return nn.Dense(3)(nn.relu(x).mean((1, 2)))


class Residual(nn.Module):
    """Four layers write into one stream; no normalisation."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 3), name="first")(x)
        for block in range(3):
            y = nn.relu(nn.Conv(6, (3, 3), name=f"in_{block}")(nn.relu(x)))
            x = x + nn.Conv(6, (3, 3), name=f"out_{block}")(y)
        self.sow("intermediates", "stream", x)
        return nn.Dense(3)(nn.relu(x).mean((1, 2)))


@pytest.fixture(scope="module")
def images():
    """Correlated channels that do not have mean 0."""
    noise = np.random.default_rng(0).normal(size=(16, 8, 8, 3))
    return jnp.asarray(noise @ np.array([[1, 0.5, 0], [0, 1, 0.5], [0, 0, 1]]) + 0.3, jnp.float32)


def a_donor(model, images):
    variables = jax.jit(model.init)(jax.random.key(1), images)
    move = lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape)
    variables = {**variables, "params": jax.tree.map(move, variables["params"])}
    return agop_jax.Donor(model, variables, images), agop_jax.extract(model, variables, images, progress=False)


def draw(method, model, images, donor_and_features=(None, None), layers=".*Conv.*|first|in_.*|out_.*", seed=0):
    donor, features = donor_and_features
    variables = jax.jit(model.init)(jax.random.key(5), images)
    return initialization(model, variables, images, features, method, key=seed, layers=layers, donor=donor)


def products(model, variables, images, training=True):
    """{layer: product + bias, filters last}, on all images at once."""
    network = open_network(model, variables, training=training)
    tapped = tap(network, images)
    records = tapped.records((network.params, network.others), images)
    biases = tapped.biases(network.params, tapped.kernels(network.params, network.others))
    rows = {path: tapped.first(path).outputs_channels_last(records[tapped.layers[path][0]].outputs) for path in biases}
    shift = lambda bias: 0 if bias is None else np.asarray(bias)
    return {path: np.asarray(row) + shift(biases[path]) for path, row in rows.items()}


def test_whitening_of_two_variables_by_hand():
    """Covariance [[5, 3], [3, 5]] / 2: eigenvalues 4 and 1 along (1, 1) and (1, -1), over sqrt(2); mean (1, 0)."""
    points = np.array([[2, 2], [-2, -2], [1, -1], [-1, 1.0]]) * np.sqrt(2 / 2) + [1, 0]
    covariance = np.cov(points.T, bias=True)
    np.testing.assert_allclose(covariance, [[2.5, 1.5], [1.5, 2.5]])
    part = (4.0, points.mean(0)[None], 4 * covariance[None])
    for spectrum in (*whitening.spectra([part], 2), *whitening.spectra_of_few([points[None]])):
        filters, bias = whitening.filters(spectrum, 4, jax.random.key(0))
        eps = whitening.EPS * 2.5  # mean eigenvalue
        first, second = 1 / np.sqrt(2 * (4 + eps)), 1 / np.sqrt(2 * (1 + eps))
        np.testing.assert_allclose(np.abs(filters[:, 0]), [first, first], rtol=1e-6)
        np.testing.assert_allclose(np.abs(filters[:, 1]), [second, second], rtol=1e-6)
        np.testing.assert_allclose(filters[:, 2:], -filters[:, :2])
        np.testing.assert_allclose(bias, -np.array([1, 0]) @ filters, atol=1e-12)
        white = points @ filters[:, :2] + bias[:2]
        np.testing.assert_allclose(white.T @ white / 4, np.diag([4 / (4 + eps), 1 / (1 + eps)]), atol=1e-9)


@pytest.mark.parametrize("number", [1, 3, 6, 7, 15])
def test_more_filters_than_directions_are_rotations_that_whiten(number):
    spectrum = Spectrum(np.zeros(3), np.eye(3), np.array([9.0, 4, 1]), 14 / 3)
    filters, _ = whitening.filters(spectrum, number, jax.random.key(0))
    assert filters.shape == (3, number)
    leading = min(number, 3) if number >= 6 else -(-number // 2)
    np.testing.assert_allclose(filters[:, :leading], np.diag(1 / np.sqrt(spectrum.values + 5e-4 * 14 / 3))[:, :leading])
    for start in range(0, number - 5, 6):
        block = filters[:, start : start + 6]
        np.testing.assert_allclose(block[:, :3], -block[:, 3:])
        np.testing.assert_allclose(block[:, :3].T @ np.diag([9, 4, 1]) @ block[:, :3], np.eye(3), atol=0.01)


@pytest.mark.parametrize("groups", [1, 2])
def test_whitened_layers_whiten_what_they_see(groups, images):
    """Of each layer the leading half of the filters is uncorrelated and centred, and the rest its negative."""
    model = Small(groups=groups)
    drawn = draw("whitened", model, images)
    found = products(model, drawn.variables, images)
    for path, per_group in (("Conv_0", 4), ("Conv_1", 6 // groups)):
        for group in np.split(found[path].reshape(-1, found[path].shape[-1]), groups if path == "Conv_1" else 1, 1):
            half = -(-per_group // 2)
            np.testing.assert_allclose(group[:, half:], -group[:, : per_group - half], atol=1e-4)
            covariance = np.cov(group[:, :half].T)
            assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 0.02 * covariance.max()
            assert np.abs(group.mean(0)).max() < 1e-3
        assert found[path].std() == pytest.approx(1, rel=1e-3)


def test_whitened_dense_layer_with_fewer_examples_than_inputs():
    """Eight examples of twelve variables lie in seven dimensions."""
    inputs = jax.random.normal(jax.random.key(0), (8, 12))
    model = nn.Sequential([nn.Dense(10), nn.relu, nn.Dense(2)])
    drawn = draw("whitened", model, inputs, layers="layers_0").variables["params"]["layers_0"]
    rows = np.asarray(inputs @ drawn["kernel"] + drawn["bias"])
    np.testing.assert_allclose(rows[:, :5], -rows[:, 5:], atol=1e-5)
    np.testing.assert_allclose(np.corrcoef(rows[:, :5].T), np.eye(5), atol=0.01)


def test_a_stream_of_whitened_layers_has_variance_one(images):
    """Four layers of variance 1/4 each; uncorrelated they add up to 1, and to at most 4 if they were one."""
    drawn = draw("whitened", Residual(), images)
    found = products(Residual(), drawn.variables, images)
    for path in ("first", "out_0", "out_1", "out_2"):
        assert found[path].std() == pytest.approx(0.5, rel=1e-3)
    for path in ("in_0", "in_1", "in_2"):
        assert found[path].std() == pytest.approx(1, rel=1e-3)
    _, state = Residual().apply(drawn.variables, images, mutable="intermediates")
    assert 0.5 < float(state["intermediates"]["stream"][0].std()) < 1.5


def test_whitened_first_leaves_the_others_orthogonal(images):
    params = draw("whitened_first", Small(), images).variables["params"]
    whole = draw("whitened", Small(), images).variables["params"]
    np.testing.assert_array_equal(params["Conv_0"]["kernel"], whole["Conv_0"]["kernel"])
    flat = np.asarray(params["Conv_1"]["kernel"]).reshape(-1, 6)
    gram = flat.T @ flat
    np.testing.assert_allclose(gram, np.eye(6) * gram[0, 0], atol=1e-5 * gram[0, 0])


def test_inputs_that_do_not_vary_are_named(images):
    with pytest.raises(agop_jax.UserError, match="layer 'Conv_0': its inputs do not vary"):
        draw("whitened", Small(), jnp.zeros_like(images))


def test_procrustes_finds_a_known_rotation():
    """The recipient's inputs are the donor's, rotated by 30 degrees and doubled: the polar factor rotates back."""
    theirs = jax.random.normal(jax.random.key(0), (50, 2))
    angle = np.pi / 6
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    part = coupling.moments(jnp.asarray(2 * np.asarray(theirs) @ rotation, jnp.float32), theirs, "layer", 1)
    fit = fit_basis([part], [part], "procrustes", False)
    np.testing.assert_allclose(fit.basis[0], rotation.T, atol=1e-5)
    ridge = fit_basis([part], [part], "ridge", False)
    np.testing.assert_allclose(ridge.basis[0], rotation.T / 2, atol=1e-3)
    assert ridge.explained == pytest.approx(1, abs=1e-4)


def test_rainbow_layers_have_the_covariance_of_its_formula(images):
    """W' = (I (x) A) C^(1/2) xi before standardising: W' W'^T is (I (x) A) C (I (x) A)^T / cout in the mean."""
    donor, features = a_donor(Small(), images)
    weights = np.asarray(features["Conv_1"].matrix)
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    fit = coupling.Fit(basis[None], np.zeros((1, 4)), 1.0)
    method = get_method("rainbow")
    draws = coupling.mixture(jax.random.key(0), jax.random.key(1), method, features["Conv_1"], 20_000)
    kernel, _ = draws.kernel(fit)
    moved = np.einsum("ac,pcf->paf", basis, weights.reshape(9, 4, 6)).reshape(36, 6)
    expected = moved @ moved.T / 6
    np.testing.assert_allclose(kernel @ kernel.T / 20_000, expected, atol=0.05 * np.abs(expected).max())
    drawn = draw("rainbow", Small(), images, (donor, features))
    assert drawn.explained_variance.keys() == {"Conv_0", "Conv_1"}


def test_pursuit_finds_the_subset_that_trying_all_finds():
    """Three of eight candidates span the targets; each other one is noise."""
    rng = np.random.default_rng(0)
    candidates = rng.normal(size=(200, 8)) + 5
    targets = candidates[:, [1, 4, 6]] @ rng.normal(size=(3, 5)) + 0.1 * rng.normal(size=(200, 5)) - 2

    def unexplained(subset):
        columns = np.concatenate([candidates[:, subset], np.ones((200, 1))], 1)
        return ((targets - columns @ np.linalg.lstsq(columns, targets, rcond=None)[0]) ** 2).sum()

    best = min(itertools.combinations(range(8), 3), key=lambda subset: unexplained(list(subset)))
    assert sorted(pursuit(candidates, targets, 3)) == list(best) == [1, 4, 6]
    first = pursuit(candidates, targets, 1)
    assert first[0] == min(range(8), key=lambda one: unexplained([one]))


def test_pursuit_takes_copies_last_and_none_twice():
    one, other = np.random.default_rng(0).normal(size=(2, 50))
    candidates = np.stack([one, one, np.zeros(50), other], 1)
    assert sorted(pursuit(candidates, np.stack([one, other], 1), 2)[:2]) == [0, 3]
    assert sorted(pursuit(candidates, np.stack([one, other], 1), 4)) == [0, 1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("model", [Small(), Small(groups=2), Small(norm=True), Residual()], ids=repr)
def test_without_noise_the_donor_is_selected_as_it_is(model, images):
    """Of two copies of each donor filter one is kept: the donor's pre-activations, standardised, in another order."""
    donor, features = a_donor(model, images)
    drawn = draw("selected@noise=0@K=2", model, images, (donor, features))
    ours, theirs = (products(model, v, images) for v in (drawn.variables, donor.variables))
    first = next(iter(drawn.explained_variance))
    flat = lambda rows: rows.reshape(-1, rows.shape[-1]).T
    correlation = np.corrcoef(flat(ours[first]), flat(theirs[first]))
    width = ours[first].shape[-1]
    assert sorted(correlation[:width, width:].argmax(1)) == list(range(width))
    np.testing.assert_allclose(correlation[:width, width:].max(1), 1, atol=1e-3)


@pytest.mark.slow
def test_selection_explains_more_than_the_first_candidates(images):
    """Of eight times as many draws, those kept explain the donor's next input better than as many taken blindly."""
    donor, features = a_donor(Small(width=8), images)
    kept = draw("selected@K=8@noise=2", Small(), images, (donor, features)).explained_variance["Conv_1"]
    blind = draw("selected@K=1@noise=2", Small(), images, (donor, features)).explained_variance["Conv_1"]
    assert kept > blind


@pytest.mark.slow
def test_noise_has_the_strength_and_covariance_that_it_names(images):
    """E|noise|^2 = s^2 mean |w|^2, along the NFM or the AGOP."""
    _, features = a_donor(Small(), images)
    layer = features["Conv_1"]
    weights = np.asarray(layer.matrix, np.float64)
    for name, matrix in (("coupled_nfm", layer.nfm), ("coupled_agop", layer.agop)):
        drawn = coupling.mixture(
            *2 * [jax.random.key(0)], agop_jax.initializers.get_method(f"{name}@noise=2"), layer, 30_000
        )
        plain = coupling.mixture(
            *2 * [jax.random.key(0)], agop_jax.initializers.get_method(f"{name}@noise=0"), layer, 30_000
        )
        noise = np.asarray(drawn.factor[0] @ (drawn.xi[0] - plain.xi[0]), np.float64)
        assert (noise**2).sum() / 30_000 == pytest.approx(4 * (weights**2).sum() / 6, rel=0.05)
        covariance, target = noise @ noise.T / 30_000, np.asarray(matrix.dense(), np.float64)
        target *= np.trace(covariance) / np.trace(target)
        assert np.linalg.norm(covariance - target) < 0.05 * np.linalg.norm(target)
        copies = np.asarray(plain.factor[0] @ plain.xi[0])
        assert all(np.isclose(copies[:, [n]], weights, atol=1e-6).all(0).sum() == 1 for n in range(12))


@pytest.mark.parametrize("method", ["he_nfm@standardised", "kaiming_normal@standardised", "selected", "rainbow"])
def test_standardised_channels(method, images):
    model = Small()
    found = products(model, draw(method, model, images, a_donor(model, images)).variables, images)
    for path in ("Conv_0", "Conv_1"):
        np.testing.assert_allclose(found[path].std((0, 1, 2)), 1, rtol=1e-3)
        np.testing.assert_allclose(found[path].mean((0, 1, 2)), 0, atol=1e-3)


def test_statistics_of_chunks_are_those_of_all():
    rows = np.random.default_rng(0).normal(3, 2, size=(30, 4))
    parts = [scaling.Statistics(len(p), p.mean(0), ((p - p.mean(0)) ** 2).sum(0)) for p in (rows[:7], rows[7:])]
    merged = scaling.merge(parts)
    np.testing.assert_allclose(merged.mean, rows.mean(0))
    np.testing.assert_allclose(merged.square / merged.count, rows.var(0))
    np.testing.assert_allclose(scaling.lsuv_factors(merged, 0), np.full(4, 1 / rows.std()))
    np.testing.assert_allclose(scaling.standardising_factors(merged), 1 / rows.std(0))


def close(one, other):
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(one))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * largest), one, other)


@pytest.mark.parametrize("method", ["coupled_agop", "coupled_nfm@noise=0.5", "rainbow", "coupled_nfm@standardised"])
@pytest.mark.parametrize("model", [Small(norm=True), Residual()], ids=["norm", "residual"])
def test_one_walk_draws_what_evaluating_everything_anew_draws(method, model, images):
    donor, features = a_donor(model, images)
    drawn = draw(method, model, images, (donor, features))
    variables = jax.jit(model.init)(jax.random.key(5), images)
    layers = [path for path in features if path != "Dense_0"]
    slow = slow_draws.coupled(model, variables, images, features, method, jax.random.key(0), layers, donor)
    close(drawn.variables, slow)


@pytest.mark.parametrize("name", ["rainbow", "coupled_nfm"])
def test_mixing_is_shared_or_independent(name, images):
    """In a stream one option is the default and the other differs; in a chain they are the same. Bit for bit."""
    shared, independent = (get_method(f"{name}@{option}").shared for option in ("shared", "independent"))
    assert (shared, independent) == (True, False)
    default = "independent" if name == "rainbow" else "shared"
    assert get_method(name).shared == (default == "shared")
    chain, residual = (
        [draw(f"{name}@{option}", model, images, a_donor(model, images)) for option in ("shared", "independent")]
        for model in (Small(), Residual())
    )
    jax.tree.map(np.testing.assert_array_equal, chain[0].variables, chain[1].variables)
    one, other = (drawn.variables["params"] for drawn in residual)
    np.testing.assert_array_equal(one["first"]["kernel"], other["first"]["kernel"])  # nothing is in the stream yet
    assert not np.allclose(one["out_0"]["kernel"], other["out_0"]["kernel"])


@pytest.mark.parametrize("method", ["he_nfm@shared", "selected@shared=2"])
def test_mixing_is_an_option_of_coupled_methods(method):
    with pytest.raises(agop_jax.UserError, match=f"init '{method}'"):
        get_method(method)


@pytest.mark.parametrize("method", ["rainbow@shared", "coupled_nfm@independent"])
def test_one_walk_draws_either_mixing(method, images):
    test_one_walk_draws_what_evaluating_everything_anew_draws(method, Residual(), images)


def test_one_walk_scales_what_evaluating_everything_anew_scales(images):
    model = Small(norm=True)
    donor, _ = a_donor(model, images)
    variables = jax.jit(model.init)(jax.random.key(5), images)
    slow = slow_draws.lsuv(model, variables, images, jax.random.key(0), ["Conv_0", "Conv_1"], donor)
    close(draw("lsuv", model, images).variables, slow)


@pytest.mark.parametrize("method", ["selected", "whitened", "coupled_nfm@noise=1"])
def test_draws_are_functions_of_their_key(method, images):
    pair = a_donor(Small(), images)
    one, again, other = (draw(method, Small(), images, pair, seed=seed).variables for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, again)
    same = np.array_equal(one["params"]["Conv_1"]["kernel"], other["params"]["Conv_1"]["kernel"])
    assert same == (method == "whitened")  # which is a function of the examples alone, where directions suffice


def test_ranks_are_norms_and_the_diagonal_of_the_next_agop(images):
    """The definition, from dense matrices: of the layer that reads the channels, summed over its window."""
    donor, features = a_donor(Small(), images)
    network = open_network(donor.model, donor.variables)
    tapped = tap(network, images[:1])
    scores = Plan(Copy("ranked"), tapped, features).scores
    agop = np.asarray(features["Conv_1"].agop.dense())
    np.testing.assert_allclose(scores["Conv_0"], np.diag(agop).reshape(9, 4).sum(0), rtol=1e-3)
    without_head = {path: layer for path, layer in features.items() if path != "Dense_0"}
    own = Plan(Copy("ranked"), tapped, without_head).scores["Conv_1"]
    np.testing.assert_allclose(own, np.diag(features["Conv_1"].gradient_gram), rtol=1e-5)
    norms = Plan(Copy("ranked", by="norm"), tapped, features).scores["Conv_1"]
    np.testing.assert_allclose(norms, (np.asarray(features["Conv_1"].kernel) ** 2).sum((0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize("by", ["agop", "norm"])
def test_ranked_copy_takes_the_channels_of_the_largest_rank(by, images):
    donor, features = a_donor(Small(width=8), images)
    params = draw(f"copy_ranked@by={by}", Small(width=3), images, (donor, features)).variables["params"]
    tapped = tap(open_network(donor.model, donor.variables), images[:1])
    best = np.sort(np.argsort(-Plan(Copy("ranked", by=by), tapped, features).scores["Conv_0"])[:3])
    donors = [features[path].kernel for path in ("Conv_0", "Conv_1")]
    for path, expected in (("Conv_0", donors[0][..., best]), ("Conv_1", donors[1][:, :, best])):
        ratio = np.asarray(params[path]["kernel"]) / np.asarray(expected)
        np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-4)  # lsuv's factor
    ratio = params["Conv_0"]["kernel"].std() / donors[0][..., best].std()
    np.testing.assert_allclose(params["Conv_0"]["bias"], ratio * features["Conv_0"].bias[best], rtol=1e-4)


def test_cosine_transform_by_hand():
    """Two channels to one: their mean. One to two: the same twice. To the same number: as they are."""
    np.testing.assert_allclose(transform(2, 1), [[0.5, 0.5]])
    np.testing.assert_allclose(transform(1, 2), [[1], [1]])
    np.testing.assert_allclose(transform(5, 5), np.eye(5), atol=1e-12)
    np.testing.assert_allclose(transform(4, 7) @ np.ones(4), np.ones(7))
    source = Copy("dct")
    rows = source.blocks([source.indices(2, 1)], [2], 3)
    np.testing.assert_allclose(rows @ np.arange(6), [1, 5, 9])  # the sum of each pair, which then share one channel


def test_dct_copies_to_any_width(images):
    donor, features = a_donor(Small(width=4), images)
    for width in (2, 4, 8):
        params = draw("copy_dct", Small(width=width), images, (donor, features)).variables["params"]
        first = np.asarray(params["Conv_0"]["kernel"])
        expected = np.asarray(features["Conv_0"].kernel) @ transform(4, width).T
        np.testing.assert_allclose(first / first.std(), expected / expected.std(), atol=1e-4)


def test_even_and_uneven_splits_compute_the_same(images):
    donor, features = a_donor(Small(width=4), images)
    both = {name: draw(name, Small(width=8), images, (donor, features)) for name in ("copy_tiled", "copy_tiled@even")}
    expected = products(donor.model, donor.variables, images)["Conv_1"]
    for drawn in both.values():
        np.testing.assert_allclose(products(Small(width=8), drawn.variables, images)["Conv_1"], expected, atol=1e-5)
    even = np.asarray(both["copy_tiled@even"].variables["params"]["Conv_1"]["kernel"])
    np.testing.assert_array_equal(even[:, :, :4], even[:, :, 4:])
    uneven = np.asarray(both["copy_tiled"].variables["params"]["Conv_1"]["kernel"])
    assert np.abs(uneven[:, :, :4] - uneven[:, :, 4:]).max() > 0.01


@pytest.mark.long
@pytest.mark.parametrize("method", ["whitened", "selected", "rainbow", "coupled_nfm@noise=0.5", "lsuv@standardised"])
@pytest.mark.parametrize("name", ["resnet20", "vgg11"])
def test_deep_networks(name, method):
    """Every activation is finite and no layer of a deep network dies or explodes."""
    model = models.create(name, 10, width=0.25) if name == "resnet20" else models.create(name, 10, width=0.125)
    images = jax.random.normal(jax.random.key(0), (16, 32, 32, 3))
    variables = models.own_variables(model, jax.random.key(1), images)
    features = agop_jax.extract(model, variables, images, outputs=0, progress=False)
    donor = agop_jax.Donor(model, variables, images)
    drawn = initialization(model, variables, images, features, method, key=0, layers=".*Conv_.*", donor=donor)
    found = products(model, drawn.variables, images)
    convolutions = [path for path in found if "Conv" in path]
    assert all(0.1 < found[path].std() < 10 for path in convolutions)
