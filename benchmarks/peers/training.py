"""The usual PyTorch training loop: SGD with momentum and L2; a DataLoader resizes and normalises on the host."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
LAYOUTS = {"channels_first": torch.contiguous_format, "channels_last": torch.channels_last}


class Trainer:
    """A network, its optimiser and the step.

    Args:
      network: trained in place.
      learning_rate: of SGD.
      layout: of images and kernels in memory, a key of `LAYOUTS`.
    """

    def __init__(self, network: nn.Module, learning_rate: float, layout: str = "channels_first") -> None:
        self.layout = LAYOUTS[layout]
        self.network = network.to(memory_format=self.layout)
        self.optimizer = torch.optim.SGD(  # fused: the fastest of its three forms on a CPU
            self.network.parameters(), learning_rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, fused=True
        )

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One update on normalised images (n, c, h, w); returns the loss before it."""
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.network(images.contiguous(memory_format=self.layout)), labels)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


class Resized(Dataset):
    """uint8 images (n, h, w, c) as a host's transforms deliver them: resized by Pillow, scaled to 0..1, normalised."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, mean: Tensor, std: Tensor, size: int = 0) -> None:
        self.images, self.labels, self.size = images, labels, size
        self.mean, self.std = mean[:, None, None], std[:, None, None]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = Image.fromarray(self.images[index])
        if self.size:
            picture = picture.resize((self.size, self.size), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
        return (pixels - self.mean) / self.std, int(self.labels[index])


def epoch(trainer: Trainer, loader: DataLoader) -> Tensor:
    """One pass over a data set; returns the last loss."""
    loss = torch.zeros(())
    for images, labels in loader:
        loss = trainer.step(images, labels)
    return loss
