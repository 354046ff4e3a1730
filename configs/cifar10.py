"""Does a CNN trained on CIFAR-10 make a better start on 1,000 of its images than random numbers?

Command:  python -m agop_jax.main --config=configs/cifar10.py --workdir=runs/cifar10
          after `python -m agop_jax.data.prepare cifar10`,
          or on a file with --config.data.name=npz:cifar10.npz
Cost:     not measured.
Result:   not run yet.
"""

import ml_collections

from agop_jax.experiments.protocols import few_images

QUESTION = "Does a CNN trained on CIFAR-10 make a better start on 1,000 of its images than random numbers?"


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; mode 'quick' makes everything small."""
    return few_images(QUESTION, "cifar10", mode)  # 50,000 + 10,000 images of 32 x 32
