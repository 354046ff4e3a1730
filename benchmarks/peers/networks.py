"""The networks of `agop_jax.models` without normalisation as plain PyTorch, with the same weights."""

from typing import Any

import flax.linen as linen
import numpy as np
import torch
from torch import nn

from agop_jax.models.cnn import SmallCNN
from agop_jax.models.vgg import STAGES


def convert(model: linen.Module, variables: dict[str, Any]) -> nn.Sequential:
    """A VGG with the head 'mean' or a small CNN, layer after layer in one `nn.Sequential`."""
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


def _convolution(layer: dict[str, Any]) -> nn.Conv2d:
    kernel = np.asarray(layer["kernel"])
    kh, kw, cin, cout = kernel.shape
    return _filled(nn.Conv2d(cin, cout, (kh, kw), padding=(kh // 2, kw // 2)), kernel.transpose(3, 2, 0, 1), layer)


def _linear(layer: dict[str, Any]) -> nn.Linear:
    kernel = np.asarray(layer["kernel"])
    return _filled(nn.Linear(*kernel.shape), kernel.T, layer)


def _filled(module: Any, weight: np.ndarray, layer: dict[str, Any]) -> Any:
    module.weight = nn.Parameter(torch.tensor(np.ascontiguousarray(weight)))
    module.bias = nn.Parameter(torch.tensor(np.asarray(layer["bias"])))
    return module
