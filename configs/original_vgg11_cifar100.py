"""The original protocol on CIFAR-100: does a start from an ImageNet VGG11's features beat random numbers?

Command:  python -m agop_jax.main --config=configs/original_vgg11_cifar100.py --workdir=runs/original_cifar100
          after `pip install 'agop_jax[hub]'` and `python -m agop_jax.data.prepare cifar100`
Cost:     not measured; 12,500 steps of VGG11 at 224 x 224 a run, 27 runs: for a GPU.
Result:   not run yet.
"""

import ml_collections

from agop_jax.experiments.protocols import original_vgg11

QUESTION = "Does a start from an ImageNet VGG11's features beat random numbers on CIFAR-100?"


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; mode 'quick' makes everything small and trains a stand-in for the donor."""
    return original_vgg11(QUESTION, "cifar100", train_images=50_000, mode=mode)
