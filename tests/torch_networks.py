"""The networks in plain PyTorch, with the names of torchvision's (timm's for the ViT) state dicts.

Written from the papers and from the public names and shapes of the state dicts; `width` and `classes` as here.
"""

import torch
from torch import nn
from torch.nn import functional

STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(nn.Module):
    def __init__(self, depth, batch_norm, width, classes, head="classic"):
        super().__init__()
        layers, cin = [], 3
        for features, count in zip((64, 128, 256, 512, 512), STAGES[depth], strict=True):
            cout = round(features * width)
            for _ in range(count):
                layers += [
                    nn.Conv2d(cin, cout, 3, padding=1),
                    *([nn.BatchNorm2d(cout)] if batch_norm else []),
                    nn.ReLU(),
                ]
                cin = cout
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(7 if head == "classic" else 1)
        hidden = round(4096 * width)
        self.classifier = nn.Linear(cin, classes)
        if head == "classic":
            first = [nn.Linear(cin * 49, hidden), nn.ReLU(), nn.Dropout()]
            second = [nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout()]
            self.classifier = nn.Sequential(*first, *second, nn.Linear(hidden, classes))

    def forward(self, x):
        return self.classifier(self.pool(self.features(x)).flatten(1))


class AlexNet(nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        a, b, c, d, hidden = (round(features * width) for features in (64, 192, 384, 256, 4096))
        pool = lambda: nn.MaxPool2d(3, 2)
        self.features = nn.Sequential(
            *(nn.Conv2d(3, a, 11, 4, 2), nn.ReLU(), pool(), nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), pool()),
            *(nn.Conv2d(b, c, 3, padding=1), nn.ReLU(), nn.Conv2d(c, d, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(d, d, 3, padding=1), nn.ReLU(), pool()),
        )
        first = [nn.Dropout(), nn.Linear(d * 36, hidden), nn.ReLU()]
        second = [nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU()]
        self.classifier = nn.Sequential(*first, *second, nn.Linear(hidden, classes))

    def forward(self, x):
        return self.classifier(functional.adaptive_avg_pool2d(self.features(x), 6).flatten(1))


class Block(nn.Module):
    """A basic block, or a bottleneck where `expansion` is 4; without projection the shortcut is option A."""

    def __init__(self, cin, features, stride, expansion=1, projection=True):
        super().__init__()
        cout = features * expansion
        if expansion == 1:
            shapes = [(cin, features, 3, stride), (features, features, 3, 1)]
        else:
            shapes = [(cin, features, 1, 1), (features, features, 3, stride), (features, cout, 1, 1)]
        self.count, self.stride, self.missing = len(shapes), stride, cout - cin
        for index, (a, b, kernel, s) in enumerate(shapes, 1):
            setattr(self, f"conv{index}", nn.Conv2d(a, b, kernel, s, kernel // 2, bias=False))
            setattr(self, f"bn{index}", nn.BatchNorm2d(b))
        changed = projection and (stride > 1 or cin != cout)
        projected = [nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout)]
        self.downsample = nn.Sequential(*projected) if changed else None

    def forward(self, x):
        y = x
        for index in range(1, self.count + 1):
            y = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(y))
            y = y.relu() if index < self.count else y
        if self.downsample is not None:
            x = self.downsample(x)
        elif self.missing:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.missing // 2, self.missing - self.missing // 2))
        return (x + y).relu()


class ResNet(nn.Module):
    def __init__(self, blocks, features, classes, stem, expansion=1, projection=True):
        super().__init__()
        kernel, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = nn.Conv2d(3, features, kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.pool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()
        self.stages, cin = len(blocks), features
        for stage, count in enumerate(blocks):
            layer = []
            for index in range(count):
                own = features * 2**stage
                layer.append(Block(cin, own, 2 if stage and not index else 1, expansion, projection))
                cin = own * expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layer))
        self.fc = nn.Linear(cin, classes)

    def forward(self, x):
        x = self.pool(self.bn1(self.conv1(x)).relu())
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.fc(x.mean((2, 3)))


class Attention(nn.Module):
    def __init__(self, channels, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x):
        n, tokens, channels = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, tokens, channels))


class ViTBlock(nn.Module):
    def __init__(self, channels, heads):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(channels, eps=1e-6) for _ in range(2))
        self.attn = Attention(channels, heads)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp.fc2(functional.gelu(self.mlp.fc1(self.norm2(x))))


class ViT(nn.Module):
    def __init__(self, size, patch, channels, heads, depth, classes):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, channels, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.pos_embed = nn.Parameter(torch.zeros(1, (size // patch) ** 2 + 1, channels))
        self.blocks = nn.Sequential(*(ViTBlock(channels, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(channels, eps=1e-6), nn.Linear(channels, classes)

    def forward(self, x):
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


class LeNet5(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(channels, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, classes)

    def forward(self, x):
        for conv in (self.conv1, self.conv2):
            x = functional.max_pool2d(conv(x).relu(), 2)
        return self.fc3(self.fc2(self.fc1(x.flatten(1)).relu()).relu())


def with_random_state(network: nn.Module, seed: int = 0) -> nn.Module:
    """Kernels of He's scale, everything else away from 0 and 1, so that nothing can be left out unseen."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if tensor.ndim > 1 and name.endswith("weight"):
                tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=random)
            elif name.endswith(("weight", "running_var")):
                tensor.uniform_(0.5, 1.5, generator=random)
            elif tensor.is_floating_point():
                tensor.normal_(0, 0.2, generator=random)
    return network.eval()
