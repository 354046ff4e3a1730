"""Methods that look at the whole model: coupled, lsuv, copies, first layer, spatial; and residual streams."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import agop_jax
from agop_jax.core import trees
from agop_jax.core.networks import open_network
from agop_jax.features.taps import tap
from agop_jax.initializers import coupling
from agop_jax.initializers.model import initialization
from agop_jax.initializers.passes import Passes
from agop_jax.initializers.sources import mixing
from agop_jax.initializers.streams import residual_streams
from agop_jax.models import own_variables

LAYERS = ".*Conv_.*"


class Chain(nn.Module):
    width: float = 1.0

    @nn.compact
    def __call__(self, x):
        for features in (8, 12, 10):
            x = nn.relu(nn.Conv(int(features * self.width), (3, 3))(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(5)(x.mean((1, 2)))


class Block(nn.Module):
    features: int
    strides: int = 1
    norm: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        norm = lambda y: nn.BatchNorm(use_running_average=not train)(y) if self.norm else y
        y = nn.relu(norm(nn.Conv(self.features, (3, 3), strides=self.strides)(x)))
        y = norm(nn.Conv(self.features, (3, 3))(y))
        if x.shape[-1] != self.features or self.strides > 1:
            x = norm(nn.Conv(self.features, (1, 1), strides=self.strides)(x))
        return nn.relu(x + y)


class Residual(nn.Module):
    norm: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        x = nn.remat(Block, static_argnums=2)(8, norm=self.norm)(x, train)
        x = Block(8, norm=self.norm)(x, train)
        x = Block(16, 2, norm=self.norm)(x, train)
        x = Block(16, norm=self.norm)(x, train)
        return nn.Dense(5)(x.mean((1, 2)))


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(0), (96, 16, 16, 3))


def donor_of(model, images):
    """A network with random weights and biases: the algebra does not ask for trained ones."""
    variables = jax.jit(model.init)(jax.random.key(1), images)
    variables["params"] = trees.unflatten(
        {
            path: 0.1 * jax.random.normal(jax.random.key(len(path)), leaf.shape) if path.endswith("bias") else leaf
            for path, leaf in trees.flatten(variables["params"]).items()
        }
    )
    features = agop_jax.extract(model, variables, images[:8], progress=False)
    return agop_jax.Donor(model, variables, images), features


@pytest.fixture(scope="module")
def chain(images):
    return donor_of(Chain(), images)


def start(method, donor_and_features, images, model=None, seed=0, layers=LAYERS):
    donor, features = donor_and_features
    model = donor.model if model is None else model
    own_key, draw_key = jax.random.split(jax.random.key(seed))
    variables = own_variables(model, own_key, images)
    return initialization(model, variables, images, features, method, key=draw_key, layers=layers, donor=donor)


def test_copy_is_the_donor_below_the_head(chain, images):
    copied = start("copy", chain, images).variables["params"]
    donor = chain[0].variables["params"]
    for layer in ("Conv_0", "Conv_1", "Conv_2"):
        jax.tree.map(np.testing.assert_array_equal, copied[layer], donor[layer])
    assert not np.allclose(copied["Dense_0"]["kernel"], donor["Dense_0"]["kernel"])


@pytest.mark.slow
def test_tiled_copy_computes_the_donors_channels(chain, images):
    """Net2WiderNet keeps the function: each channel of the wider network is one of the donor's."""
    wide = start("copy_tiled", chain, images, Chain(width=2)).variables
    _, ours = Chain(width=2).apply(wide, images, capture_intermediates=True)
    _, theirs = chain[0].model.apply(chain[0].variables, images, capture_intermediates=True)
    ours, theirs = (state["intermediates"]["Conv_2"]["__call__"][0] for state in (ours, theirs))
    np.testing.assert_allclose(ours, jnp.concatenate([theirs, theirs], axis=-1), atol=1e-5)


def test_spaced_copy_takes_uniformly_spaced_channels(chain, images):
    narrow = start("copy_spaced", chain, images, Chain(width=0.5)).variables["params"]["Conv_1"]["kernel"]
    donor = chain[0].variables["params"]["Conv_1"]["kernel"]
    rows, columns = [0, 2, 5, 7], [0, 2, 4, 7, 9, 11]  # round(linspace(0, 7, 4)), round(linspace(0, 11, 6))
    np.testing.assert_array_equal(narrow, donor[:, :, rows][..., columns])


