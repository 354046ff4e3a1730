"""Does a CNN trained on CIFAR-100 make a better start on 5,000 of its images than random numbers?

Command:  python -m agop_jax.main --config=configs/cifar100.py --workdir=runs/cifar100
          after `python -m agop_jax.data.prepare cifar100`,
          or on a file with --config.data.name=npz:cifar100.npz
Cost:     not measured.
Result:   not run yet.
"""

import ml_collections

from agop_jax.experiments.protocols import few_images

QUESTION = "Does a CNN trained on CIFAR-100 make a better start on 5,000 of its images than random numbers?"


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; mode 'quick' makes everything small."""
    # 50,000 + 10,000 images of 32 x 32; 50 a class for each recipient
    return few_images(QUESTION, "cifar100", mode, train_size=5000)
