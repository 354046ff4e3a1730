"""Channels followed through the computation: a copy to another width is the same function, or is refused by name."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import agop_jax
from agop_jax.core.networks import open_network
from agop_jax.features.taps import tap

CLASSES, WIDTH = 3, 4


def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, 6, 6, 3))


class Body(nn.Module):
    """A convolution, something done to its channels, and a Dense layer."""

    body: Callable[[nn.Module, Any, int], Any]
    width: int = WIDTH

    @nn.compact
    def __call__(self, x):
        return nn.Dense(CLASSES)(self.body(self, nn.relu(nn.Conv(self.width, (3, 3))(x)), self.width))


def widened(body: Callable, method: str = "copy_tiled") -> float:
    """The largest relative difference that a copy to twice the width makes."""
    inputs = images().astype(np.float32)
    narrow, wide = Body(body), Body(body, 2 * WIDTH)
    variables, own = jax.jit(narrow.init)(jax.random.key(0), inputs), jax.jit(wide.init)(jax.random.key(1), inputs)
    features = agop_jax.extract(narrow, variables, inputs, outputs=0, progress=False)
    copy = agop_jax.initialize(wide, own, inputs, features, method, key=0)
    expected = narrow.apply(variables, inputs)
    return float(np.abs(wide.apply(copy, inputs) - expected).max() / np.abs(expected).max())


mean = lambda x: x.mean((1, 2))
joined = lambda x, width: jnp.concatenate([x, nn.relu(nn.Conv(width, (1, 1))(x))], -1)
gain = lambda module, *shape: module.param("gain", nn.initializers.uniform(1.0), shape)
grouped = lambda x: x.reshape(*x.shape[:-1], -1, 2)


def by_hand(module, x, width):
    """GroupNorm of two channels a group, with a gain behind it, as a paper's code has it."""
    groups = grouped(x)
    groups = (groups - groups.mean((1, 2, 4), keepdims=True)) / (groups.std((1, 2, 4), keepdims=True) + 1e-3)
    return mean(groups.reshape(x.shape) ** 3 * gain(module, width))


def response(module, x, width):
    """Global response normalisation (Woo et al. 2023): a norm over positions over the mean of these norms."""
    norms = jnp.sqrt((x**2).sum((1, 2), keepdims=True))
    return mean(gain(module, width) * x * norms / (norms.mean(-1, keepdims=True) + 1e-6) + x)


SAME = {
    "concatenation": lambda _, x, width: mean(joined(x, width)),
    "gate of all channels": lambda _, x, width: mean(x * nn.sigmoid(nn.Dense(width)(mean(x)))[:, None, None]),
    "gain a channel": lambda module, x, width: mean(x * gain(module, width)),
    "weights of positions": lambda _, x, width: mean(x * jnp.arange(6.0)[:, None]),
    "moments": lambda _, x, width: jnp.concatenate([mean(x), x.std((1, 2))], -1),
    "groups by hand": by_hand,
    "response": response,
    "largest of all channels": lambda _, x, width: mean(x / (1 + x.max(-1, keepdims=True))),
    "gain of a statistic": lambda module, x, width: mean(x - x.mean(-1, keepdims=True) * gain(module, width)),
    "normalised, then flattened": lambda _, x, width: (x - x.mean((1, 2, 3), keepdims=True)).reshape(len(x), -1),
    "stacked": lambda _, x, width: jnp.stack([mean(x), x.max((1, 2))], 1).reshape(len(x), -1),
    "split and repeated": lambda _, x, width: mean(jnp.tile(jnp.split(x, 2, 1)[1], (1, 3, 1, 1))),
    "heads there and back": lambda _, x, width: mean(jnp.tanh(x.reshape(*x.shape[:3], 2, -1)).reshape(x.shape)),
}
A_SUM = "the layer itself, which reads a sum, mean or maximum over them"
ANY = "'"  # whose operation has other names in other versions of JAX
OF_A_SUM = ", which works on a sum, mean or maximum over channels"
LOST = {  # sizes agree in every width, or seem to, and yet another function would come out: (what, where it is lost)
    "sum over channels": (lambda _, x, width: x.sum(-1).reshape(len(x), -1), A_SUM),
    "similarities": (lambda _, x, width: jnp.einsum("nhwc,nhvc->nwv", x, x).reshape(len(x), -1), "'dot_general'"),
    "largest channels": (lambda _, x, width: jax.lax.top_k(mean(x), 3)[0], "'top_k'"),
    "cumulative sum": (lambda _, x, width: mean(jnp.cumsum(x, -1)), "'cumsum'"),
    "sorted": (lambda _, x, width: mean(jnp.sort(x, -1)), "'sort'"),
    "constants": (lambda _, x, width: mean(x * jnp.arange(1.0, width + 1)), "'mul' in Body"),
    "shifted": (lambda _, x, width: jax.lax.pad(mean(x), 0.0, ((0, 0, 0), (-1, 1, 0))), "'pad' in Body"),
    "power a channel": (lambda module, x, width: mean((1 + x) ** gain(module, width)), "'pow'"),
    "gain of a concatenation": (lambda module, x, width: mean(joined(x, width) * gain(module, 2 * width)), "'mul'"),
    "softmax over channels": (lambda _, x, width: mean(nn.softmax(x)), "'div' in Body" + OF_A_SUM),
    "lengths": (lambda _, x, width: mean(x / jnp.sqrt(1 + (x**2).sum(-1, keepdims=True))), "'add'"),
    "shuffle": (lambda _, x, width: mean(jnp.swapaxes(grouped(x), -1, -2).reshape(x.shape)), "'transpose'"),
    "gain in groups": (lambda module, x, width: mean((grouped(x) * gain(module, 2)).reshape(x.shape)), "'mul'"),
    "largest of groups": (lambda _, x, width: mean(grouped(x).max(-1)), "'reduce_sum' in Body" + OF_A_SUM),
    "gain of positions": (lambda module, x, width: x.reshape(len(x), -1) * gain(module, 36 * width), "'mul'"),
    "stacked after channels": (lambda _, x, width: jnp.stack([mean(x)] * 2, -1).reshape(len(x), -1), ANY),
    "split": (lambda _, x, width: jnp.split(mean(x), 2, 1)[0], ANY),
    "repeated": (lambda _, x, width: jnp.repeat(mean(x), 2, 1), ANY),
    "channels first": (lambda _, x, width: jnp.moveaxis(x, -1, 1).reshape(len(x), -1), "'transpose'"),
}


