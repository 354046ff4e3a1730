"""Networks of `agop_jax.models` as plain PyTorch, with the same weights."""

from typing import Any

import flax.linen as linen
import numpy as np
import torch
from torch import nn

from agop_jax.models.cnn import SmallCNN
from agop_jax.models.resnet import CIFARResNet
from agop_jax.models.vgg import STAGES


def convert(model: linen.Module, variables: dict[str, Any]) -> nn.Sequential:
    """A VGG with the head 'mean', a small CNN or a ResNet for CIFAR, layer after layer in one `nn.Sequential`."""
    if isinstance(model, CIFARResNet):
        return _residual(variables)
    params = variables["params"]
    layers: list[nn.Module] = []
    for index, pooled in enumerate(_pooled(model)):
        layers += [_convolution(params[f"Conv_{index}"]), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pooled else []
    return nn.Sequential(*layers, Mean(), _linear(params["Dense_0"]))


class Mean(nn.Module):
    """Over positions; `nn.AdaptiveAvgPool2d` is slow under `torch.func.vmap`, and says so."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, c, h, w) -> (n, c)."""
        return x.mean((2, 3))


class Block(nn.Module):
    """Two convolutions beside a shortcut without parameters, which drops rows and columns and pads channels."""

    def __init__(self, body: nn.Sequential, strides: int, missing: int) -> None:
        super().__init__()
        self.body, self.strides = body, strides
        self.padding = (0, 0, 0, 0, missing // 2, missing - missing // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, c, h, w) -> (n, c + missing, h / strides, w / strides)."""
        shortcut = nn.functional.pad(x[:, :, :: self.strides, :: self.strides], self.padding)
        return nn.functional.relu(self.body(x) + shortcut)


def images(array: np.ndarray) -> torch.Tensor:
    """NHWC to NCHW."""
    return torch.tensor(np.ascontiguousarray(np.moveaxis(array, -1, 1)))


def patch_order(shape: tuple[int, ...]) -> np.ndarray:
    """For each entry of a patch in PyTorch's order (cin, kh, kw), its place in ours, (kh, kw, cin)."""
    kh, kw, cin, _ = shape
    return np.arange(kh * kw * cin).reshape(kh, kw, cin).transpose(2, 0, 1).ravel()


def _pooled(model: linen.Module) -> list[bool]:
    """Of each convolution: whether a pooling follows."""
    if isinstance(model, SmallCNN):
        return [True] * (len(model.features) - 1) + [False]
    return [place == count - 1 for count in STAGES[model.depth] for place in range(count)]


def _residual(variables: dict[str, Any]) -> nn.Sequential:
    stem = [*_normalised_convolution(variables, 0), nn.ReLU()]
    count = sum(name.startswith("BasicBlock") for name in variables["params"])
    blocks = [_block({kind: tree[f"BasicBlock_{index}"] for kind, tree in variables.items()}) for index in range(count)]
    return nn.Sequential(*stem, *blocks, Mean(), _linear(variables["params"]["Dense_0"]))


def _block(variables: dict[str, Any]) -> Block:
    cin, cout = variables["params"]["Conv_0"]["kernel"].shape[2:]
    strides = 1 if cin == cout else 2
    first, second = (_normalised_convolution(variables, index, (strides, 1)[index]) for index in range(2))
    return Block(nn.Sequential(*first, nn.ReLU(), *second), strides, cout - cin)


def _normalised_convolution(variables: dict[str, Any], index: int, strides: int = 1) -> list[nn.Module]:
    layer, statistics = variables["params"][f"BatchNorm_{index}"], variables["batch_stats"][f"BatchNorm_{index}"]
    norm = _filled(nn.BatchNorm2d(len(layer["scale"])), layer["scale"], layer)
    norm.running_mean, norm.running_var = (torch.tensor(np.asarray(statistics[name])) for name in ("mean", "var"))
    return [_convolution(variables["params"][f"Conv_{index}"], strides), norm]


def _convolution(layer: dict[str, Any], strides: int = 1) -> nn.Conv2d:
    kernel = np.asarray(layer["kernel"])
    kh, kw, cin, cout = kernel.shape
    convolution = nn.Conv2d(cin, cout, (kh, kw), strides, padding=(kh // 2, kw // 2), bias="bias" in layer)
    return _filled(convolution, kernel.transpose(3, 2, 0, 1), layer)


def _linear(layer: dict[str, Any]) -> nn.Linear:
    kernel = np.asarray(layer["kernel"])
    return _filled(nn.Linear(*kernel.shape), kernel.T, layer)


def _filled(module: Any, weight: Any, layer: dict[str, Any]) -> Any:
    module.weight = nn.Parameter(torch.tensor(np.ascontiguousarray(weight)))
    if "bias" in layer:
        module.bias = nn.Parameter(torch.tensor(np.asarray(layer["bias"])))
    return module
