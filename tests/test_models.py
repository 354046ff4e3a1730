"""Networks: published sizes, any width, and the operations rewritten for CPUs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agop_jax import models
from agop_jax.core.errors import UserError
from agop_jax.models.layers import BatchNorm, adaptive_mean_pool, convolve, max_pool

# (name, fields, image shape, number of parameters by hand)
SIZES = [
    # conv 5*5*1*6+6, conv 5*5*6*16+16, dense 400*120+120, 120*84+84, 84*10+10
    ("lenet5", {}, (28, 28, 1), 156 + 2416 + 48120 + 10164 + 850),
    # 3x3 convolutions 3-32-64-128-128 with biases, dense 128*10+10
    ("small_cnn", {}, (32, 32, 3), 896 + 18496 + 73856 + 147584 + 1290),
    ("small_cnn", {"features": (16, 32, 64)}, (8, 8, 1), 160 + 4640 + 18496 + 650),
    # torchvision's vgg11().features has 9,220,480 parameters; dense 512*10+10
    ("vgg11", {}, (32, 32, 3), 9_220_480 + 5130),
]


# name -> (fields, classes, side of the images, parameters)
# For 1,000 classes: `num_params` in torchvision's documentation of each model; of vit_tiny_patch16_224 in timm's.
# ResNet-20 to -56: He et al. 2016, Table 6, states 0.27, 0.46, 0.66 and 0.85 million; exactly, with n blocks a stage,
# 464 + 2n 2336 + (4608 + (2n - 1) 9216 + 2n 64) + (18432 + (2n - 1) 36864 + 2n 128) + 650.
# ResNet-18 with the CIFAR stem: github.com/kuangliu/pytorch-cifar.
CLASSIC = {"head": "classic"}
PUBLISHED = {
    "alexnet": ({}, 1000, 224, 61_100_840),
    "vgg11": (CLASSIC, 1000, 224, 132_863_336),
    "vgg11_bn": (CLASSIC, 1000, 224, 132_868_840),
    "vgg13": (CLASSIC, 1000, 224, 133_047_848),
    "vgg13_bn": (CLASSIC, 1000, 224, 133_053_736),
    "vgg16": (CLASSIC, 1000, 224, 138_357_544),
    "vgg16_bn": (CLASSIC, 1000, 224, 138_365_992),
    "vgg19": (CLASSIC, 1000, 224, 143_667_240),
    "vgg19_bn": (CLASSIC, 1000, 224, 143_678_248),
    "resnet18": ({}, 1000, 224, 11_689_512),
    "resnet34": ({}, 1000, 224, 21_797_672),
    "resnet50": ({}, 1000, 224, 25_557_032),
    "resnet18 cifar": ({"stem": "cifar"}, 10, 32, 11_173_962),
    "resnet20": ({}, 10, 32, 269_722),
    "resnet32": ({}, 10, 32, 464_154),
    "resnet44": ({}, 10, 32, 658_586),
    "resnet56": ({}, 10, 32, 853_018),
    "vit_tiny": ({}, 1000, 224, 5_717_416),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_number_of_parameters(name):
    fields, classes, size, count = PUBLISHED[name]
    model = models.create(name.partition(" ")[0], classes, **fields)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_a_model_is_described_by_what_creates_it():
    for name in models.MODELS:
        model = models.create(name, 7, width=0.5)
        assert models.describe(model)["name"] == name
        assert models.create(**models.describe(model)) == model


@pytest.mark.parametrize(("name", "fields", "shape", "count"), SIZES)
def test_number_of_parameters(name, fields, shape, count):
    model = models.create(name, 10, **fields)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == count


@pytest.mark.parametrize("width", [0.5, 2.0])
@pytest.mark.parametrize(("name", "shape"), [("lenet5", (28, 28, 1)), ("small_cnn", (9, 8, 3)), ("vgg11", (40, 32, 3))])
def test_any_width_gives_logits(name, shape, width):
    model = models.create(name, 7, width=width)
    output = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), jnp.zeros((2, *shape))))
    logits, variables = output
    assert logits.shape == (2, 7)
    plain = jax.eval_shape(models.create(name, 7).init, jax.random.key(0), jnp.zeros((2, *shape)))
    first = lambda tree: tree["params"]["Conv_0"]["kernel"].shape[-1]
    assert first(variables) == width * first(plain)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "lenet"}, "unknown model 'lenet'. Did you mean 'lenet5'.*small_cnn"),
        ({"name": "small_cnn", "feature": (3,)}, "unknown field of model 'small_cnn'.*Did you mean 'features'"),
        ({"name": "vgg11", "depth": 13}, "unknown field of model 'vgg11' 'depth'"),
        ({"name": "vgg11", "width": -1.0}, "width: wanted a factor above 0"),
    ],
)
def test_unknown_names(arguments, message):
    with pytest.raises(UserError, match=message):
        models.create(num_classes=10, **arguments)


@pytest.mark.parametrize(("name", "size"), [("lenet5", 15), ("vgg11", 28), ("alexnet", 62)])
def test_too_small_images(name, size):
    with pytest.raises(UserError, match=f"{name}: wanted images of at least .* got {size} x {size}"):
        models.create(name, 10).init(jax.random.key(0), jnp.zeros((1, size, size, 3)))


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 2), (3, 3)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
@pytest.mark.parametrize("padding", ["SAME", ((1, 1), (1, 1)), ((0, 2), (2, 1))])
def test_convolve_is_the_convolution(size, strides, padding, x64):
    x = jax.random.normal(jax.random.key(0), (3, *size, 4), jnp.float64)
    w = jax.random.normal(jax.random.key(1), (3, 3, 4, 5), jnp.float64)
    options = {
        "lhs_dilation": (1, 1),
        "rhs_dilation": (1, 1),
        "dimension_numbers": nn.linear._conv_dimension_numbers(x.shape),
        "feature_group_count": 1,
        "precision": None,
    }

    def gradients(function):
        value = lambda x, w: jnp.sin(function(x, w, strides, padding, **options)).sum()
        return function(x, w, strides, padding, **options), *jax.grad(value, argnums=(0, 1))(x, w)

    for ours, theirs in zip(gradients(convolve), gradients(jax.lax.conv_general_dilated), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("size", [(4, 4), (5, 6), (7, 8)])
@pytest.mark.parametrize(("window", "strides", "padding"), [(2, 2, 0), (3, 2, 0), (3, 2, 1), (2, 2, 1), (3, 1, 1)])
def test_max_pool_is_flax_max_pool(size, window, strides, padding, x64):
    x = jax.random.normal(jax.random.key(0), (3, *size, 2), jnp.float64)
    ours = lambda x: max_pool(x, window, strides, padding)
    theirs = lambda x: nn.max_pool(x, (window,) * 2, (strides,) * 2, ((padding,) * 2,) * 2)
    np.testing.assert_array_equal(ours(x), theirs(x))
    gradients = [jax.grad(lambda x, f=f: jnp.sin(f(x)).sum())(x) for f in (ours, theirs)]
    np.testing.assert_allclose(*gradients, atol=1e-15)


@pytest.mark.parametrize(("height", "width", "size"), [(7, 7, 7), (5, 8, 3), (2, 3, 7), (9, 6, 6)])
def test_adaptive_mean_pool_is_the_mean_of_each_window(height, width, size, x64):
    """Of PyTorch's windows, written out: rows floor(i h / n) to ceil((i + 1) h / n)."""
    x = np.random.default_rng(0).normal(size=(2, height, width, 3))
    rows, columns = (
        [slice(int(np.floor(i * n / size)), int(np.ceil((i + 1) * n / size))) for i in range(size)]
        for n in (height, width)
    )
    means = np.stack([np.stack([x[:, a, b].mean((1, 2)) for b in columns], 1) for a in rows], 1)
    np.testing.assert_allclose(adaptive_mean_pool(jnp.asarray(x), size), means, atol=1e-14)


