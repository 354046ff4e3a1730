"""Networks: published sizes, any width, and the two operations rewritten for CPUs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agop_jax import models
from agop_jax.errors import UserError
from agop_jax.models.layers import convolve, max_pool

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
        ({"name": "vgg11", "width": -1.0}, "width: wanted a factor above 0"),
    ],
)
def test_unknown_names(arguments, message):
    with pytest.raises(UserError, match=message):
        models.create(num_classes=10, **arguments)


@pytest.mark.parametrize(("name", "size"), [("lenet5", 8), ("vgg11", 28)])
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


@pytest.mark.parametrize("size", [(4, 4), (5, 6)])
def test_max_pool_is_flax_max_pool(size, x64):
    x = jax.random.normal(jax.random.key(0), (3, *size, 2), jnp.float64)
    flax_pool = lambda x: nn.max_pool(x, (2, 2), (2, 2))
    np.testing.assert_array_equal(max_pool(x), flax_pool(x))
    gradients = [jax.grad(lambda x, f=f: jnp.sin(f(x)).sum())(x) for f in (max_pool, flax_pool)]
    np.testing.assert_allclose(*gradients, atol=1e-15)
