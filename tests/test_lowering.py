"""Every compiled step lowers for GPUs and TPUs from a machine that has neither, and takes nothing of the CPU along.

A step is lowered for another kind of device from shapes alone, which fails where it calls back to the host. What is no
plain operation of XLA, such as a decomposition, is a custom call in the result. Those that are meant are named here.
"""

import ast
import itertools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_architecture import PACKAGE, sources

import agop_jax
from agop_jax import models
from agop_jax.analysis import probe, theory, transforms
from agop_jax.core import devices
from agop_jax.core.networks import open_network
from agop_jax.data import Pipeline, Split
from agop_jax.features import extraction as extraction_module
from agop_jax.features import program
from agop_jax.features.layer import LayerFeatures
from agop_jax.features.steps import Steps
from agop_jax.features.taps import tap
from agop_jax.initializers import INITIALIZERS, coupling, kernel_init, scaling, whitening
from agop_jax.initializers.registry import get_method
from agop_jax.rfm import RFM, pivots, solvers
from agop_jax.training import Settings, Trainer

PLATFORMS = ("cuda", "tpu")
NOTHING = {platform: set() for platform in PLATFORMS}
QR = {
    "cuda": {"cusolver_geqrf_ffi", "cusolver_orgqr_ffi"},
    "tpu": {"Qr", "ProductOfElementaryHouseholderReflectors"},
}
# methods that draw orthogonal filters or eigenvectors, by a QR decomposition on the device; a donor's matrix is
# decomposed on the host, by numpy, while a step is traced
ORTHOGONAL = {"orthogonal", "delta_orthogonal", "matched_spectrum"}
N, SIDE, CLASSES = 4, 8, 3


def shape(*axes, dtype="float32"):
    return jax.ShapeDtypeStruct(axes, dtype)


def custom_calls(traced):
    """{kind of device: targets of custom calls}; channels to the host count, and no array may be in float64."""
    calls = {}
    for platform in PLATFORMS:
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert not re.search(r"tensor<(\d+x)*f64>", text)
        calls[platform] = set(re.findall(r"custom_call @([\w.$]+)|stablehlo\.(?:send|recv|infeed|outfeed)", text))
    return calls


def small_cnn(side=SIDE):
    model = models.create("small_cnn", CLASSES, features=(4, 5))
    return model, jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, side, side, 3))))


def extraction(model, variables, outputs="logits", side=SIDE):
    network, inputs = open_network(model, variables), shape(N, side, side, 3)
    return network, inputs, Steps(network, inputs, outputs, devices.mesh())


def batch(network, inputs):
    return (network.params, network.others), inputs, shape(N, dtype="int32"), shape(N)


def traced_extraction(model, variables, outputs="logits", side=SIDE):
    """The steps of extraction by all methods, by name."""
    network, inputs, steps = extraction(model, variables, outputs, side)
    arguments = batch(network, inputs)
    keys = shape(2, *jax.random.key_data(jax.random.key(0)).shape, dtype="uint32")
    passes = steps.passes(N, 2, jax.random.key_impl(jax.random.key(0)))
    yield "kernels", steps.kernels.trace(*arguments[0])
    yield "gram", steps.sums.trace(*arguments, shape(*steps.chunks()[0].shape))
    yield "probe", passes.trace(*arguments, shape(dtype="int32"), keys)
    for layer, step in steps.definitions(network, inputs).items():
        yield f"patch_jacobian of {layer}", step.trace(*arguments)


def trainer_of(model, precision="float32", stored=SIDE, resize=0, optimizer="sgd"):
    settings = Settings(10, N, optimizer, weight_decay=0.1, precision=precision)
    pipeline = Pipeline((0.5,) * 3, (0.25,) * 3, pad=2, flip=True, resize=resize)
    return Trainer(model, pipeline, settings), Split(
        shape(9, stored, stored, 3, dtype="uint8"), shape(9, dtype="int32")
    )


def traced_training(model, variables, **options):
    trainer, split = trainer_of(model, **options)
    return trainer.trace_step(jax.eval_shape(trainer.start, variables), split, shape(N, dtype="int32"))


def traced_evaluation(model, variables, **options):
    trainer, split = trainer_of(model, **options)
    return trainer.batch_sums.trace(variables, split, shape(N, dtype="int32"), shape(N, dtype="bool"))


def test_extraction():
    for _, traced in traced_extraction(*small_cnn()):
        assert custom_calls(traced) == NOTHING


def test_extraction_of_the_loss():
    network, inputs, steps = extraction(*small_cnn(), outputs="loss")
    assert custom_calls(steps.sums.trace(*batch(network, inputs), shape(1, 1))) == NOTHING


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training(precision):
    """With the resize, augmentation, weight decay and a schedule."""
    assert custom_calls(traced_training(*small_cnn(), precision=precision, stored=5, resize=SIDE)) == NOTHING


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x))
        return nn.Dense(CLASSES)(nn.Dropout(0.5, deterministic=not train)(nn.relu(x).mean((1, 2))))


