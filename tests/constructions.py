"""Models of every kind that a user may bring, unmodified: (model, variables, inputs), small, with random numbers."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

BATCH, SIDE, CHANNELS, TOKENS, WIDTH, CLASSES = 3, 6, 4, 5, 8, 3
Case = tuple[Any, Any, np.ndarray]


def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(BATCH, SIDE, SIDE, CHANNELS))


def sequences() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(BATCH, TOKENS, WIDTH))


def noisy(tree: Any, seed: int = 1) -> Any:
    """Random numbers in the size of the parameters' own, so that no bias is zero and no scale one."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        scale = max(float(jnp.std(leaf.astype(jnp.float32))), 0.3)
        return jnp.asarray(leaf + scale * 0.3 * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree.map(draw, tree)


def linen(model: nn.Module, inputs: np.ndarray) -> Case:
    variables = model.init({"params": jax.random.key(0)}, jnp.asarray(inputs))
    return model, {**variables, "params": noisy(variables["params"])}, inputs


def nnx_model(model: nnx.Module, inputs: np.ndarray) -> Case:
    graph, params, others = nnx.split(model, nnx.Param, ...)
    return nnx.merge(graph, noisy(params), others), None, inputs


class Body(nn.Module):
    """A function of this module and the inputs, before a mean over positions and a Dense."""

    body: Callable[[nn.Module, Any], Any]

    @nn.compact
    def __call__(self, x):
        x = self.body(self, x)
        return nn.Dense(CLASSES)(x.mean(tuple(range(1, x.ndim - 1))))


def _attention(module, x):
    return jnp.tanh(nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=6)(x, x))


