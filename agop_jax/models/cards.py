"""Model cards: what a file of weights holds, how it was made, and the lines that load it in PyTorch."""

from collections.abc import Mapping
from typing import Any

from agop_jax.models.alexnet import AlexNet
from agop_jax.models.cnn import LeNet5, SmallCNN
from agop_jax.models.layers import scaled
from agop_jax.models.registry import MODELS
from agop_jax.models.resnet import CIFARResNet, ResNet
from agop_jax.models.torch_names import State
from agop_jax.models.vgg import VGG
from agop_jax.models.vit import HEAD_FEATURES, ViT

CARD = """# {title}

{kind} of agop_jax, as a PyTorch state dict: {parameters:,} numbers, {classes} classes,
images of {channels} channel{s}.

## How it was made

{facts}

## Images

The network sees `(pixel / 255 - mean) / std`, channels first in PyTorch.

- mean: {mean}
- std: {std}
{names}
## In PyTorch

{note}```python
{code}
```

`num_batches_tracked`, which PyTorch's BatchNorm counts and does not use, is not stored; `load_state_dict` fills it in.

## In JAX

```python
import agop_jax

model, variables, mean, std = agop_jax.load_pretrained("{name}", "safetensors:{file}")
```
"""
LOAD = 'model.load_state_dict(load_file("{file}"))'
IMPORTS = "import torch\nfrom safetensors.torch import load_file\n"


def card(file: str, about: Mapping[str, Any], state: State, metadata: Mapping[str, Any]) -> str:
    """The text of a card.

    Args:
      file: name of the file of weights.
      about: the model as `describe` has it, mean and std.
      state: the file's tensors.
      metadata: further facts, of which 'classes' are the names of the classes.
    """
    model, channels = about["model"], len(about["mean"])
    note, code = _pytorch(file, model, channels, state)
    return CARD.format(
        title=file.removesuffix(".safetensors"),
        kind=f"A `{model['name']}`",
        parameters=sum(tensor.size for tensor in state.values()),
        classes=model["num_classes"],
        channels=channels,
        s="s" if channels > 1 else "",
        facts="\n".join(f"- {key}: {_words(value)}" for key, value in _flat(metadata).items()) or "Nothing was stated.",
        mean=_words(about["mean"]),
        std=_words(about["std"]),
        names=f"- classes, in the order of the outputs: {_words(metadata['classes'])}\n"
        if "classes" in metadata
        else "",
        note=f"{note}\n\n" if note else "",
        code=code,
        name=model["name"],
        file=file,
    )


