"""Does a LeNet-5 trained on Fashion-MNIST make a better start for another than random numbers?

Command:  python -m agop_jax.main --config=configs/fashion_mnist.py --workdir=runs/fashion_mnist
          after `python -m agop_jax.data.prepare fashion_mnist`,
          or on a file with --config.data.name=npz:fashion_mnist.npz
Cost:     not measured.
Result:   not run yet.
"""

import ml_collections

from agop_jax.experiments.protocols import few_images

QUESTION = "Does a LeNet-5 trained on Fashion-MNIST make a better start for another than random numbers?"


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; mode 'quick' makes everything small."""
    return few_images(QUESTION, "fashion_mnist", mode, model="lenet5")  # 60,000 + 10,000 grey images of 28 x 28