def test_training_by_adam_with_batch_norm_and_dropout():
    model = Normalised()
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3))))
    assert custom_calls(traced_training(model, variables, optimizer="adam")) == NOTHING


@pytest.mark.parametrize(("stored", "resize"), [(SIDE, 0), (5, SIDE)])
def test_evaluation(stored, resize):
    assert custom_calls(traced_evaluation(*small_cnn(), stored=stored, resize=resize)) == NOTHING


def test_start_of_the_optimizer_and_the_models_own_initialisers():
    model, variables = small_cnn()
    trainer, _ = trainer_of(model)
    assert custom_calls(jax.jit(trainer.start).trace(variables)) == NOTHING
    assert (
        custom_calls(
            jax.jit(lambda x: models.own_variables(model, jax.random.key(0), x)).trace(shape(1, SIDE, SIDE, 3))
        )
        == NOTHING
    )


@pytest.mark.parametrize("layer", ["Conv_0", "Conv_1"])
def test_a_walk(layer):
    """The pieces of a network between its products, and what is measured there."""
    model, variables = small_cnn()
    network = open_network(model, variables, training=True)
    tapped = tap(network, shape(N, SIDE, SIDE, 3))
    program = tapped.program
    cut, site = program.cut_of(tapped.layers[layer][0]), tapped.first(layer)
    step = program.steps[program.cuts[cut]]
    values = dict(enumerate(jax.tree.leaves((network.params, network.others, shape(N, SIDE, SIDE, 3)))))
    for earlier in range(cut + 1):
        piece = program.upto(earlier)
        results = lambda *own, piece=piece: [piece.evaluate(own)[number] for number in piece.results]
        traced = jax.jit(results).trace(*(values[number] for number in piece.reads))
        assert custom_calls(traced) == NOTHING
        values.update(zip(piece.results, traced.out_info, strict=True))
    at = program.at(cut)
    own = [values[number] for number in at.reads]
    for measure in (scaling.statistics, whitening.moments, whitening.all_patches):
        function = lambda *own, measure=measure: measure(
            site, at.records(step, at.evaluate(own))[tapped.layers[layer][0]]
        )
        assert custom_calls(jax.jit(function).trace(*own)) == NOTHING


def test_moments():
    traced = jax.jit(coupling.group_moments).trace(shape(9, 1, 4), shape(9, 1, 5))
    assert custom_calls(traced) == NOTHING


@pytest.fixture(scope="module")
def layer():
    random = np.random.default_rng(0)
    gram = random.normal(size=(6, 6)).astype(np.float32)
    kernel = random.normal(size=(3, 3, 4, 6)).astype(np.float32)
    return LayerFeatures(kernel=jnp.asarray(kernel), gradient_gram=jnp.asarray(gram @ gram.T), count=5, path="Conv_0")


@pytest.mark.parametrize("method", [name for name in INITIALIZERS if get_method(name).layerwise])
def test_drawing(method, layer):
    init = kernel_init(layer if get_method(method).needs_donor else None, method)
    key = jax.eval_shape(lambda: jax.random.key(0))
    traced = jax.jit(lambda key: init(key, layer.kernel.shape)).trace(key)
    assert custom_calls(traced) == (QR if method in ORTHOGONAL else NOTHING)


def test_gradient_descent_of_the_theory():
    model, variables = small_cnn()
    descend = lambda *arguments: theory.descend(model, *arguments, steps=2, rate=0.1, momentum=0.9, weight_decay=0.1)
    traced = jax.jit(descend).trace(variables, shape(N, SIDE, SIDE, 3), shape(N, dtype="int32"))
    assert custom_calls(traced) == NOTHING


def test_feature_maps():
    model, variables = small_cnn()
    traced = jax.jit(lambda *arguments: transforms.feature_maps(model, *arguments)).trace(
        variables, shape(N, SIDE, SIDE, 3)
    )
    assert custom_calls(traced) == NOTHING


def printed(x):
    jax.debug.print("{}", x[0, 0])
    return x


LEAKS = {
    "printing": printed,
    "numpy": lambda x: jax.pure_callback(np.sign, x, x),
    "LAPACK": lambda x: x + jax.scipy.linalg.schur(x[:3])[0][0],  # which no other device has
}


@pytest.mark.parametrize("leak", LEAKS)
def test_what_only_a_cpu_can_do_lowers_for_nothing_else(leak):
    """A call back belongs to the process that it was traced in; an operation of LAPACK alone has no other form."""

    class Leaking(nn.Module):
        @nn.compact
        def __call__(self, x):
            return LEAKS[leak](nn.Dense(3)(x.reshape(len(x), -1)))

    variables = {"params": {"Dense_0": {"kernel": shape(SIDE * SIDE * 3, 3), "bias": shape(3)}}}
    traced = traced_evaluation(Leaking(), variables)
    traced.lower()
    with pytest.raises((ValueError, NotImplementedError), match="platform"):
        custom_calls(traced)


def recorded(function, calls):
    """The function, jitted, with what it is called with kept."""
    jitted = function if hasattr(function, "trace") else jax.jit(function)

    def call(*arguments):
        calls.append((jitted, arguments))
        return jitted(*arguments)

    return call


