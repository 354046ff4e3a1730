"""Extraction: three independent ways to the same matrices, and everything around them.

`gram` (reverse passes) is held against `patch_jacobian` (the definition, by JAX), that against numbers worked out by
hand and against finite differences of a network written in numpy.
"""

import operator

import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from flax import nnx

from agop_jax.core.errors import UserError
from agop_jax.core.networks import open_network
from agop_jax.features import grams, taps
from agop_jax.features.extraction import extract, merge
from agop_jax.features.layer import LayerFeatures
from agop_jax.features.steps import MAX_UNROLLED

TOLERANCE = {"float64": 1e-10, "float32": 1e-5}  # relative Frobenius error


def relative_error(found, expected) -> float:
    found, expected = np.asarray(found), np.asarray(expected)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def dense_agop(layer: LayerFeatures) -> np.ndarray:
    """W S W^T from the two fields, in numpy."""
    return _dense_agop(np.asarray(layer.kernel), np.asarray(layer.gradient_gram), layer.groups, layer.stacked)


def _dense_agop(kernel, gram, groups, stacked):
    if stacked:
        return np.stack([_dense_agop(k, s, groups, stacked - 1) for k, s in zip(kernel, gram, strict=True)])
    matrix = kernel.reshape(-1, kernel.shape[-1])
    if groups == 1:
        return matrix @ gram @ matrix.T
    return np.stack([w @ s @ w.T for w, s in zip(np.split(matrix, groups, axis=1), gram, strict=True)])


def check_against_definition(model, **options):
    """Two batches, the second padded; every layer. The definition, in float64, is the reference of both precisions."""
    options = {"batch_size": 2, "progress": False, **options}

    def layers(method, dtype):
        variables = networks.random_variables(model, dtype)
        return extract(model, variables, networks.images().astype(dtype), method=method, **options)

    with jax.enable_x64(True):
        definition = {path: np.asarray(layer.patch_agop) for path, layer in layers("patch_jacobian", "float64").items()}
    for dtype, tolerance in TOLERANCE.items():
        with jax.enable_x64(dtype == "float64"):
            gram = layers("gram", dtype)
        assert list(gram) == list(definition)
        for path, layer in gram.items():
            assert layer.gradient_gram.dtype == dtype
            assert relative_error(dense_agop(layer), definition[path]) <= tolerance, path
    return gram


SIZES = {"1": (1, 1), "3": (3, 3), "3x5": (3, 5)}
PADDINGS = {"SAME": "SAME", "VALID": "VALID", "asymmetric": ((2, 0), (1, 3))}
GEOMETRIES = {
    f"{size} stride {strides} {padding}": {"kernel_size": SIZES[size], "strides": strides, "padding": PADDINGS[padding]}
    for size in SIZES
    for strides in (1, 2)
    for padding in PADDINGS
} | {
    "even, no bias": {"kernel_size": (2, 4), "strides": (1, 2), "use_bias": False},
    "padding as a number": {"kernel_size": (3, 3), "padding": 2, "strides": 3},
    "kernel dilation": {"kernel_size": (3, 2), "kernel_dilation": (2, 3)},
    "input dilation": {"kernel_size": (3, 3), "input_dilation": 2, "padding": ((1, 0), (0, 2))},
    "both dilations": {
        "kernel_size": (2, 3),
        "kernel_dilation": 2,
        "input_dilation": (1, 2),
        "strides": 2,
        "padding": ((1, 0), (0, 2)),
    },
    "groups": {"kernel_size": (3, 3), "features": 6, "feature_group_count": 2, "strides": 2},
    "depthwise": {"kernel_size": (3, 3), "features": 8, "feature_group_count": 4, "padding": ((0, 1), (2, 0))},
    "mask": {"kernel_size": (3, 3), "mask": np.random.default_rng(2).integers(0, 2, (3, 3, 4, 5)).astype(np.float32)},
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_gram_is_the_definition_for_every_geometry(name):
    layers = check_against_definition(networks.OneConv({"features": 5, **GEOMETRIES[name]}))
    assert list(layers) == ["Conv_0", "head"]


LAYERS = {  # in the order of their first call
    "residual": ["Conv_0", "Conv_1", "Dense_0"],
    "batch_norm": ["Conv_0", "Conv_1", "Dense_0"],
    "shared": ["Conv_0", "Dense_0"],
    "remat": ["CheckpointBlock_0/Conv_0", "CheckpointBlock_0/Dense_0", "Dense_0"],
    "remat_shared": ["CheckpointBlock_0/Conv_0", "CheckpointBlock_0/Dense_0", "Dense_0"],
    "scan": ["ScanBlock_0/Conv_0", "ScanBlock_0/Dense_0", "Dense_0"],
    "vmap": ["VmapBlock_0/Conv_0", "VmapBlock_0/Dense_0", "Dense_0"],
    "tokens": ["Dense_0", "Dense_1", "Dense_2"],
    "conv_1d": ["Conv_0", "Dense_0"],
    "weight_norm": ["Conv_0", "Dense_0"],
}


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_gram_is_the_definition_for_every_construction(name):
    assert list(check_against_definition(networks.NETWORKS[name])) == LAYERS[name]


@pytest.mark.parametrize("outputs", [[2, 0], "loss"])
def test_gram_is_the_definition_for_other_outputs(outputs):
    layers = check_against_definition(
        networks.NETWORKS["residual"], outputs=outputs, labels=np.array([0, 2, 1]) if outputs == "loss" else None
    )
    chosen = {"loss": np.ones(3), "[2, 0]": np.array([1, 0, 1])}[str(outputs)]  # logits that may have a gradient
    assert ((np.diag(layers["Dense_0"].gradient_gram) > 0) == chosen).all()


def test_many_outputs_are_worked_off_in_chunks():
    """S of a last Dense layer is the identity over its outputs, here one more than one chunk holds."""
    model, images = nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(MAX_UNROLLED + 1)]), np.ones((3, 1, 2, 1))
    layer = extract(model, jax.jit(model.init)(jax.random.key(0), images), images, batch_size=2, progress=False)[
        "layers_1"
    ]
    np.testing.assert_allclose(layer.gradient_gram, np.eye(MAX_UNROLLED + 1), atol=1e-6)