def test_spatial_covariance_is_the_mean_over_channels(chain):
    layer = chain[1]["Conv_1"]
    kernel = agop_jax.kernel_init(layer, "spatial")(jax.random.key(0), (3, 3, 5, 20_000), jnp.float32)
    taps = np.asarray(kernel).reshape(9, -1)
    donor = np.asarray(layer.kernel).reshape(9, -1)
    expected = donor @ donor.T / np.trace(donor @ donor.T) * 2 / 5  # E|w|^2 = 2 over 5 channels
    np.testing.assert_allclose(taps @ taps.T / taps.shape[1], expected, atol=2e-3)
    across = np.asarray(kernel).reshape(9, 5, -1)
    assert abs(np.einsum("pn,pn->", across[:, 0], across[:, 1]) / across.shape[-1]) < 0.01


def test_first_layer_leaves_the_others_to_he(chain, images):
    params = start("first_layer_nfm", chain, images).variables["params"]
    he = start("kaiming_normal", chain, images).variables["params"]
    drawn = start("he_nfm", chain, images, layers="Conv_0").variables["params"]
    np.testing.assert_array_equal(params["Conv_0"]["kernel"], drawn["Conv_0"]["kernel"])
    for layer in ("Conv_1", "Conv_2"):
        np.testing.assert_array_equal(params[layer]["kernel"], he[layer]["kernel"])


@pytest.mark.parametrize("method", ["lsuv", "he_nfm@lsuv", "coupled_nfm", "coupled_sqrt_agop"])
def test_lsuv_gives_unit_output_variance(method, chain, images):
    variables = start(method, chain, images).variables
    _, state = Chain().apply(variables, images, capture_intermediates=True)
    for layer in ("Conv_0", "Conv_1", "Conv_2"):
        assert float(state["intermediates"][layer]["__call__"][0].std()) == pytest.approx(1, rel=1e-3)


def test_coupled_copies_with_one_filter_and_a_perfect_fit(images):
    """Without biases, m = 1 permutes the donor's channels, every fit is perfect and activations are the donor's."""
    model = Chain()
    variables = jax.jit(model.init)(jax.random.key(1), images)
    features = agop_jax.extract(model, variables, images[:8], progress=False)
    donor = agop_jax.Donor(model, variables, images)
    done = start("coupled_nfm@mixed=1", (donor, features), images)
    assert all(explained > 0.99 for explained in done.explained_variance.values())
    _, ours = model.apply(done.variables, images, capture_intermediates=True)
    _, theirs = model.apply(variables, images, capture_intermediates=True)
    ours, theirs = (s["intermediates"]["Conv_2"]["__call__"][0].reshape(-1, 10) for s in (ours, theirs))
    correlation = np.abs(np.corrcoef(ours.T, theirs.T)[:10, 10:])
    assert sorted(correlation.argmax(1)) == list(range(10))
    assert correlation.max(1).min() > 0.95


@pytest.mark.parametrize("intercept", [False, True])
def test_fit_is_the_least_squares_solution(intercept, chain, images):
    """Against numpy's lstsq on the explicit activations, which knows no ridge; hence the loose tolerance."""
    donor, _ = chain
    recipient = start("kaiming_normal", chain, images).variables
    donor_network, network = open_network(donor.model, donor.variables), open_network(Chain(), recipient)
    passes = Passes(network, images, donor_network, donor.inputs)
    variables = network.params, network.others
    passes.reach("Conv_1", variables)
    passes.reach_donor("Conv_1")
    sides = zip(passes.walks, passes.donors, strict=True)
    parts = [coupling.moments(walk.channels(), other.channels(), "Conv_1", 1) for walk, other in sides]
    fit = coupling.fit_basis(passes.of_chunks(parts, False), passes.of_chunks(parts, True), "ridge", intercept)
    inputs = []
    for variables in (recipient, donor.variables):
        _, state = Chain().apply(variables, images, capture_intermediates=True)
        activations = nn.max_pool(nn.relu(state["intermediates"]["Conv_0"]["__call__"][0]), (2, 2), (2, 2))
        inputs.append(np.asarray(activations, np.float64).reshape(-1, 8))
    parts = [x.reshape(len(images), -1, 8) for x in inputs]
    held = np.arange(len(images)) % 4 == 3  # a quarter tells how good the fit to the others is
    ours, theirs = (x[~held].reshape(-1, 8) for x in parts)
    with_ones = lambda x: np.concatenate([x, np.full((len(x), 1), float(intercept))], 1)
    expected, *_ = np.linalg.lstsq(with_ones(ours), theirs, rcond=None)
    found = np.concatenate([fit.basis[0], fit.intercept])
    np.testing.assert_allclose(found, expected, atol=0.01 * np.abs(expected).max())
    ours, theirs = (x[held].reshape(-1, 8) for x in parts)
    variance = ((theirs - theirs.mean(0)) ** 2).sum()
    assert fit.explained == pytest.approx(1 - ((theirs - with_ones(ours) @ expected) ** 2).sum() / variance, abs=1e-3)