def custom_calls_of(calls):
    assert calls
    return [custom_calls(jitted.trace(*arguments)) for jitted, arguments in calls]


@pytest.mark.parametrize("method", ["lsuv", "coupled_nfm", "selected", "whitened"])
def test_pieces_of_a_walk(monkeypatch, method):
    """Draws that look at examples compile a network in pieces, with what is measured at each layer."""
    calls = []
    monkeypatch.setattr(program, "jit", lambda function: recorded(function, calls))
    model = models.create("small_cnn", CLASSES, features=(4, 5))
    images = jax.random.normal(jax.random.key(0), (16, SIDE, SIDE, 3))
    variables = jax.jit(model.init)(jax.random.key(1), images)
    features = agop_jax.extract(model, variables, images, progress=False)
    donor = agop_jax.Donor(model, variables, images)
    agop_jax.initialize(model, variables, images, features, method, key=0, donor=donor)
    assert all(found == NOTHING for found in custom_calls_of(calls))


def test_features_of_a_probe(monkeypatch):
    calls = []
    monkeypatch.setattr(probe, "jit", lambda function: recorded(function, calls))
    model, variables = small_cnn()
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), variables)
    network, images = open_network(model, variables), jnp.zeros((N, SIDE, SIDE, 3))
    probe.last_features(network, images)(network.params, network.others, images)
    assert custom_calls_of(calls) == [NOTHING]


def test_means_of_an_extraction():
    total = {"Conv_0": shape(5, 5), "Dense_0": shape(CLASSES, CLASSES)}
    assert custom_calls(extraction_module._divided.trace(total, 7)) == NOTHING
    assert custom_calls(extraction_module._finite.trace(total)) == NOTHING


def test_recursive_feature_machines(monkeypatch):
    """By conjugate gradients. A Cholesky factor is a decomposition on the device, which is meant."""
    calls = []
    for module, name in ((pivots, "_explained"), (pivots, "_shrunk"), (solvers, "_advance"), (solvers, "_turn")):
        monkeypatch.setattr(module, name, recorded(getattr(module, name), calls))
    monkeypatch.setattr(solvers, "kernel_columns", recorded(solvers.kernel_columns, calls))
    X = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)
    RFM(iterations=1, solver="cg", progress=False).fit(X, X[:, 0])
    assert all(found == NOTHING for found in custom_calls_of(calls))


COMPILED = {  # where the package compiles: what of it is lowered here
    "analysis/ansatz.py": "a model's own initialisers",
    "analysis/probe.py": "features",
    "analysis/theory.py": "gradient descent, and one gradient",
    "analysis/transforms.py": "feature maps",
    "core/compilation.py": "",
    "features/extraction.py": "means and a check",
    "features/program.py": "pieces of a network",
    "features/steps.py": "extraction, sums of its parts",
    "initializers/coupling.py": "moments",
    "models/registry.py": "a model's own initialisers",
    "rfm/blocks.py": "columns of a kernel; what is divided over devices lowers for their kind alone",
    "rfm/deep.py": "patches, as in extraction",
    "rfm/pivots.py": "the preconditioner",
    "rfm/solvers.py": "steps of conjugate gradients",
    "training/trainer.py": "training, evaluation, the start of the optimiser",
}
COMPILERS = {"jit", "pjit", "pmap", "shard_map", "traced", "within_memory", "compile_within_memory"}
ASKS_WHERE_IT_RUNS = {
    "core/compilation.py",
    "experiments/environments.py",
    "models/layers.py",  # sums of BatchNorm, whose other form is lowered by tests/test_models.py
    "rfm/solvers.py",  # LAPACK in place on a CPU
    "training/device_data.py",
}


def names_in(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name | ast.Attribute):
            yield node.id if isinstance(node, ast.Name) else node.attr


def test_no_other_place_compiles_or_asks_where_it_runs():
    """A step that another place compiles is to be lowered here; what depends on the process cannot be seen here."""
    names = {str(path.relative_to(PACKAGE)): set(names_in(path)) for path in sources()}
    assert {path for path, own in names.items() if own & COMPILERS} == COMPILED.keys()
    asking = {"default_backend", "platform", "platform_dependent"}
    assert {path for path, own in names.items() if own & asking} == ASKS_WHERE_IT_RUNS


# (name, side of the images, width)
LARGER = [("resnet20", 32, 1 / 8), ("vgg11_bn", 32, 1 / 16), ("vit_tiny", 224, 1 / 16)]


@pytest.mark.long
@pytest.mark.parametrize(("name", "side", "width"), LARGER)
def test_larger_networks(name, side, width):
    model = models.create(name, CLASSES, width)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, side, side, 3))))
    for _, traced in itertools.islice(traced_extraction(model, variables, side=side), 3):
        assert custom_calls(traced) == NOTHING
    for precision in ("float32", "bfloat16"):
        traced = traced_training(model, variables, precision=precision, stored=side, optimizer="adam")
        assert custom_calls(traced) == NOTHING