class ByHand(nn.Module):
    """A 1 x 2 convolution to two channels, ReLU, Dense to two logits."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(2, (1, 2), padding="VALID")(x))
        return nn.Dense(2, use_bias=False)(x.reshape(len(x), -1))


@pytest.mark.parametrize("method", ["gram", "patch_jacobian"])
def test_a_case_worked_out_by_hand(method):
    """Filters a = (1, -1) and b = (2, 1), biases 0 and 1: W = [[1, 2], [-1, 1]] and NFM = W W^T = [[5, 1], [1, 2]].

    Image 1 is the row 1, 2, -1, -3, with patches, outputs and rows of the Dense kernel

        (1, 2)    a = -1 off   b =  5 on     a: 5  7   b:  1 -2
        (2, -1)   a =  3 on    b =  4 on     a: 3  1   b: -1  2
        (-1, -3)  a =  2 on    b = -4 off    a: 2  0   b:  9  9

    The gradients (a, b) at the outputs are the rows of what is on:
        logit 1:  (0, 1)   (3, -1)  (2, 0)
        logit 2:  (0, -2)  (1, 2)   (0, 0)
    Their outer products sum to [[9 + 4 + 1, -3 + 2], [-1, 1 + 1 + 4 + 4]] = [[14, -1], [-1, 10]].
    The gradients W delta at the patches:
        logit 1:  (2, 1)    (1, -4)  (2, -2)
        logit 2:  (-4, -2)  (5, 1)   (0, 0)
    Their outer products sum to [[4+1+4+16+25, 2-4-4+8+5], [7, 1+16+4+4+1]] = [[50, 7], [7, 26]].
    In image 2 nothing is on, so that the means over two images are half of this.
    """
    kernel = jnp.array([[1.0, 2], [-1, 1]]).reshape(1, 2, 1, 2)
    dense = jnp.array([[5.0, 7], [1, -2], [3, 1], [-1, 2], [2, 0], [9, 9]])
    variables = {"params": {"Conv_0": {"kernel": kernel, "bias": jnp.array([0.0, 1])}, "Dense_0": {"kernel": dense}}}
    images = np.array([[1, 2, -1, -3], [-2, -1, -0.5, -0.25]], np.float32).reshape(2, 1, 4, 1)
    layers = extract(ByHand(), variables, images, method=method, progress=False)
    conv, head = layers["Conv_0"], layers["Dense_0"]
    np.testing.assert_allclose(conv.nfm.dense(), [[5, 1], [1, 2]], rtol=1e-5)
    np.testing.assert_allclose(conv.agop.dense(), [[25, 3.5], [3.5, 13]], rtol=1e-5)
    np.testing.assert_allclose(
        head.agop.dense(), dense @ dense.T, atol=1e-4
    )  # logits are linear in their inputs: S = I
    if method == "gram":
        np.testing.assert_allclose(conv.gradient_gram, [[7, -0.5], [-0.5, 5]], rtol=1e-6)


class Differences:
    """The AGOP of two convolutions in a row by central differences, in numpy and without anything of the package."""

    strides, pads, step = (2, 1), ((2, 0), (1, 1)), 1e-5

    def __init__(self, params):
        self.first, self.second, self.head = (params[name] for name in ("Conv_0", "Conv_1", "Dense_0"))

    def patches(self, x):
        """Windows of 2 x 3 pixels, in row order."""
        x = np.pad(x, (*self.pads, (0, 0)))
        rows, columns = range(0, x.shape[0] - 1, self.strides[0]), range(0, x.shape[1] - 2, self.strides[1])
        return np.array([x[i : i + 2, j : j + 3].ravel() for i in rows for j in columns]), (len(rows), len(columns))

    def convolve(self, patches, layer, shape):
        return np.tanh(patches @ layer["kernel"].reshape(patches.shape[1], -1) + layer["bias"]).reshape(*shape, -1)

    def from_second(self, patches, shape):
        x = self.convolve(patches, self.second, shape)
        return x.mean((0, 1)) @ self.head["kernel"] + self.head["bias"]

    def from_first(self, patches, shape):
        return self.from_second(*self.patches(self.convolve(patches, self.first, shape)))

    def agop(self, network, patches, shape):
        total = 0
        for position in range(len(patches)):
            columns = []
            for entry in range(patches.shape[1]):
                shift = np.zeros_like(patches)
                shift[position, entry] = self.step
                columns.append((network(patches + shift, shape) - network(patches - shift, shape)) / (2 * self.step))
            jacobian = np.stack(columns, axis=1)  # (logits, k)
            total = total + jacobian.T @ jacobian
        return total

    def agops(self, image):
        first = self.patches(image)
        second = self.patches(self.convolve(*first[:1], self.first, first[1]))
        return {"Conv_0": self.agop(self.from_first, *first), "Conv_1": self.agop(self.from_second, *second)}


class TwoConvs(nn.Module):
    """What `Differences` computes."""

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.tanh(nn.Conv(3, (2, 3), strides=Differences.strides, padding=Differences.pads)(x))
        return nn.Dense(2)(x.mean((1, 2)))


def test_finite_differences_in_numpy_agree(x64):
    """The error of a central difference is of the order step^2 + 1e-16 / step = 1e-10."""
    model, images = TwoConvs(), networks.images(2).astype(np.float64)[:, :4, :4]
    variables = networks.random_variables(model, "float64")
    layers = extract(model, variables, images, progress=False)
    differences = Differences(variables["params"])
    each = [differences.agops(image) for image in images]
    for path in ("Conv_0", "Conv_1"):
        expected = (each[0][path] + each[1][path]) / 2
        assert relative_error(layers[path].agop.dense(), expected) < 1e-7


@pytest.fixture(scope="module")
def model():
    return networks.NETWORKS["residual"]


@pytest.fixture(scope="module")
def variables(model):
    return networks.random_variables(model)


@pytest.fixture(scope="module")
def run(model, variables):
    """Extraction of one network with changed arguments."""
    return lambda images, **options: extract(model, variables, images, progress=False, **options)


@pytest.fixture(scope="module")
def whole(run):
    """Five images in one batch, on which the tests of batching agree."""
    return run(networks.images(5))


def assert_same_features(found, expected):
    assert list(found) == list(expected)
    for path, layer in expected.items():
        assert found[path].count == layer.count
        np.testing.assert_allclose(found[path].gradient_gram, layer.gradient_gram, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
def test_the_last_batch_is_padded_and_masked(run, whole, batch_size):
    assert_same_features(run(networks.images(5), batch_size=batch_size), whole)


@pytest.mark.parametrize("batch_size", [2, 64])
def test_an_iterable_of_uneven_batches_is_the_array(run, whole, batch_size):
    images = networks.images(5)
    batches = (jnp.asarray(part) for part in (images[:3], images[3:]))
    assert_same_features(run(batches, batch_size=batch_size), whole)


def test_images_and_labels_come_as_arrays_or_in_pairs(run):
    images, labels = networks.images(5), np.array([0, 1, 2, 2, 1])
    expected = run(images, labels=labels, outputs="loss")
    pairs = [(images[:3], labels[:3]), [images[3:], labels[3:]]]
    assert_same_features(run(pairs, outputs="loss", batch_size=2), expected)


def test_batches_are_taken_one_after_another(run):
    """A stream that does not fit in memory: no second batch is asked for before the first was used."""

    def batches():
        yield networks.images(2)
        raise RuntimeError("asked for more")

    with pytest.raises(RuntimeError, match="asked for more"):
        run(batches())


def test_whole_numbers_are_images_too(model, variables):
    """As the layers see them: promoted to the type of the weights."""
    images = (10 * networks.images(2)).astype(np.int32)
    found = extract(model, variables, images, method="patch_jacobian", progress=False)
    expected = extract(model, variables, images.astype(np.float32), progress=False)
    for path, layer in expected.items():
        assert relative_error(found[path].patch_agop, dense_agop(layer)) < 1e-5


def test_the_fields_of_a_layer(whole, variables):
    assert list(whole) == ["Conv_0", "Conv_1", "Dense_0"]
    for path, layer in whole.items():
        assert (layer.path, layer.count, layer.groups, layer.stacked) == (path, 5, 1, 0)
        assert layer.standard_error is None
        assert layer.patch_agop is None
        np.testing.assert_array_equal(layer.kernel, variables["params"][path]["kernel"])
        np.testing.assert_array_equal(layer.bias, variables["params"][path]["bias"])
        assert layer.gradient_gram.shape == (layer.kernel.shape[-1],) * 2


def test_the_matrices_of_a_scanned_grouped_layer():
    """Two axes in front: three steps of the scan, two groups."""
    model = networks.NETWORKS["scan"]
    variables = networks.random_variables(model)
    layer = extract(model, variables, networks.images(), progress=False)["ScanBlock_0/Conv_0"]
    assert (layer.groups, layer.stacked, layer.matrix.shape) == (2, 1, (3, 2, 18, 2))
    np.testing.assert_allclose(layer.agop.dense(), dense_agop(layer), rtol=1e-4, atol=1e-6)
    kernel = variables["params"]["ScanBlock_0"]["Conv_0"]["kernel"][2].reshape(18, 4)[:, 2:]  # last step, second group
    np.testing.assert_allclose(layer.nfm.dense()[2, 1], kernel @ kernel.T, rtol=1e-4, atol=1e-6)


def test_the_definition_gives_matrices_but_no_gradient_gram(run):
    layer = run(networks.images(2), method="patch_jacobian")["Conv_1"]
    np.testing.assert_allclose(layer.agop.dense(), layer.patch_agop, atol=1e-6)
    assert layer.gradient_gram is None
    with pytest.raises(UserError, match="layer 'Conv_1': method 'patch_jacobian' gives no gradient Gram"):
        _ = layer.gram_root


def test_a_masked_kernel_is_the_one_used():
    mask = GEOMETRIES["mask"]["mask"]
    model = networks.OneConv({"features": 5, **GEOMETRIES["mask"]})
    variables = networks.random_variables(model)
    layer = extract(model, variables, networks.images(), progress=False)["Conv_0"]
    np.testing.assert_array_equal(layer.kernel, variables["params"]["Conv_0"]["kernel"] * mask)


def test_a_weight_normed_kernel_is_the_one_used():
    """Salimans & Kingma 2016: scale * kernel / |kernel|, the norm over all but the output axis."""
    model = networks.NETWORKS["weight_norm"]
    variables = networks.random_variables(model)
    layer = extract(model, variables, networks.images(), progress=False)["Conv_0"]
    kernel = variables["params"]["Conv_0"]["kernel"]
    scale = variables["params"]["WeightNorm_0"]["Conv_0/kernel/scale"]
    np.testing.assert_allclose(layer.kernel, scale * kernel / np.sqrt((kernel**2).sum((0, 1, 2))), rtol=1e-5)


class NnxTwin(nnx.Module):
    """`LinenTwin`, layer by layer."""

    def __init__(self, params, statistics):
        rngs = nnx.Rngs(0)
        self.stem = nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.grouped = nnx.Conv(4, 6, (3, 2), strides=2, feature_group_count=2, rngs=rngs)
        self.heads = nnx.List([nnx.Linear(6, 3, rngs=rngs)])
        for layer, name in (
            (self.stem, "stem"),
            (self.norm, "norm"),
            (self.grouped, "grouped"),
            (self.heads[0], "head"),
        ):
            for field, value in {**params[name], **statistics.get(name, {})}.items():
                getattr(layer, field)[...] = jnp.asarray(value)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.stem(nnx.tanh(self.stem(x)))))
        return self.heads[0](jnp.tanh(self.grouped(x)).mean((1, 2)))


class LinenTwin(nn.Module):
    """A shared convolution, BatchNorm, a grouped convolution."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        stem = nn.Conv(4, (3, 3), name="stem")
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(stem(nn.tanh(stem(x)))))
        x = nn.tanh(nn.Conv(6, (3, 2), strides=2, feature_group_count=2, name="grouped")(x))
        return nn.Dense(3, name="head")(x.mean((1, 2)))


