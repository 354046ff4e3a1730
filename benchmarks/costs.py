"""What an extraction costs, counted: python -m benchmarks.costs prints the table of docs/scaling.md.

A layer of P positions, patches of k values and c filters takes 2 P k c operations forwards, as many for each cotangent
that is carried back through it (not through the first layer: the images' gradient is not wanted), and 2 P c^2 for the
Gram matrix of that cotangent.
"""

import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from agop_jax import models
from agop_jax.core.networks import open_network
from agop_jax.features.taps import tap

GIB = 2**30
NETWORKS = {"VGG11, hidden head": ("vgg11", {"head": "classic"}), "ResNet-50": ("resnet50", {}), "VGG11": ("vgg11", {})}
IMAGES, SIZE, OUTPUTS, BATCH = 1000, 224, 1000, 16
DEVICES = (1, 8, 64)


@dataclass(frozen=True)
class Costs:
    """Of one image, but for `grams`.

    Attributes:
      forward: operations.
      reverse: operations of one cotangent, its Gram matrices included.
      activations: bytes of the outputs of all layers in float32, which wait for the reverse passes.
      largest: bytes of the largest of them, and of a cotangent there.
      grams: bytes of the Gram matrices of all layers: what devices add up after a step, whatever the batch.
    """

    forward: int
    reverse: int
    activations: int
    largest: int
    grams: int

    def extraction(self, images: int, passes: int) -> int:
        """Operations."""
        return images * (self.forward + passes * self.reverse)

    def memory(self, images: int, passes: int) -> int:
        """Bytes of intermediate results in one step of an extraction, with so many reverse passes in it."""
        return images * (self.activations + passes * self.largest)


def count(model: nn.Module, size: int) -> Costs:
    """From the shapes of a network's layers, without running it. Grouped convolutions have smaller c^2."""
    image = jnp.zeros((1, size, size, 3))
    network = open_network(model, jax.eval_shape(lambda: model.init(jax.random.key(0), image)))
    tapped = tap(network, image)
    _, records = jax.eval_shape(lambda p, o: tapped.apply(p, o, {}, image), network.params, network.others)
    kernels = jax.eval_shape(tapped.kernels, network.params, network.others)
    calls = [(site.groups, kernels[site.layer].shape, records[place].outputs) for place, site in tapped.sites.items()]
    outputs = [math.prod(output.shape) for *_, output in calls]
    products = [2 * n * math.prod(kernel[:-1]) for n, (_, kernel, _) in zip(outputs, calls, strict=True)]
    widths = [kernel[-1] // groups for groups, kernel, _ in calls]
    grams = [2 * n * width for n, width in zip(outputs, widths, strict=True)]
    matrices = sum(groups * width**2 for width, (groups, *_) in zip(widths, calls, strict=True))
    return Costs(sum(products), sum(products[1:]) + sum(grams), 4 * sum(outputs), 4 * max(outputs), 4 * matrices)


def table() -> list[list[Any]]:
    """Of ImageNet's size: one row a network and number of devices."""
    rows = []
    for name, (model, fields) in NETWORKS.items():
        costs = count(models.create(model, OUTPUTS, **fields), SIZE)
        for devices in DEVICES:
            share, steps = math.ceil(IMAGES / devices), math.ceil(IMAGES / (BATCH * devices))
            rows.append(
                [
                    name,
                    devices,
                    f"{costs.extraction(share, 1) / 1e12:.2g}",
                    f"{costs.extraction(share, OUTPUTS) / 1e12:.3g}",
                    f"{BATCH * costs.activations / GIB:.2g}",
                    f"{costs.grams / 2**20:.3g}" if devices > 1 else "0",
                    steps,
                ]
            )
    return rows


def main() -> None:
    """Prints it as Markdown."""
    columns = (
        "network",
        "devices",
        "`probe`, 10^12 operations a device",
        "`gram`, 10^12 operations a device",
        f"activations of {BATCH} images a device, GiB",
        "added up over devices in a step, MiB",
        "steps",
    )
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for row in table():
        print(f"| {' | '.join(map(str, row))} |")


if __name__ == "__main__":
    main()