def _heads_apart(module, x):
    """A kernel for each head, as einsum has it with a batch axis."""
    x = x.reshape(*x.shape[:2], 2, WIDTH // 2)
    return jnp.tanh(nn.Einsum((2, WIDTH // 2, 3), "bthd,hdk->bthk")(x)).reshape(*x.shape[:2], 6)


def _dense_general(module, x):
    x = jnp.tanh(nn.DenseGeneral((2, 3), axis=-1)(x))
    return jnp.tanh(nn.DenseGeneral(5, axis=(-2, -1))(x))


class Spectral(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.tanh(nn.SpectralNorm(nn.Conv(5, (3, 3)))(x, update_stats=False))


class StdConv(nn.Conv):
    """Weight standardisation (Qiao et al. 2019), by a subclass."""

    def param(self, name, *args, **kwargs):
        value = super().param(name, *args, **kwargs)
        if name != "kernel":
            return value
        value = value - value.mean((0, 1, 2))
        return value / (value.std((0, 1, 2)) + 1e-5)


class ArrayField(nn.Module):
    """Cannot be hashed."""

    shift: Any

    @nn.compact
    def __call__(self, x):
        return nn.Dense(CLASSES)(jnp.tanh(nn.Conv(5, (3, 3))(x + self.shift)).mean((1, 2)))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return jnp.tanh(nn.Dense(WIDTH)(x)), None


def _scan(module, x):
    return nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()(x, None)[0]


def _shared_scan(module, x):
    return nn.scan(Block, variable_broadcast="params", split_rngs={"params": False}, length=3)()(x, None)[0]


def _vmap(module, x):
    ensemble = nn.vmap(Block, in_axes=None, variable_axes={"params": 0}, split_rngs={"params": True}, axis_size=2)
    return ensemble()(x, None)[0].sum(0)


def _custom_derivative(module, x):
    conv = nn.Conv(5, (3, 3))
    kernel = conv.init(jax.random.key(0), x)["params"]["kernel"]
    kernel = module.param("kernel", lambda key: kernel)

    @jax.custom_vjp
    def layer(x, kernel):
        return conv.apply({"params": {"kernel": kernel, "bias": jnp.zeros(5, kernel.dtype)}}, x)

    layer.defvjp(lambda x, k: jax.vjp(layer.fun, x, k), lambda pull, g: pull(g))
    return jnp.tanh(layer(x, kernel))


class NnxBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.linear = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        return jnp.tanh(self.linear(x))


class NnxScan(nnx.Module):
    """`nnx.scan` over `nnx.remat`, with the layers made by `nnx.vmap`."""

    def __init__(self, rngs: nnx.Rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def blocks(rngs):
            return NnxBlock(rngs)

        self.blocks, self.head = blocks(rngs), nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        @nnx.remat
        def forward(x, block):
            return block(x)

        return self.head(forward(x, self.blocks).mean(1))


class NnxAttention(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.attention = nnx.MultiHeadAttention(2, WIDTH, 6, decode=False, rngs=rngs)
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.tanh(self.attention(x)).mean(1))


class NnxLora(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.linear = nnx.LoRALinear(WIDTH, 6, lora_rank=2, rngs=rngs)
        self.head = nnx.Linear(6, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.tanh(self.linear(x)).mean(1))


class NnxNorms(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv, self.norm = nnx.Conv(CHANNELS, 5, (3, 3), rngs=rngs), nnx.BatchNorm(5, rngs=rngs)
        self.dropout, self.head = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(5, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(jnp.tanh(self.norm(self.conv(x)))).mean((1, 2)))


class EquinoxCnn(eqx.Module):
    """One example at a time, channels first, weights (out, in, h, w) and on the left of a Linear."""

    layers: list
    head: eqx.nn.Linear

    def __init__(self):
        keys = jax.random.split(jax.random.key(0), 3)
        self.layers = [
            eqx.nn.Conv2d(CHANNELS, 6, 3, stride=2, key=keys[0]),
            jnp.tanh,
            eqx.nn.Conv2d(6, 4, 1, groups=2, key=keys[1]),
            eqx.nn.Dropout(0.5),
            jnp.tanh,
        ]
        self.head = eqx.nn.Linear(4, CLASSES, key=keys[2])

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean((1, 2)))


def equinox() -> Case:
    arrays, static = eqx.partition(EquinoxCnn(), eqx.is_array)
    return eqx.combine(noisy(arrays), static), None, images().transpose(0, 3, 1, 2)


def haiku() -> Case:
    import haiku as hk

    def forward(x):
        x = jnp.tanh(hk.Conv2D(5, 3)(x))
        return hk.Linear(CLASSES)(hk.LayerNorm(-1, True, True)(x).mean((1, 2)))

    network = hk.without_apply_rng(hk.transform(forward))
    return network.apply, noisy(jax.jit(network.init)(jax.random.key(0), jnp.asarray(images()))), images()


def function() -> Case:
    """Matrices on either side, one of them from two parameters, a loop with a shared one, jit inside."""
    shapes = {"a": (6, WIDTH), "parts": {"left": (6, 2), "right": (6, 3)}, "loop": (5, 5), "out": (CLASSES, 5)}
    params = noisy(jax.tree.map(jnp.zeros, shapes, is_leaf=lambda leaf: isinstance(leaf, tuple)))

    @jax.jit
    def inner(params, x):
        x = jnp.tanh(jnp.einsum("kd,btd->btk", params["a"], x))
        return jnp.tanh(x @ jnp.concatenate([params["parts"]["left"], params["parts"]["right"]], 1))

    def model(params, x):
        x = jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ params["loop"]), inner(params, x))
        return x.mean(1) @ params["out"].T

    return model, params, sequences()


def _body(body: Callable, inputs: Callable = images) -> Callable[[], Case]:
    return lambda: linen(Body(body), inputs())


def _layers(*layers: Callable[[], Any], inputs: Callable = images) -> Callable[[], Case]:
    def body(module, x):
        for make in layers:
            x = jnp.tanh(make()(x))
        return x

    return _body(body, inputs)


partitioned = nn.with_partitioning(nn.initializers.lecun_normal(), (None, None, None, "model"))

CASES: dict[str, Callable[[], Case]] = {
    "scan": _body(_scan, sequences),
    "scan of one kernel": _body(_shared_scan, sequences),
    "vmap": _body(_vmap, sequences),
    "LSTM": _body(lambda module, x: nn.RNN(nn.LSTMCell(5, param_dtype=x.dtype))(x), sequences),
    "optimized LSTM": _body(lambda module, x: nn.RNN(nn.OptimizedLSTMCell(5, param_dtype=x.dtype))(x), sequences),
    "attention": _body(_attention, sequences),
    "a kernel a head": _body(_heads_apart, sequences),
    "DenseGeneral": _body(_dense_general, sequences),
    "ConvTranspose": _layers(lambda: nn.ConvTranspose(5, (3, 3), (2, 2))),
    "depthwise": _layers(lambda: nn.Conv(8, (3, 3), feature_group_count=4)),
    "circular": _layers(lambda: nn.Conv(5, (3, 3), padding="CIRCULAR", strides=2)),
    "causal": _layers(lambda: nn.Conv(5, (3,), padding="CAUSAL"), inputs=sequences),
    "jit inside": _body(lambda module, x: jax.jit(jnp.tanh)(nn.jit(nn.Conv)(5, (3, 3))(x))),
    "custom derivative": _body(_custom_derivative),
    "SpectralNorm": _body(lambda module, x: Spectral()(x)),
    "StdConv": _layers(lambda: StdConv(5, (3, 3))),
    "partitioned": _layers(lambda: nn.Conv(5, (3, 3), kernel_init=partitioned)),
    "array field": lambda: linen(ArrayField(np.ones(CHANNELS, np.float32)), images()),
    "NNX scan of remat": lambda: nnx_model(NnxScan(nnx.Rngs(0)), sequences()),
    "NNX attention": lambda: nnx_model(NnxAttention(nnx.Rngs(0)), sequences()),
    "NNX LoRA": lambda: nnx_model(NnxLora(nnx.Rngs(0)), sequences()),
    "NNX norms": lambda: nnx_model(NnxNorms(nnx.Rngs(0)), images()),
    "Equinox": equinox,
    "Haiku": haiku,
    "function": function,
}
