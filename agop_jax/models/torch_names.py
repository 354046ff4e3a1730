"""PyTorch's names of the networks here, and how its arrays lie.

The names are torchvision's, or timm's for the ViT; those of the small CNN and LeNet-5, which neither has, are
those of PyTorch's tutorials. Where timm or another well-known source names a tensor differently, that name is read too.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from agop_jax.core import trees
from agop_jax.models.alexnet import AlexNet
from agop_jax.models.cnn import LeNet5, SmallCNN
from agop_jax.models.resnet import STAGES as RESNET_STAGES
from agop_jax.models.resnet import CIFARResNet, ResNet
from agop_jax.models.vgg import STAGES as VGG_STAGES
from agop_jax.models.vgg import VGG
from agop_jax.models.vit import ViT

State = Mapping[str, np.ndarray]
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
TO_TORCH, TO_FLAX = (3, 2, 0, 1), (2, 3, 1, 0)  # axes of (kh, kw, cin, cout) and of (cout, cin, kh, kw)


class Place(NamedTuple):
    """Where a tensor of PyTorch's lies in a model here.

    PyTorch keeps kernels as (cout, cin, kh, kw), Flax as (kh, kw, cin, cout); PyTorch flattens a map as (c, h, w), Flax
    as (h, w, c), so that the first Dense layer after a map needs its rows in another order.

    Attributes:
      path: of the variable, such as 'params/Conv_0/kernel'.
      shape: of the variable.
      side: of the map that was flattened before a Dense layer; 1 for all others.
    """

    path: str
    shape: tuple[int, ...]
    side: int = 1

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The tensor's; timm keeps some Dense layers as convolutions."""
        if len(self.shape) == 2:
            return [self.shape[::-1], (self.shape[1], self.shape[0] // self.side**2, self.side, self.side)]
        return [tuple(self._window[axis] for axis in TO_TORCH)] if self._window else [self.shape]

    def to_torch(self, variable: np.ndarray) -> np.ndarray:
        """The tensor of a variable."""
        if not self._window:
            return variable
        return variable.reshape(self._window).transpose(TO_TORCH).reshape(self.shapes[0])

    def to_flax(self, tensor: np.ndarray) -> np.ndarray:
        """The variable of a tensor; the inverse of `to_torch`."""
        if not self._window:
            return tensor
        return tensor.reshape([self._window[axis] for axis in TO_TORCH]).transpose(TO_FLAX).reshape(self.shape)

    @property
    def _window(self) -> tuple[int, ...]:
        """(kh, kw, cin, cout) of a kernel, that of a Dense layer as of a convolution; () of everything else."""
        if len(self.shape) == 2:
            return (self.side, self.side, self.shape[0] // self.side**2, self.shape[1])
        return self.shape if len(self.shape) == 4 else ()


class Family(NamedTuple):
    """How PyTorch names one kind of network.

    Attributes:
      names: of a model, Flax path -> PyTorch's name, of layers and of parameters that belong to no layer; the first
        is the layer that sees the image, the last the head.
      aliases: (regular expression, replacement) that bring other sources' names to these.
      flattened: PyTorch's name of the Dense layer after a map, and the side of that map.
      fields: of the model, as far as a state dict tells them.
      size: side of images that the model takes.
    """

    names: Callable[[Any], dict[str, str]]
    aliases: tuple[tuple[str, str], ...] = ()
    flattened: tuple[str, int] = ("", 1)
    fields: Callable[[State], dict[str, Any]] = lambda state: {}
    size: Callable[[State], int] = lambda state: 224


def places(model: nn.Module, variables: Mapping[str, Any]) -> dict[str, Place]:
    """PyTorch's name of every variable of a model: where it lies.

    Args:
      model: of one of `FAMILIES`.
      variables: of the model, or their shapes.
    """
    family = FAMILIES[type(model)]
    names, (flattened, side) = family.names(model), family.flattened
    tensors = {_tensor(path, names): (path, tuple(leaf.shape)) for path, leaf in trees.flatten(variables).items()}
    return {
        tensor: Place(path, shape, side if tensor == f"{flattened}.weight" else 1)
        for tensor, (path, shape) in tensors.items()
    }


def _tensor(path: str, names: Mapping[str, str]) -> str:
    """PyTorch's name of the variable at a path such as 'params/Conv_0/kernel'."""
    layer, _, leaf = path.partition("/")[2].rpartition("/")
    return f"{names[layer]}.{LEAVES[leaf]}" if layer else names[leaf]


def canonical(tensor: str, family: Family) -> str:
    """The name here of a tensor that another source names."""
    for pattern, replacement in family.aliases:
        tensor = re.sub(pattern, replacement, tensor)
    return tensor


def _sequence(kind: str, *names: str) -> dict[str, str]:
    return {f"{kind}_{index}": name for index, name in enumerate(names)}


def _small_cnn(model: SmallCNN) -> dict[str, str]:
    """The names of convolutions that a ReLU and a pooling follow."""
    convolutions = (f"features.{3 * index}" for index in range(len(model.features)))
    return _sequence("Conv", *convolutions) | {"Dense_0": "classifier"}


def _lenet(model: LeNet5) -> dict[str, str]:
    return _sequence("Conv", "conv1", "conv2") | _sequence("Dense", "fc1", "fc2", "fc3")


def _alexnet(model: AlexNet) -> dict[str, str]:
    convolutions = (f"features.{index}" for index in (0, 3, 6, 8, 10))
    return _sequence("Conv", *convolutions) | _sequence("Dense", *(f"classifier.{index}" for index in (1, 4, 6)))


def _vgg(model: VGG) -> dict[str, str]:
    places, place = [], 0
    for convolutions in VGG_STAGES[model.depth]:
        for _ in range(convolutions):
            places.append(place)
            place += 3 if model.batch_norm else 2  # convolution, (BatchNorm,) ReLU
        place += 1  # pooling
    names = _sequence("Conv", *(f"features.{place}" for place in places))
    names |= _sequence("BatchNorm", *(f"features.{place + 1}" for place in places))
    heads = {"classic": ("classifier.0", "classifier.3", "classifier.6"), "mean": ("classifier",)}
    return names | _sequence("Dense", *heads[model.head])


def _resnet(model: ResNet) -> dict[str, str]:
    block, convolutions = ("BasicBlock", 2) if model.depth < 50 else ("BottleneckBlock", 3)
    return _residual(RESNET_STAGES[model.depth], block, convolutions)


def _cifar_resnet(model: CIFARResNet) -> dict[str, str]:
    return _residual(((model.depth - 2) // 6,) * 3, "BasicBlock", 2)


def _residual(stages: tuple[int, ...], block: str, convolutions: int) -> dict[str, str]:
    places = [f"layer{stage + 1}.{index}" for stage, blocks in enumerate(stages) for index in range(blocks)]
    names = {"Conv_0": "conv1", "BatchNorm_0": "bn1"}
    for number, place in enumerate(places):
        for kind, name, shortcut in (("Conv", "conv", "downsample.0"), ("BatchNorm", "bn", "downsample.1")):
            inner = [*(f"{name}{i + 1}" for i in range(convolutions)), shortcut]
            names |= _sequence(f"{block}_{number}/{kind}", *(f"{place}.{one}" for one in inner))
    return names | {"Dense_0": "fc"}


def _vit(model: ViT) -> dict[str, str]:
    names = {"Conv_0": "patch_embed.proj", "class_token": "cls_token", "positions": "pos_embed"}
    for block in range(model.depth):
        dense = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        names |= _sequence(f"ViTBlock_{block}/Dense", *(f"blocks.{block}.{name}" for name in dense))
        names |= _sequence(f"ViTBlock_{block}/LayerNorm", *(f"blocks.{block}.{name}" for name in ("norm1", "norm2")))
    return names | {"LayerNorm_0": "norm", "Dense_0": "head"}


def _small_cnn_fields(state: State) -> dict[str, Any]:
    kernels = (name for name in sorted(state, key=len) if re.fullmatch(r"features\.\d+\.weight", name))
    channels = {int(name.split(".")[1]): state[name].shape[0] for name in kernels if state[name].ndim}
    return {"width": 1.0, "features": tuple(channels[place] for place in sorted(channels))} if channels else {}


def _vgg_fields(state: State) -> dict[str, Any]:
    return {"head": "mean" if "classifier.weight" in state else "classic"}


def _resnet_fields(state: State) -> dict[str, Any]:
    small = "conv1.weight" in state and state["conv1.weight"].shape[-1] == 3
    return {"stem": "cifar" if small else "imagenet"}


def _vit_size(state: State) -> int:
    tokens = state["pos_embed"].shape[1] if "pos_embed" in state else 197
    return state["patch_embed.proj.weight"].shape[-1] * math.isqrt(tokens - 1)


TIMM_VGG = (
    (r"^pre_logits\.fc1\.", "classifier.0."),
    (r"^pre_logits\.fc2\.", "classifier.3."),
    (r"^head\.fc\.", "classifier.6."),
)
# CIFAR: github.com/akamaster/pytorch_resnet_cifar10 and github.com/kuangliu/pytorch-cifar
CIFAR_RESNET = ((r"^linear\.", "fc."), (r"\.shortcut\.", ".downsample."))
TORCHVISION_VIT = (
    (r"^class_token$", "cls_token"),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
    (r"^encoder\.ln\.", "norm."),
    (r"^heads\.head\.", "head."),
)

FAMILIES: dict[Any, Family] = {
    SmallCNN: Family(_small_cnn, fields=_small_cnn_fields, size=lambda state: 32),
    LeNet5: Family(_lenet, flattened=("fc1", 5), size=lambda state: 32),
    AlexNet: Family(_alexnet, flattened=("classifier.1", 6)),
    VGG: Family(_vgg, TIMM_VGG, ("classifier.0", 7), _vgg_fields),
    ResNet: Family(_resnet, CIFAR_RESNET, fields=_resnet_fields),
    CIFARResNet: Family(_cifar_resnet, CIFAR_RESNET),
    ViT: Family(_vit, TORCHVISION_VIT, size=_vit_size),
}