@pytest.mark.parametrize("name", SAME)
def test_whatever_keeps_channels_apart_can_be_widened(name):
    assert widened(SAME[name]) < 1e-5


@pytest.mark.parametrize("name", LOST)
def test_what_mixes_channels_is_refused_with_the_operation(name):
    body, lost = LOST[name]
    with pytest.raises(agop_jax.UserError, match="layer 'Dense_0': a copy to another width") as error:
        widened(body)
    assert f"they are lost at {lost}" in str(error.value).replace("the operation ", "")
    assert "'selected'" in str(error.value)
    assert "layers=..." in str(error.value)


def test_groups_are_refused_by_themselves():
    with pytest.raises(agop_jax.UserError, match="layer 'Conv_1': a copy to another width .*, and it has groups"):
        widened(lambda _, x, width: mean(nn.Conv(width, (1, 1), feature_group_count=2)(x)))


NORMS: dict[str, Callable[[int], Any]] = {
    "LayerNorm": lambda width: nn.LayerNorm(),
    "RMSNorm": lambda width: nn.RMSNorm(),
    "groups of 2": lambda width: nn.GroupNorm(None, group_size=2),
    "InstanceNorm": lambda width: nn.GroupNorm(None, group_size=1),
    "2 groups": lambda width: nn.GroupNorm(2),
    "NNX LayerNorm": lambda width: nnx.LayerNorm(width, rngs=nnx.Rngs(0)),
    "NNX RMSNorm": lambda width: nnx.RMSNorm(width, rngs=nnx.Rngs(0)),
    "NNX groups of 2": lambda width: nnx.GroupNorm(width, None, group_size=2, rngs=nnx.Rngs(0)),
}
ANY_WIDTH = ("groups of 2", "InstanceNorm", "NNX groups of 2")  # each group of the recipient is one of the donor
QUICK = ("LayerNorm", "2 groups", "NNX groups of 2")
APPROXIMATE = ("2 groups",)  # those of a wider recipient hold other channels than the donor's


class Linen(nn.Module):
    """Two convolutions of one residual stream, each with a normalisation."""

    norm: Callable[[int], Any]
    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(self.norm(self.width)(nn.Conv(self.width, (3, 3), param_dtype=x.dtype)(x)))
        x = x + nn.relu(self.norm(self.width)(nn.Conv(self.width, (3, 3), param_dtype=x.dtype)(x)))
        return nn.Dense(CLASSES, param_dtype=x.dtype)(x.mean((1, 2)))