def test_adaptive_mean_pool_keeps_the_precision_of_the_passes():
    assert adaptive_mean_pool(jnp.ones((1, 4, 7, 2), jnp.bfloat16), 7).dtype == jnp.bfloat16


def normalisations(shape, dtype, **options):
    """Flax's and ours: functions of parameters and inputs that give outputs and new statistics."""
    theirs = nn.BatchNorm(momentum=0.9, epsilon=1e-5, dtype=None, **options)
    keys = jax.random.split(jax.random.key(0), 6)
    draw = lambda key, *size: jax.random.normal(key, size, dtype)
    params = {"scale": draw(keys[0], shape[-1]), "bias": draw(keys[1], shape[-1])}
    statistics = {"mean": draw(keys[2], shape[-1]), "var": draw(keys[3], shape[-1]) ** 2}

    def function(module):
        variables = lambda params: {"params": params, "batch_stats": statistics}
        return lambda params, x: module.apply(variables(params), x, mutable=["batch_stats"])

    arguments = (params, 1 + 2 * draw(keys[4], *shape))
    return function(BatchNorm(**options)), function(theirs), arguments, draw(keys[5], *shape)


def assert_equal_trees(ours, theirs, **tolerances):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, **tolerances), ours, theirs)


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("shape", [(6, 3), (4, 5, 3), (3, 5, 4, 2), (7, 1)])
def test_batch_norm_is_flax_batch_norm(shape, average, x64):
    ours, theirs, arguments, cotangent = normalisations(shape, jnp.float64, use_running_average=average)
    loss = lambda form: jax.grad(lambda *arguments: jnp.vdot(form(*arguments)[0], cotangent), (0, 1))
    tangents = jax.tree.map(jnp.cos, arguments)
    forms = (lambda form: form, loss, lambda form: lambda *given: jax.jvp(form, given, tangents))
    for form in forms:
        assert_equal_trees(form(ours)(*arguments), form(theirs)(*arguments), rtol=1e-9, atol=1e-11)


@pytest.mark.slow
def test_second_derivative_of_batch_norm(x64):
    ours, theirs, (params, x), cotangent = normalisations((4, 3), jnp.float64, use_running_average=False)
    hessian = lambda form: jax.hessian(lambda x: jnp.vdot(jnp.sin(form(params, x)[0]), cotangent))(x)
    np.testing.assert_allclose(hessian(ours), hessian(theirs), rtol=1e-8, atol=1e-10)


def test_batch_norm_keeps_its_statistics_in_float32():
    x = jax.random.normal(jax.random.key(0), (4, 3), jnp.bfloat16)
    for form in (BatchNorm(use_running_average=False), nn.BatchNorm(use_running_average=False)):
        variables = form.init(jax.random.key(0), x)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
        low = {"params": jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables["params"])}
        y, changed = form.apply(variables | low, x, mutable=["batch_stats"])
        assert y.dtype == jnp.bfloat16
        assert {leaf.dtype for leaf in jax.tree.leaves(changed)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(("platform", "products"), [("cpu", True), ("cuda", False)])
def test_sums_of_batch_norm_are_products_on_a_cpu_alone(platform, products):
    ours, _, arguments, _ = normalisations((3, 4, 4, 2), jnp.float32, use_running_average=False)
    gradient = jax.grad(lambda *arguments: ours(*arguments)[0].sum(), (0, 1))
    text = jax.jit(gradient).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
    assert ("dot_general" in text) is products
