"""What `save_pretrained` writes for PyTorch: a state dict with a card, whose code makes the same network."""

import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import agop_jax
from agop_jax import models
from agop_jax.core import tensors
from agop_jax.core.errors import UserError
from agop_jax.models.torch_names import FAMILIES
from agop_jax.models.torch_states import to_state_dict

CLASSES = 3


def network(name, side, channels, **fields):
    """Random weights; statistics of BatchNorm away from 0 and 1."""
    model = models.create(name, CLASSES, **fields)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, channels)))
    random = np.random.default_rng(0)

    def leaf(shape):
        kernel = len(shape.shape) > 1
        scale = (2 / np.prod(shape.shape[:-1])) ** 0.5 if kernel else 1
        values = random.normal(size=shape.shape) * scale if kernel else random.uniform(0.5, 1.5, shape.shape)
        return values.astype(np.float32)

    variables = jax.tree.map(leaf, shapes)
    constants = tuple(random.uniform(0.2, 0.8, (2, channels)).tolist())
    return agop_jax.Pretrained(model, variables, *map(tuple, constants))


def code_of(card):
    (code,) = re.findall(r"## In PyTorch\n.*?```python\n(.*?)```", card, flags=re.DOTALL)
    return code


def stand_ins():
    """The libraries of the cards, with networks of the same names and shapes in the tests' own PyTorch."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch: pip install -e '.[torch]'")
    import torch_networks as twins

    def vgg(num_classes):
        made = twins.VGG(11, False, 1.0, num_classes)
        made.forward = lambda x: made.classifier(getattr(made, "avgpool", made.pool)(made.features(x)).flatten(1))
        return made

    def residual(num_classes):
        made = twins.ResNet((2, 2, 2, 2), 64, num_classes, "imagenet")

        def forward(x):
            x = getattr(made, "maxpool", made.pool)(made.bn1(made.conv1(x)).relu())
            for stage in (made.layer1, made.layer2, made.layer3, made.layer4):
                x = stage(x)
            return made.fc(x.mean((2, 3)))

        made.forward = forward
        return made

    timm_vit = lambda img_size, patch_size, in_chans, num_classes, embed_dim, depth, num_heads: twins.ViT(
        img_size, patch_size, embed_dim, num_heads, depth, num_classes
    )

    def cifar(block, blocks, num_classes):
        made = twins.ResNet(tuple(blocks), 16, num_classes, "cifar", projection=False)
        made.linear, made.fc = made.fc, torch.nn.Identity()
        made.forward = lambda x: made.linear(twins.ResNet.forward(made, x))
        return made

    return {
        "torchvision": types.SimpleNamespace(models=types.SimpleNamespace(vgg11=vgg, resnet18=residual)),
        "timm": types.SimpleNamespace(models=types.SimpleNamespace(VisionTransformer=timm_vit)),
        "resnet": types.SimpleNamespace(BasicBlock=None, ResNet=cifar),
    }


# what is exported: model, side of the images, channels, fields
CASES = {
    "small_cnn": ("small_cnn", 9, 1, {"features": (4, 6, 5), "width": 0.5}),
    "lenet5": ("lenet5", 28, 1, {}),
    "resnet20": ("resnet20", 32, 3, {}),
    "resnet18, CIFAR stem": ("resnet18", 32, 1, {"stem": "cifar"}),
    "vit_tiny": ("vit_tiny", 16, 3, {"patch_size": 8, "depth": 2, "width": 0.25}),
    "vgg11, mean head": ("vgg11", 32, 1, {}),
    "resnet18": pytest.param("resnet18", 64, 3, {}, marks=pytest.mark.long),
    "vgg11": pytest.param("vgg11", 32, 3, {"head": "classic"}, marks=pytest.mark.long),  # half a gigabyte
}


@pytest.mark.parametrize(("name", "side", "channels", "fields"), CASES.values(), ids=CASES)
def test_the_code_of_the_card_makes_the_same_network(name, side, channels, fields, tmp_path, monkeypatch):
    for library, module in stand_ins().items():
        monkeypatch.setitem(sys.modules, library, module)
    import torch

    own = network(name, side, channels, **fields)
    agop_jax.save_pretrained(tmp_path / "a.safetensors", own, {})
    names = {}
    monkeypatch.chdir(tmp_path)
    exec(code_of((tmp_path / "a.md").read_text()), names)  # what a reader pastes
    images = np.random.default_rng(1).normal(size=(2, side, side, channels)).astype(np.float32)
    with torch.no_grad():
        theirs = names["model"].eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    ours = jax.jit(own.model.apply)(own.variables, images)
    assert np.abs(theirs[0] - theirs[1]).max() > 1e-3 * np.abs(theirs).max()  # the image matters
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("name", ["small_cnn", "vgg11_bn", "resnet50", "vit_tiny"])
def test_a_network_comes_back_bit_for_bit_with_all_that_is_known_of_it(name, tmp_path):
    width = {"width": 0.25} if name != "vgg11_bn" else {"width": 0.125, "head": "classic"}
    own = network(name, 32, 3, **width, **({"patch_size": 8} if name == "vit_tiny" else {}))
    agop_jax.save_pretrained(tmp_path / "a.safetensors", own, {"init": "he_nfm"})
    loaded = agop_jax.load_pretrained(name, f"safetensors:{tmp_path}/a.safetensors")
    assert (loaded.model, loaded.mean, loaded.std) == (own.model, own.mean, own.std)
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded.variables, dict(own.variables)))
    with pytest.raises(UserError, match=f"holds a '{name}', wanted 'lenet5'"):
        agop_jax.load_pretrained("lenet5", f"safetensors:{tmp_path}/a.safetensors")


def test_every_model_has_names_for_pytorch():
    assert {make.func for make in models.MODELS.values()} == FAMILIES.keys()


def test_a_small_cnn_of_another_program_tells_its_channels(tmp_path):
    own = network("small_cnn", 8, 1, features=(4, 6))
    np.savez(tmp_path / "a.npz", **state_of(own))
    loaded = agop_jax.load_pretrained("small_cnn", f"npz:{tmp_path}/a.npz", mean=0.5, std=0.5)
    assert loaded.model == own.model
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded.variables, dict(own.variables)))


def state_of(own):
    return to_state_dict(own.model, own.variables)


def test_the_card_says_what_is_known(tmp_path):
    own = network("resnet20", 32, 3, width=0.5)
    facts = {"init": "he_nfm", "seed": 3, "donor": {"data": "cifar10"}, "classes": ["cat", "dog", "owl"]}
    agop_jax.save_pretrained(tmp_path / "a.safetensors", own, facts)
    card = (tmp_path / "a.md").read_text()
    count = sum(leaf.size for leaf in jax.tree.leaves(own.variables))
    for words in (f"{count:,} numbers", "3 classes", "- init: he_nfm", "- seed: 3", "- donor.data: cifar10"):
        assert words in card
    assert "- classes, in the order of the outputs: cat, dog, owl" in card
    assert f"- mean: {', '.join(map(str, own.mean))}" in card
    assert "No library makes a `resnet20` with 0.5 times its channels" in card


@pytest.mark.parametrize("there", ["a.safetensors", "a.md"])
def test_nothing_is_overwritten(there, tmp_path):
    (tmp_path / there).write_text("precious")
    with pytest.raises(UserError, match=f"{there}' exists already: choose another path"):
        agop_jax.save_pretrained(tmp_path / "a.safetensors", network("small_cnn", 8, 1, features=(4,)), {})
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(there, "precious")]


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        agop_jax.save_pretrained(tmp_path / "a.safetensors", network("small_cnn", 8, 1, features=(4,)), {})
    assert not list(tmp_path.iterdir())


def fail(*_):
    raise OSError("disk full")