class Nnx(nnx.Module):
    """The same."""

    def __init__(self, norm: Callable[[int], Any], width: int):
        options = {"param_dtype": jnp.float64, "rngs": nnx.Rngs(0)}
        self.first, self.second = (nnx.Conv(channels, width, (3, 3), **options) for channels in (3, width))
        self.norms, self.head = nnx.List([norm(width), norm(width)]), nnx.Linear(width, CLASSES, **options)

    def __call__(self, x):
        x = nnx.relu(self.norms[0](self.first(x)))
        x = x + nnx.relu(self.norms[1](self.second(x)))
        return self.head(x.mean((1, 2)))


def network(name: str, width: int, seed: int) -> tuple[Any, Any]:
    """(model, variables) with random numbers in float64, each a number of float32."""
    rng = np.random.default_rng(seed)
    draw = lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape) + (leaf.ndim == 1), jnp.float32).astype("float64")
    if not name.startswith("NNX"):
        model = Linen(NORMS[name], width)
        return model, jax.tree.map(draw, jax.eval_shape(model.init, jax.random.key(0), images()))
    graph, state = nnx.split(Nnx(NORMS[name], width))
    return nnx.merge(graph, jax.tree.map(draw, state)), None


def outputs(model: Any, variables: Any) -> np.ndarray:
    return np.asarray(model(images()) if variables is None else model.apply(variables, images()))


def copied(name: str, width: int, method: str, features: Any) -> np.ndarray:
    model, own = network(name, width, 1)
    copy = agop_jax.initialize(model, own, images(), features, method, key=0)
    return outputs(copy, None) if own is None else outputs(model, copy)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NORMS]
)
def test_normalisations_are_followed(name):
    """Twice the channels have the mean and variance of once; equal shares of two are halves, exact in float32 too."""
    model, variables = network(name, WIDTH, 0)
    features = agop_jax.extract(model, variables, images(), outputs=0, progress=False)
    expected = outputs(model, variables)
    same = copied(name, WIDTH, "copy", features)
    np.testing.assert_allclose(same, expected, rtol=1e-12)
    twice = copied(name, 2 * WIDTH, "copy_tiled@even", features)
    more = copied(name, 3 * WIDTH // 2, "copy_tiled", features)
    half = copied(name, WIDTH // 2, "copy_spaced", features)
    gap = lambda copy: np.abs(copy - expected).max() / np.abs(expected).max()
    assert gap(twice) > 1e-3 if name in APPROXIMATE else gap(twice) < 1e-12
    assert gap(more) < 1e-6 if name in ANY_WIDTH else gap(more) > 1e-3  # its random shares are in float32
    assert gap(half) > 1e-3
    assert np.isfinite(half).all()


@pytest.mark.usefixtures("x64")
def test_a_narrower_copy_has_the_normalisation_of_its_channels():
    """Channels 0 and 3 of 4, uniformly spaced: in filters, biases and scales, and in what the next layer reads."""
    name = "LayerNorm"
    model, variables = network(name, WIDTH, 0)
    features = agop_jax.extract(model, variables, images(), outputs=0, progress=False)
    narrow, own = network(name, 2, 1)
    copy = agop_jax.initialize(narrow, own, images(), features, "copy_spaced", key=0)["params"]
    donor, kept = variables["params"], [0, 3]
    for norm in ("LayerNorm_0", "LayerNorm_1"):
        for leaf in ("scale", "bias"):
            np.testing.assert_array_equal(copy[norm][leaf], donor[norm][leaf][np.array(kept)])
    np.testing.assert_array_equal(copy["Conv_0"]["kernel"], donor["Conv_0"]["kernel"][..., kept])
    np.testing.assert_array_equal(copy["Conv_1"]["kernel"], donor["Conv_1"]["kernel"][:, :, kept][..., kept])


@pytest.mark.parametrize(
    ("norm", "channelwise"),
    [
        (lambda: nn.BatchNorm(True), True),
        (nn.InstanceNorm, True),
        (nn.LayerNorm, False),
        (nn.RMSNorm, False),
        (lambda: nn.GroupNorm(2), False),
        (lambda: by_hand, False),
        (lambda: lambda x: x, False),
    ],
    ids=["BatchNorm", "InstanceNorm", "LayerNorm", "RMSNorm", "GroupNorm", "groups by hand", "none"],
)
def test_only_a_norm_of_each_channel_takes_the_place_of_a_bias(norm, channelwise):
    """A constant that is added to each channel vanishes behind it, so that a coupled fit may have an intercept."""

    def body(module, x, width):
        x = nn.Conv(width, (1, 1), use_bias=False)(x)
        normalise = norm()
        return normalise(module, x, width) if normalise is by_hand else mean(normalise(x))

    model = Body(body)
    network = open_network(model, jax.eval_shape(model.init, jax.random.key(0), images()))
    assert tap(network, images()).has_channelwise_norm("Conv_1") == channelwise