def _flat(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Facts that are told by themselves, with nested ones beside the others."""
    flat: dict[str, Any] = {}
    for key, value in metadata.items():
        if key not in ("classes", "model", "mean", "std"):
            flat |= {f"{key}.{k}": v for k, v in _flat(value).items()} if isinstance(value, Mapping) else {key: value}
    return flat


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _pytorch(file: str, model: Mapping[str, Any], channels: int, state: State) -> tuple[str, str]:
    """A sentence about the library, if one is needed, and the code."""
    kind = MODELS[model["name"]].func
    load = LOAD.format(file=file)
    if kind in MAKERS:
        note, imports, lines = MAKERS[kind](model, channels, state)
        return note, "\n".join([imports + IMPORTS, *lines, load])
    if model["width"] != 1:
        names = "torchvision's" if kind is not CIFARResNet else "the repository's"
        note = (
            f"No library makes a `{model['name']}` with {model['width']:g} times its channels. The tensors have "
            f"{names} names; give a module of this width, as `model`."
        )
        return note, "\n".join([IMPORTS, load])
    if kind is CIFARResNet:
        blocks = (MODELS[model["name"]].keywords["depth"] - 2) // 6
        note = "With `resnet.py` of github.com/akamaster/pytorch_resnet_cifar10, which calls the head `linear`."
        head = f'state = {{name.replace("fc.", "linear."): tensor for name, tensor in load_file("{file}").items()}}'
        network = f"model = ResNet(BasicBlock, [{blocks}, {blocks}, {blocks}], num_classes={model['num_classes']})"
        imports = "from resnet import BasicBlock, ResNet\nfrom safetensors.torch import load_file\n"
        return note, "\n".join([imports, network, head, "model.load_state_dict(state)"])
    network = f"model = torchvision.models.{model['name']}(num_classes={model['num_classes']})"
    return "", "\n".join(["import torchvision\n" + IMPORTS, network, *_changes(kind, model, channels), load])


def _changes(kind: Any, model: Mapping[str, Any], channels: int) -> list[str]:
    """The lines that change torchvision's network of the same name to this one."""
    lines = []
    if kind is VGG and model["head"] == "mean":
        lines.append("model.avgpool = torch.nn.AdaptiveAvgPool2d(1)")
        lines.append(f"model.classifier = torch.nn.Linear(512, {model['num_classes']})")
    if kind is ResNet and model["stem"] == "cifar":
        lines.append(f"model.conv1 = torch.nn.Conv2d({channels}, 64, 3, padding=1, bias=False)")
        lines.append("model.maxpool = torch.nn.Identity()")
    elif channels != 3:
        first = {
            ResNet: "conv1 = torch.nn.Conv2d({c}, 64, 7, 2, 3, bias=False)",
            AlexNet: "features[0] = torch.nn.Conv2d({c}, 64, 11, 4, 2)",
            VGG: "features[0] = torch.nn.Conv2d({c}, 64, 3, padding=1)",
        }
        lines.append(f"model.{first[kind].format(c=channels)}")
    return lines


def _small_cnn(model: Mapping[str, Any], channels: int, state: State) -> tuple[str, str, list[str]]:
    widths = [scaled(features, model["width"]) for features in model["features"]]
    pairs = list(zip([channels, *widths], widths, strict=False))
    head = f"torch.nn.Linear({widths[-1]}, {model['num_classes']})"
    lines = [
        "features = []",
        f"for cin, cout in {pairs}:",
        "    features += [torch.nn.Conv2d(cin, cout, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2)]",
        "parts = {",
        '    "features": torch.nn.Sequential(*features[:-1]),  # no pooling after the last',
        f'    "pool": torch.nn.AdaptiveAvgPool2d(1), "flat": torch.nn.Flatten(), "classifier": {head},',
        "}",
        "model = torch.nn.Sequential(OrderedDict(parts))",
    ]
    least = 2 ** (len(widths) - 1)
    return f"For images of {least} x {least} or more.", "from collections import OrderedDict\n\n", lines


def _lenet(model: Mapping[str, Any], channels: int, state: State) -> tuple[str, str, list[str]]:
    a, b, c, d = (scaled(features, model["width"]) for features in (6, 16, 120, 84))
    relu, pool = "torch.nn.ReLU()", "torch.nn.MaxPool2d(2)"
    flat, classes = state["fc1.weight"].shape[1], model["num_classes"]
    lines = [
        "parts = {",
        f'    "conv1": torch.nn.Conv2d({channels}, {a}, 5, padding=2), "relu1": {relu}, "pool1": {pool},',
        f'    "conv2": torch.nn.Conv2d({a}, {b}, 5), "relu2": {relu}, "pool2": {pool}, "flat": torch.nn.Flatten(),',
        f'    "fc1": torch.nn.Linear({flat}, {c}), "relu3": {relu}, "fc2": torch.nn.Linear({c}, {d}), "relu4": {relu},',
        f'    "fc3": torch.nn.Linear({d}, {classes}),',
        "}",
        "model = torch.nn.Sequential(OrderedDict(parts))",
    ]
    note = "For images of 28 x 28, which are padded; images of another size have no `padding=2`."
    return note, "from collections import OrderedDict\n\n", lines


def _vit(model: Mapping[str, Any], channels: int, state: State) -> tuple[str, str, list[str]]:
    side = round((state["pos_embed"].shape[1] - 1) ** 0.5) * model["patch_size"]
    width = model["heads"] * scaled(HEAD_FEATURES, model["width"])
    lines = [
        "model = timm.models.VisionTransformer(",
        f"    img_size={side}, patch_size={model['patch_size']}, in_chans={channels},",
        f"    num_classes={model['num_classes']}, embed_dim={width},",
        f"    depth={model['depth']}, num_heads={model['heads']},",
        ")",
    ]
    return "", "import timm\n", lines


MAKERS = {SmallCNN: _small_cnn, LeNet5: _lenet, ViT: _vit}