def test_noise_is_not_explained():
    """A fit of noise to noise explains nothing of what it has not seen, however many channels it has."""

    def model(params, x):
        return jnp.tanh(x @ params["first"]) @ params["second"]

    draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape)
    params = {"first": draw(0, 32, 40) / 6, "second": draw(1, 40, 3)}
    ours, theirs = draw(2, 64, 32), draw(3, 64, 32)
    features = agop_jax.extract(model, params, theirs, progress=False)
    donor = agop_jax.Donor(model, params, theirs)
    done = initialization(model, params, ours, features, "coupled_nfm", key=0, donor=donor)
    assert max(done.explained_variance.values()) < 0.05


class Dropping(nn.Module):
    """Dropout behind a switch of its own name."""

    @nn.compact
    def __call__(self, x, is_eval: bool = False):
        x = nn.Dropout(0.5, deterministic=is_eval)(nn.relu(nn.Dense(8)(x)))
        return nn.Dense(3)(x)


def test_the_donor_has_a_switch_of_its_own():
    model, x = Dropping(), np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    switch = {"apply_kwargs": {"is_eval": True}}
    variables = model.init(jax.random.key(0), x, is_eval=True)
    features = agop_jax.extract(model, variables, x, progress=False, **switch)
    start = lambda donor: agop_jax.initialize(
        model, variables, x, features, "coupled_nfm@mixed=1", key=1, donor=donor, **switch
    )
    start(agop_jax.Donor(model, variables, x, switch["apply_kwargs"]))
    with pytest.raises(agop_jax.UserError, match='Dropout_0 needs PRNG for "dropout"'):
        start(agop_jax.Donor(model, variables, x))


def test_control_with_shuffled_fit_loses_the_basis(chain, images):
    """The fits up to the second layer are to the donor's own features; what follows it is mixed up."""
    good, bad = (start(f"coupled_nfm@mixed=1{end}", chain, images).explained_variance for end in ("", "@shuffled"))
    assert bad["Conv_2"] < good["Conv_2"] - 0.1


@pytest.mark.parametrize(("donor", "recipient"), [(8, 8), (8, 5), (8, 20)])
@pytest.mark.parametrize(("mixed", "orthogonal"), [(None, False), (None, True), (1, False), (3, False)])
def test_mixing_columns_have_unit_norm_in_the_mean(donor, recipient, mixed, orthogonal):
    keys = jax.random.split(jax.random.key(0), 400)
    xi = jax.vmap(lambda key: mixing(key, donor, recipient, mixed, orthogonal))(keys)
    assert xi.shape == (400, donor, recipient)
    second = jnp.einsum("ndr,ner->de", xi, xi) / (
        400 * recipient
    )  # E[xi xi^T] = I / donor, except that m = 1 has no sign
    np.testing.assert_allclose(jnp.diag(second), np.full(donor, 1 / donor), rtol=0.2)
    assert float((xi != 0).sum(1).max()) <= (mixed or donor)
    if orthogonal:
        block = np.asarray(xi[0, :, : min(donor, recipient)])
        np.testing.assert_allclose(block.T @ block, np.eye(block.shape[1]), atol=1e-5)
    if mixed == 1:
        uses = np.asarray(xi[0]).sum(1)
        assert uses.max() - uses.min() <= 1  # every donor filter as often as any other


