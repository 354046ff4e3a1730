"""The original protocol on Oxford Flowers-102: does a start from an ImageNet VGG11's features beat random numbers?

Command:  python -m agop_jax.main --config=configs/original_vgg11_flowers102.py --workdir=runs/original_flowers102
          after `pip install 'agop_jax[hub]'` and `python -m agop_jax.data.prepare oxford_flowers102`
Cost:     not measured; 500 steps of VGG11 at 224 x 224 a run, 27 runs: for a GPU.
Result:   not run yet.
"""

import ml_collections

from agop_jax.experiments.protocols import original_vgg11

QUESTION = "Does a start from an ImageNet VGG11's features beat random numbers on Oxford Flowers-102?"


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; mode 'quick' makes everything small and trains a stand-in for the donor."""
    config = original_vgg11(QUESTION, "oxford_flowers102", train_images=2_040, mode=mode)
    config.data.size = 224  # photographs of many sizes: the largest centred square of each
    return config