@pytest.fixture(scope="module")
def twins():
    variables = networks.random_variables(LinenTwin())
    return variables, NnxTwin(variables["params"], variables["batch_stats"])


@pytest.fixture(scope="module")
def linen_layers(twins):
    return extract(LinenTwin(), twins[0], networks.images(), progress=False)


@pytest.mark.parametrize("method", ["gram", "patch_jacobian"])
def test_linen_and_nnx_twins_agree(twins, linen_layers, method):
    found = extract(twins[1], None, networks.images(), method=method, batch_size=2, progress=False)
    names = {"stem": "stem", "grouped": "grouped", "heads/0": "head"}
    assert set(found) == set(names)
    for path, layer in found.items():
        expected = linen_layers[names[path]]
        assert (layer.path, layer.groups, layer.count) == (path, expected.groups, 3)
        np.testing.assert_array_equal(layer.kernel, expected.kernel)
        assert relative_error(layer.agop.dense(), expected.agop.dense()) <= 1e-5


def test_the_callers_nnx_model_is_not_touched(twins):
    _, model = twins
    model.train()
    before = nnx.state(model)
    extract(model, None, networks.images(2), progress=False)
    assert type(model.stem) is nnx.Conv
    assert not model.norm.use_running_average
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), before)


class Wide(nn.Module):
    """A layer whose k x k matrices would have 4608^2 = 21 million elements, its kernel 2.4 million."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.relu(nn.Conv(512, (3, 3))(x)).mean((1, 2)))


def test_no_step_makes_a_k_by_k_array(largest_intermediate):
    images = jnp.zeros((2, 2, 2, 512))
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), jax.eval_shape(Wide().init, jax.random.key(0), images))
    tapped = taps.tap(open_network(Wide(), variables), images)
    cotangents = jnp.ones((2, 2, 2))

    def sums(variables):
        return grams.gradient_grams(
            tapped, lambda logits, labels: logits, (variables["params"], {}), images, jnp.zeros(2, int), cotangents
        )

    assert largest_intermediate(sums, variables) <= 3 * 3 * 512 * 512
    matrices = lambda kernel, gram: [getattr(LayerFeatures(kernel, gram, 1), name).trace for name in ("nfm", "agop")]
    assert largest_intermediate(matrices, variables["params"]["Conv_0"]["kernel"], jnp.eye(512)) == 3 * 3 * 512 * 512


class NoLayers(nn.Module):
    """Nothing but scales."""

    @nn.compact
    def __call__(self, x):
        return x.mean((1, 2)) * self.param("scale", nn.initializers.normal(), (4,))


class InLoop(nn.Module):
    """A layer in a loop whose number of rounds only the data tell."""

    @nn.compact
    def __call__(self, x):
        weights = self.param("kernel", nn.initializers.normal(), (4, 4))
        return jax.lax.while_loop(lambda x: jnp.linalg.norm(x) > 1, lambda x: x @ weights / 9, x.mean((1, 2)))


class Pixelwise(nn.Module):
    """One output a pixel."""

    @nn.compact
    def __call__(self, x):
        return nn.Conv(3, (1, 1))(x)


IMAGES = networks.images(3)
PAIR = [(IMAGES, np.array([0, 1, 3]))]
BAD_OPTIONS = {
    "unknown method": (IMAGES, {"method": "gramm"}, r"unknown method 'gramm'. Did you mean 'gram'\?"),
    "output out of range": (IMAGES, {"outputs": [0, 3]}, r"outputs: needed class indices from 0 to 2, got \[0, 3\]"),
    "output below zero": (IMAGES, {"outputs": [-1]}, r"outputs: needed class indices from 0 to 2, got \[-1\]"),
    "output twice": (IMAGES, {"outputs": [1, 1]}, r"none twice, got \[1, 1\]"),
    "no outputs": (IMAGES, {"outputs": []}, r"at least one class index .* got \[\]"),
    "unknown outputs": (
        IMAGES,
        {"outputs": "probs"},
        "needed 'logits', 'loss', class .* got 'probs'",
    ),
    "NaN in an image": (np.where(IMAGES > 2, np.nan, IMAGES), {}, "inputs: they hold NaN or infinity"),
    "infinity in a later batch": ([IMAGES, np.full_like(IMAGES, np.inf)], {}, "inputs: they hold NaN or infinity"),
    "no images": (IMAGES[:0], {}, "needed at least one example, got none"),
    "no batches": ([], {}, "needed at least one example, got none"),
    "one image": (IMAGES[0], {}, r"inputs of shape \(6, 7, 4\) lack the leading axis"),
    "channels first": (IMAGES.transpose(0, 3, 1, 2), {}, r"channels first\? inputs.transpose\(0, 2, 3, 1\)"),
    "objects": (np.array([object()] * 3), {}, "inputs: needed arrays of numbers, got one of type object"),
    "a number": (3.0, {}, r"inputs: needed an array \(n, ...\), a dictionary of such or an iterable, got float"),
    "batch size 0": (IMAGES, {"batch_size": 0}, "batch_size: needed a whole number of 1 or more, got 0"),
    "no probes": (IMAGES, {"method": "probe", "num_probes": 0}, "num_probes: needed 1 or more, got 0"),
    "no labels": (IMAGES, {"outputs": "loss"}, "outputs='loss' needs labels"),
    "no labels in a stream": ([IMAGES], {"outputs": "loss"}, "outputs='loss' needs labels"),
    "too few labels": (
        IMAGES,
        {"outputs": "loss", "labels": np.array([0, 1])},
        r"labels: needed one for each of 3 examples, \(n,\), got shape \(2,\)",
    ),
    "labels beside an iterable": ([IMAGES], {"labels": np.array([0, 1, 2])}, "an iterable of inputs brings its own"),
    "label out of range": (PAIR, {"outputs": "loss"}, "whole numbers from 0 to 2"),
    "labels with a fraction": (IMAGES, {"outputs": "loss", "labels": np.ones(3)}, "whole numbers from 0 to 2"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_arguments_are_named_in_one_line(run, name):
    images, options, message = BAD_OPTIONS[name]
    with pytest.raises(UserError, match=message) as caught:
        run(images, **options)
    assert "\n" not in str(caught.value)


def test_layers_that_match_nothing_are_named_before_the_extraction(run):
    batches = iter([IMAGES, IMAGES])
    with pytest.raises(UserError, match="layers='Conv' matches no layer"):
        run(batches, layers="Conv")
    assert next(batches) is IMAGES  # the second


def pair_of_heads(params, x):
    """Two outputs of (n, m), a scalar, and one that mixes examples."""
    hidden = jnp.tanh(x @ params["hidden"])
    left, right = hidden @ params["left"], hidden @ params["right"]
    return {"left": left, "right": right, "penalty": (hidden**2).mean(), "centred": left - left.mean(0)}


def test_outputs_may_be_a_function_without_weak_references():
    """Nor are other outputs than the chosen ones looked at."""
    draw = lambda seed, *shape: np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    params, x = {"hidden": draw(0, 3, 4), "left": draw(1, 4, 2), "right": draw(2, 4, 2)}, draw(3, 5, 3)
    for name in ("left", "right"):
        chosen = operator.itemgetter(name)
        found = extract(pair_of_heads, params, x, outputs=chosen, progress=False)["hidden"]
        expected = extract(lambda *both: pair_of_heads(*both)[name], params, x, progress=False)["hidden"]  # noqa: B023
        assert relative_error(found.gradient_gram, expected.gradient_gram) < 1e-6
    with pytest.raises(UserError, match="depend on the other examples of a batch"):
        extract(pair_of_heads, params, x, outputs=operator.itemgetter("centred"), progress=False)


def test_merged_parts_are_the_whole(run, whole):
    parts = [run(images) for images in (networks.images(5)[:2], networks.images(5)[2:])]
    for path, layer in merge(parts).items():
        assert relative_error(layer.gradient_gram, whole[path].gradient_gram) < 1e-6
        assert layer.count == 5
    probed = merge([run(IMAGES, method="probe", num_probes=2, key=seed) for seed in (0, 1)])
    assert all(layer.standard_error is None for layer in probed.values())
    with pytest.raises(UserError, match="'patch_jacobian' gives no gradient Gram matrix"):
        merge([run(IMAGES, method="patch_jacobian")])


BAD_MODELS = {
    "batch statistics": (
        networks.NETWORKS["batch_norm"],
        {"train": True},
        r"changes its statistics in a call.*apply_kwargs=\{'train': False\}",
    ),
    "no layers": (NoLayers(), {}, "multiplies its inputs with no parameter"),
    "a loop": (InLoop(), {}, "a layer lies inside lax.while_loop or fori_loop"),
    "one output a pixel": (Pixelwise(), {}, r"the model returns shape \(3, 6, 7, 3\), needed \(n, m\)"),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_bad_models_are_named_in_one_line(name):
    model, arguments, message = BAD_MODELS[name]
    with pytest.raises(UserError, match=message) as caught:
        extract(model, networks.random_variables(model), IMAGES, apply_kwargs=arguments, progress=False)
    assert "\n" not in str(caught.value)


def test_a_linen_model_needs_variables(model):
    with pytest.raises(UserError, match=r"a Linen model needs \{'params'"):
        extract(model, None, IMAGES)


@pytest.mark.parametrize("method", ["gram", "probe", "patch_jacobian"])
@pytest.mark.parametrize(("layer", "leaf"), [("Conv_0", "kernel"), ("Conv_0", "bias"), ("Dense_0", "kernel")])
def test_weights_that_diverged_are_named(model, variables, layer, leaf, method):
    """NaN in the first layer alone reaches no gradient: its ReLU is off and passes back zeros."""
    broken = jax.tree.map(np.copy, variables)
    broken["params"][layer][leaf].flat[0] = np.nan
    with pytest.raises(UserError, match=f"'{layer}/{leaf}' holds NaN or infinity"):
        extract(model, broken, IMAGES, method=method, progress=False)


def test_gradients_that_overflow_are_named(model, variables):
    """Finite weights of 1e30: their products are beyond float32."""
    broken = jax.tree.map(np.copy, variables)
    broken["params"]["Dense_0"]["kernel"][:] = 1e30
    with pytest.raises(UserError, match="layer 'Conv_0': the gradients hold NaN or infinity"):
        extract(model, broken, IMAGES, progress=False)


class NnxBatchStatistics(nnx.Module):
    """Its BatchNorm is told to use the statistics of the batch."""

    def __init__(self):
        self.conv, self.norm = nnx.Conv(4, 3, (1, 1), rngs=nnx.Rngs(0)), nnx.BatchNorm(3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.norm(self.conv(x), use_running_average=False).mean((1, 2))


def test_bad_nnx_models_are_named():
    with pytest.raises(UserError, match="depend on the other examples of a batch"):
        extract(NnxBatchStatistics(), None, IMAGES, progress=False)
    with pytest.raises(UserError, match="multiplies its inputs with no parameter"):
        extract(nnx.Sequential(nnx.BatchNorm(4, rngs=nnx.Rngs(0)), lambda x: x.mean((1, 2))), None, IMAGES)


def test_the_model_is_called_for_the_taps_and_for_the_independence_of_examples_alone():
    """Every call is a trace, which of a deep network takes seconds."""
    calls = []

    def model(params, inputs):
        calls.append(inputs.shape)
        return inputs @ params["w"]

    extract(model, {"w": jnp.ones((3, 2))}, np.ones((5, 3), np.float32), progress=False)
    assert calls == [(5, 3), (2, 3)]