def test_streams_of_a_residual_network(images):
    variables = jax.jit(Residual(norm=True).init)(jax.random.key(0), images)
    streams = residual_streams(tap(open_network(Residual(norm=True), variables), images))
    first = {path for path, stream in streams.items() if stream == "Conv_0"}
    assert first == {"Conv_0", "CheckpointBlock_0/Conv_1", "Block_0/Conv_1"}
    second = {path for path, stream in streams.items() if stream == streams["Block_1/Conv_2"]}
    assert second == {"Block_1/Conv_1", "Block_1/Conv_2", "Block_2/Conv_1"}
    inner = [path for path in streams if path.endswith("Conv_0") and path != "Conv_0"]
    assert all(streams[path] == path for path in inner)


@pytest.mark.slow
def test_shared_mixing_keeps_the_residual_stream_readable(images):
    """Against the same network with every layer mixed on its own: the fits at the inputs of later blocks are worse."""
    network = donor_of(Residual(), images)
    shared = start("coupled_nfm", network, images).explained_variance
    separate = start("coupled_nfm@independent", network, images).explained_variance
    readers = ["Block_0/Conv_0", "Block_1/Conv_0", "Block_1/Conv_2"]
    assert np.mean([shared[path] - separate[path] for path in readers]) > 0.05


@pytest.mark.slow
def test_coupled_recipient_with_batch_norm_is_finite_and_compiled_once(images, monkeypatch):
    """Another draw compiles nothing, and blocks of one structure share what they compile."""
    network, pieces = donor_of(Residual(norm=True), images), []
    monkeypatch.setattr("agop_jax.features.program.jit", lambda function: pieces.append(function) or jax.jit(function))
    done = start("coupled_agop", network, images)
    compiled = len(pieces)
    start("coupled_agop", network, images, seed=1)
    # of 10 layers a piece up to each, its moments and its statistics, and a piece and the inputs of the donor's
    assert compiled == len(pieces) < 5 * 10
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(done.variables))
    assert max(done.explained_variance.values()) <= 1


@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("method", ["coupled_nfm", "coupled_agop@orthogonal", "matched_spectrum:coupled_sqrt_agop"])
def test_coupled_recipients_of_any_width(method, width, chain, images):
    variables = start(method, chain, images, Chain(width=width)).variables
    assert variables["params"]["Conv_1"]["kernel"].shape == (3, 3, int(8 * width), int(12 * width))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("he_nfm@mixed=2", "option 'mixed=2' does not fit: it is for coupled methods"),
        ("kaiming_normal@mix=0.5", "draw from a covariance"),
        ("he_nfm@mix=2", "from 0 to 1"),
        ("he_nfm@mix=half", "could not convert"),
        ("he_nfm@lsuw", "unknown option.*Did you mean 'lsuv'"),
        ("coupled_nfm@mixed=0", "1 or more"),
        ("selected@K=0", "1 or more"),
        ("coupled_nfm@noise=-1", "from 0 on"),
        ("selected@matrix=ntk", "one of nfm, agop, sqrt_agop"),
        ("copy_ranked@by=size", "one of agop, norm"),
        ("copy@even", "for 'copy_tiled'"),
    ],
)
def test_options_that_do_not_fit(method, message, chain, images):
    with pytest.raises(agop_jax.UserError, match=message):
        start(method, chain, images)


def test_what_a_method_needs_is_asked_for(chain, images):
    _, features = chain
    variables = chain[0].variables
    with pytest.raises(agop_jax.UserError, match="features"):
        agop_jax.initialize(Chain(), variables, images, None, "nfm", key=0)
    with pytest.raises(agop_jax.UserError, match="donor as a network"):
        agop_jax.initialize(Chain(), variables, images, features, "coupled_nfm", key=0)
    with pytest.raises(agop_jax.UserError, match="whole model"):
        agop_jax.kernel_init(features["Conv_0"], "coupled_nfm")
    with pytest.raises(agop_jax.UserError, match="use 'copy_tiled'"):
        start("copy_spaced", chain, images, Chain(width=2))


def test_a_poor_fit_warns(chain, images, caplog):
    """The recipient is shown other pictures than the donor."""
    donor, features = chain
    blind = 1e-3 * jax.random.normal(jax.random.key(5), images.shape)
    with caplog.at_level("WARNING"):
        agop_jax.initialize(Chain(), donor.variables, blind, features, "coupled_nfm", key=0, layers=LAYERS, donor=donor)
    assert "of the donor's input to 'Conv_0' is explained" in caplog.text
