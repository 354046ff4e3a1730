"""Any JAX model, unmodified: features against the definition, and initial parameters that the layers then use."""

import os
import subprocess
import sys

import constructions
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import agop_jax
from agop_jax.core.networks import open_network
from agop_jax.features.taps import tap

TOLERANCE = {"float64": 1e-10, "float32": 1e-5}  # relative Frobenius error, against the definition in float64
COMPUTED = {
    "SpectralNorm": "Spectral_0/Conv_0",
    "StdConv": "StdConv_0",
    "NNX LoRA": None,
}  # cannot be drawn


def typed(tree, dtype):
    cast = lambda leaf: jnp.asarray(leaf, dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
    return jax.tree.map(lambda leaf: cast(leaf) if hasattr(leaf, "dtype") else leaf, tree)


def agops(case, method, dtype):
    model, variables, inputs = case
    if variables is None:
        network = open_network(model)
        model = network.rebuild(typed(network.params, dtype), network.others)
    features = agop_jax.extract(model, typed(variables, dtype), inputs.astype(dtype), method=method, progress=False)
    return {path: np.asarray(layer.agop.dense(), np.float64) for path, layer in features.items()}


SLOW = {"LSTM", "optimized LSTM", "attention", "scan", "a kernel a head", "NNX LoRA", "vmap", "SpectralNorm", "Equinox"}
SLOW |= {"DenseGeneral", "scan of one kernel", "NNX attention", "NNX scan of remat"}
CASES = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in constructions.CASES]


@pytest.mark.parametrize("name", CASES)
def test_features_are_the_definition(name):
    case = constructions.CASES[name]()
    with jax.enable_x64(True):
        definition = agops(case, "patch_jacobian", "float64")
    for dtype, tolerance in TOLERANCE.items():
        with jax.enable_x64(dtype == "float64"):
            for path, agop in agops(case, "gram", dtype).items():
                error = np.linalg.norm(agop - definition[path]) / np.linalg.norm(definition[path])
                assert error <= tolerance, (dtype, path)


def outputs(model, variables, inputs):
    network = open_network(model, variables)
    return np.asarray(network.apply(network.params, network.others, jnp.asarray(inputs, jnp.float32)))


def flat(model, variables):
    network = open_network(model, variables)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(network.params)]


@pytest.mark.parametrize("name", CASES)
def test_a_copy_onto_itself_changes_nothing(name):
    model, variables, inputs = constructions.CASES[name]()
    inputs = inputs.astype(np.float32)
    features = agop_jax.extract(model, variables, inputs, progress=False)
    layers = "|".join(path for path in features if path != COMPUTED.get(name, ""))
    if name == "NNX LoRA":
        layers = "head"
    copied = agop_jax.initialize(model, variables, inputs, features, "copy", key=0, layers=layers)
    if variables is None:
        assert type(copied) is type(model)
        found = outputs(copied, None, inputs)
    else:
        assert jax.tree.structure(copied) == jax.tree.structure(variables)
        found = outputs(model, copied, inputs)
    np.testing.assert_allclose(found, outputs(model, variables, inputs), atol=1e-5)


METHODS = ["kaiming_normal", "he_nfm", "lsuv", "coupled_nfm", "copy", "whitened", "selected@K=2"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["attention", "NNX norms", "Equinox", "function", "Haiku"])
def test_methods_draw_what_the_layers_use(name, method):
    """Every layer of one matrix anew; what no layer holds stays as it was."""
    model, variables, inputs = constructions.CASES[name]()
    inputs = inputs.astype(np.float32)
    features = agop_jax.extract(model, variables, inputs, progress=False)
    layers = "|".join(path for path, layer in features.items() if layer.groups == 1 and path != "loop")
    donor = agop_jax.Donor(model, variables, inputs)
    drawn = agop_jax.initialize(model, variables, inputs, features, method, key=0, layers=layers, donor=donor)
    model, variables = (drawn, None) if variables is None else (model, drawn)
    assert np.isfinite(outputs(model, variables, inputs)).all()
    again = agop_jax.extract(model, variables, inputs, layers=layers, progress=False)
    for path, layer in again.items():
        assert np.allclose(layer.kernel, features[path].kernel, atol=1e-6) == (method == "copy"), path


@pytest.mark.parametrize("base", ["nfm", "he_agop", "coupled_nfm", "coupled_sqrt_agop"])
@pytest.mark.parametrize("control", ["matched_isotropic", "matched_spectrum"])
def test_a_matched_control_has_the_norms_of_what_it_controls(control, base):
    """Layer by layer, also where these come from a scaling to unit variance."""
    model, variables, inputs = constructions.CASES["NNX norms"]()
    inputs = inputs.astype(np.float32)
    features = agop_jax.extract(model, variables, inputs, progress=False)
    donor = agop_jax.Donor(model, variables, inputs)
    norms = []
    for method in (base, f"{control}:{base}"):
        drawn = agop_jax.initialize(model, variables, inputs, features, method, key=3, donor=donor)
        network = open_network(drawn)
        kernels = tap(network, jnp.asarray(inputs)).kernels(network.params, network.others)
        norms.append({path: float((kernel**2).mean()) for path, kernel in kernels.items()})
    assert norms[1] == pytest.approx(norms[0], rel=0.01)


