"""Every family with random weights, in PyTorch and here: the same logits, and the same state dict on the way back."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from agop_jax.models.pretrained import load_pretrained
from agop_jax.models.torch_states import to_state_dict

torch = pytest.importorskip("torch", reason="compares with PyTorch: pip install -e '.[torch]'")
import torch_networks as twins  # noqa: E402

CLASSES = 7
TIMM_VGG = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2", "classifier.6": "head.fc"}
TORCHVISION_VIT = {
    r"^cls_token": "class_token",
    r"^pos_embed": "encoder.pos_embedding",
    r"^patch_embed\.proj": "conv_proj",
    r"^blocks\.(\d+)": r"encoder.layers.encoder_layer_\1",
    r"norm([12])": r"ln_\1",
    r"attn\.qkv\.": "self_attention.in_proj_",
    r"attn\.proj": "self_attention.out_proj",
    r"mlp\.fc1": "mlp.0",
    r"mlp\.fc2": "mlp.3",
    r"^norm": "encoder.ln",
    r"^head": "heads.head",
}


def vgg(depth, batch_norm=False, head="classic"):
    return lambda: twins.VGG(depth, batch_norm, 0.125, CLASSES, head)


def resnet(blocks, stem="imagenet", expansion=1):
    return lambda: twins.ResNet(blocks, 8, CLASSES, stem, expansion)


def cifar_resnet(n):
    return lambda: twins.ResNet((n, n, n), 8, CLASSES, "cifar", projection=False)


# name -> PyTorch's network, the model's name and fields, side of the images
SMALL = {"width": 0.125}
NETWORKS = {
    "lenet5": (lambda: twins.LeNet5(3, CLASSES), "lenet5", {}, 32),
    "alexnet": (lambda: twins.AlexNet(0.125, CLASSES), "alexnet", SMALL, 224),
    "vgg11 at 224": (vgg(11), "vgg11", SMALL, 224),
    "vgg11 at 32": (vgg(11), "vgg11", SMALL, 32),  # a 1 x 1 map, repeated
    "vgg13_bn at 250": (vgg(13, batch_norm=True), "vgg13_bn", SMALL, 250),  # a 7 x 7 map, with a rest left out
    "vgg16 at 320": (vgg(16), "vgg16", SMALL, 320),  # means of a 10 x 10 map
    "vgg19_bn, mean head": (vgg(19, batch_norm=True, head="mean"), "vgg19_bn", SMALL, 64),
    "resnet18": (resnet((2, 2, 2, 2)), "resnet18", SMALL, 64),
    "resnet18, odd size": (resnet((2, 2, 2, 2)), "resnet18", SMALL, 75),
    "resnet18, CIFAR stem": (resnet((2, 2, 2, 2), "cifar"), "resnet18", SMALL, 32),
    "resnet34": (resnet((3, 4, 6, 3)), "resnet34", SMALL, 64),
    "resnet50": (resnet((3, 4, 6, 3), expansion=4), "resnet50", SMALL, 64),
    "resnet20": (cifar_resnet(3), "resnet20", {"width": 0.5}, 32),
    "vit_tiny": (
        lambda: twins.ViT(32, 8, 48, 3, 2, CLASSES),
        "vit_tiny",
        {"width": 0.25, "patch_size": 8, "depth": 2},
        32,
    ),
}


def state_of(network) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def assert_same_logits(network, source, name, fields, size):
    loaded = load_pretrained(name, source, num_classes=CLASSES, **fields)
    images = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    ours = jax.jit(loaded.model.apply)(loaded.variables, jnp.asarray(images))
    assert np.abs(theirs[0] - theirs[1]).max() > 0.01 * np.abs(theirs).max()  # the image matters
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
    return loaded


@pytest.mark.parametrize("case", NETWORKS)
def test_same_logits_as_pytorch(case, tmp_path):
    make, name, fields, size = NETWORKS[case]
    network = twins.with_random_state(make())
    save_file(state_of(network), tmp_path / "a.safetensors")
    loaded = assert_same_logits(network, f"safetensors:{tmp_path / 'a.safetensors'}", name, fields, size)
    back = to_state_dict(loaded.model, loaded.variables)
    assert back.keys() == {tensor for tensor in state_of(network) if not tensor.endswith("num_batches_tracked")}
    assert all(np.array_equal(back[tensor], state_of(network)[tensor]) for tensor in back)
    network.load_state_dict({tensor: torch.from_numpy(array.copy()) for tensor, array in back.items()})


def test_timm_keeps_vggs_dense_layers_as_convolutions(tmp_path):
    make, name, fields, size = NETWORKS["vgg11 at 32"]
    network = twins.with_random_state(make())
    state = state_of(network)
    state["classifier.0.weight"] = state["classifier.0.weight"].reshape(512, -1, 7, 7)
    state["classifier.3.weight"] = state["classifier.3.weight"][:, :, None, None]
    for torchvision, timm in TIMM_VGG.items():
        state = {tensor.replace(torchvision, timm): array for tensor, array in state.items()}
    np.savez(tmp_path / "a.npz", **state)
    assert_same_logits(network, f"npz:{tmp_path / 'a.npz'}", name, fields, size)


def test_torchvisions_names_of_a_vit(tmp_path):
    make, name, fields, size = NETWORKS["vit_tiny"]
    network = twins.with_random_state(make())
    state = state_of(network)
    for timm, torchvision in TORCHVISION_VIT.items():
        state = {re.sub(timm, torchvision, tensor): array for tensor, array in state.items()}
    assert "encoder.layers.encoder_layer_1.self_attention.in_proj_weight" in state  # as torchvision writes it
    np.savez(tmp_path / "a.npz", **state)
    assert_same_logits(network, f"npz:{tmp_path / 'a.npz'}", name, fields, size)
