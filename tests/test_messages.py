"""What a first call with the wrong images is told: the shape, the likely reason, what to do."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import agop_jax


class Flattening(nnx.Module):
    """Takes images of 4 x 4 alone: JAX itself meets a matrix of other rows than the image has numbers."""

    def __init__(self):
        self.conv, self.head = nnx.Conv(3, 2, (3, 3), rngs=nnx.Rngs(0)), nnx.Linear(32, 5, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.head(nnx.relu(self.conv(x)).reshape(len(x), -1))


class LinenFlattening(nn.Module):
    """The same: here Flax finds a parameter of another shape."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(5)(nn.relu(nn.Conv(2, (3, 3))(x)).reshape(len(x), -1))


class Tokens(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(jnp.tanh(nn.Dense(4)(nn.Embed(10, 3)(x))).mean(1))


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


NNX = Flattening(), None
LINEN = LinenFlattening(), jax.eval_shape(LinenFlattening().init, jax.random.key(0), images(1, 4, 4, 3))


@pytest.mark.parametrize(("model", "matrix"), [(NNX, "head/kernel"), (LINEN, "Dense_0/kernel")], ids=["NNX", "Linen"])
@pytest.mark.parametrize(
    ("shape", "hint"),
    [
        ((6, 8, 8, 3), "images of another size? '{}' of shape (32, 5) takes 32 numbers an example"),
        (
            (4, 2, 2, 3),
            "images of another size? '{}' of shape (32, 5) takes 32 numbers an example",
        ),  # 4 x 8 are 32, too
        ((4, 4, 3), "one example? inputs[None] has the leading axis of examples"),
        ((2, 3, 8, 8), "channels first? inputs.transpose(0, 2, 3, 1) puts them last"),
    ],
    ids=str,
)
def test_images_of_the_wrong_shape(model, matrix, shape, hint):
    """In both calls, with the shape of all inputs, though `initialize` looks at one."""
    said = f"the model cannot be called on inputs of shape {shape} ({hint.format(matrix)}): "
    calls = (
        lambda: agop_jax.features.Extractor(*model, images(*shape)),
        lambda: agop_jax.initialize(*model, images(*shape), None, "kaiming_normal", key=0),
    )
    for call in calls:
        with pytest.raises(agop_jax.UserError) as error:
            call()
        assert str(error.value).startswith(said)
        assert "\n" not in str(error.value)


def test_stored_pictures_are_warned_of_once():
    """Pictures are uint8; tokens are whole numbers of other types. The warning is at the line of the call."""
    pictures = np.zeros((2, 4, 4, 3), np.uint8)
    with pytest.warns(UserWarning, match="inputs of uint8: .* normalise") as seen:
        agop_jax.features.Extractor(*NNX, pictures)
    assert len(seen) == 1
    with pytest.warns(UserWarning, match="inputs of uint8"):
        agop_jax.initialize(*NNX, pictures, None, "lsuv", key=0, layers="conv")
    tokens = np.ones((2, 3), np.int32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agop_jax.features.Extractor(Tokens(), Tokens().init(jax.random.key(0), tokens), tokens)
        agop_jax.initialize(*NNX, pictures, None, "kaiming_normal", key=0)  # looks at the shape alone


def test_a_kernel_that_does_not_fit_says_which_axes_are_free():
    layer = agop_jax.LayerFeatures(jnp.ones((3, 3, 16, 24)), jnp.eye(24), 1, "conv")
    with pytest.raises(agop_jax.UserError) as error:
        agop_jax.kernel_init(layer, "he_nfm")(jax.random.key(0), (3, 3, 24, 24))
    assert str(error.value) == (
        "layer 'conv': the donor's kernel is (3, 3, 16, 24), the recipient's (3, 3, 24, 24): this method needs the "
        "same kernel size and input channels, and takes any number of filters; 'selected' and the copies to another "
        "width take other channels; or leave the layer out with layers=..."
    )