@pytest.mark.slow
def test_fan_in_is_the_length_of_a_filter():
    """He et al. ask for variance 2 / k, whatever axes the parameter has: steps of a scan, heads of attention."""
    for name in ("scan", "attention", "a kernel a head"):
        model, variables, inputs = constructions.CASES[name]()
        norms: dict[str, list[float]] = {}
        for seed in range(40):
            drawn = agop_jax.initialize(model, variables, inputs, None, "kaiming_normal", key=seed)
            network = open_network(model, drawn)
            for path, kernel in tap(network, jnp.asarray(inputs[:1], jnp.float32)).kernels(network.params, {}).items():
                norms.setdefault(path, []).append(float((kernel**2).sum() / (kernel.size / kernel.shape[-2])))
        for path, values in norms.items():
            assert np.mean(values) == pytest.approx(2, rel=0.1), (name, path)


@pytest.mark.parametrize("name", [name for name, layer in COMPUTED.items() if layer])
def test_kernels_that_are_computed_are_refused(name):
    model, variables, inputs = constructions.CASES[name]()
    with pytest.raises(agop_jax.UserError, match="its kernel is computed from its parameters"):
        agop_jax.initialize(model, variables, inputs.astype(np.float32), None, "kaiming_normal", key=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_parameters_stay_short(dtype):
    """Features are summed in float32; drawn parameters come in the type of those that they replace."""
    model, variables, inputs = constructions.CASES["circular"]()
    short = typed(variables, dtype)
    features = agop_jax.extract(model, short, inputs.astype(np.float32), progress=False)
    exact = agop_jax.extract(model, typed(short, "float32"), inputs.astype(np.float32), progress=False)
    for path, layer in features.items():
        assert layer.gradient_gram.dtype == jnp.float32
        reference = np.asarray(exact[path].agop.dense())
        assert np.linalg.norm(layer.agop.dense() - reference) <= 0.02 * np.linalg.norm(reference)
    drawn = agop_jax.initialize(model, short, inputs.astype(np.float32), features, "he_nfm", key=0)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(drawn)} == {dtype}
    copied = agop_jax.initialize(model, short, inputs.astype(np.float32), features, "copy", key=0)
    jax.tree.map(np.testing.assert_array_equal, copied, short)


def test_inputs_may_be_a_dictionary_and_outputs_a_function():
    def model(params, batch):
        return {"logits": jnp.tanh(batch["a"] @ params["a"] + batch["b"] @ params["b"]), "other": batch["a"]}

    draw = lambda seed, *shape: np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    params, batch = {"a": draw(0, 4, 3), "b": draw(1, 2, 3)}, {"a": draw(2, 7, 4), "b": draw(3, 7, 2)}
    options = {"outputs": lambda returned: returned["logits"], "progress": False, "batch_size": 3}
    exact = agop_jax.extract(model, params, batch, **options)
    definition = agop_jax.extract(model, params, batch, method="patch_jacobian", **options)
    for path in ("a", "b"):
        np.testing.assert_allclose(exact[path].agop.dense(), definition[path].patch_agop, rtol=1e-4)
    with pytest.raises(agop_jax.UserError, match=r"the model returns a dict, needed one array \(n, m\)"):
        agop_jax.extract(model, params, batch, progress=False)


def test_blocks_of_s_are_the_heads_own():
    """Of a projection to heads, the diagonal blocks of S are what each head by itself would have."""
    model, variables, inputs = constructions.CASES["attention"]()
    layer = agop_jax.extract(model, variables, inputs.astype(np.float32), progress=False)
    query = layer["MultiHeadDotProductAttention_0/query"]
    assert query.kernel.shape == (constructions.WIDTH, 6)  # 2 heads of 3 columns
    heads = agop_jax.extract(*_separate_heads(model, variables), inputs.astype(np.float32), progress=False)
    for head in range(2):
        block = query.gradient_gram[3 * head : 3 * head + 3, 3 * head : 3 * head + 3]
        np.testing.assert_allclose(heads[f"query/{head}"].gradient_gram, block, rtol=1e-3, atol=1e-7)


def _separate_heads(model, variables):
    """The same network with a query parameter for each head."""
    path = ("MultiHeadDotProductAttention_0", "query")
    kernel = variables["params"][path[0]][path[1]]["kernel"]

    def function(params, x):
        joined = jnp.stack([params["query"]["0"], params["query"]["1"]], axis=1)
        attention = variables["params"][path[0]]
        own = {**variables["params"], path[0]: {**attention, "query": {**attention["query"], "kernel": joined}}}
        return model.apply({"params": own}, x)

    def split(params, x):
        """Each head's queries by a product of their own."""
        attention = dict(variables["params"][path[0]])
        bias = attention["query"]["bias"]
        heads = [x @ params["query"][str(head)] + bias[head] for head in range(2)]
        project = lambda name: jnp.einsum("btd,dhk->bthk", x, attention[name]["kernel"]) + attention[name]["bias"]
        q, k, v = jnp.stack(heads, 2), project("key"), project("value")
        weights = jax.nn.softmax(jnp.einsum("bqhk,bthk->bhqt", q, k) / np.sqrt(3), -1)
        mixed = jnp.einsum("bhqt,bthk->bqhk", weights, v)
        x = jnp.einsum("bqhk,hkd->bqd", mixed, attention["out"]["kernel"]) + attention["out"]["bias"]
        dense = variables["params"]["Dense_0"]
        return jnp.tanh(x).mean(1) @ dense["kernel"] + dense["bias"]

    params = {"query": {str(head): jnp.asarray(kernel[:, head]) for head in range(2)}}
    x = jnp.asarray(constructions.sequences(), jnp.float32)
    np.testing.assert_allclose(function(params, x), split(params, x), atol=1e-5)
    return split, params


@pytest.mark.slow
def test_nnx_in_its_tree_mode():
    """The mode that is to be Flax's default: the same tests of NNX models in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", __file__, "-k", "definition and NNX"]
    environment = {**os.environ, "NNX_GRAPH_MODE": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
