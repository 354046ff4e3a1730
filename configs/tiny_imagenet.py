"""Does a CNN trained on Tiny-ImageNet make a better start on 10,000 of its images than random numbers?

Command:  python -m agop_jax.main --config=configs/tiny_imagenet.py --workdir=runs/tiny_imagenet
          after `python -m agop_jax.data.prepare tiny_imagenet`,
          or on a file with --config.data.name=npz:tiny_imagenet.npz
Cost:     not measured.
Result:   not run yet.
"""

import ml_collections

from agop_jax.experiments.protocols import few_images

QUESTION = "Does a CNN trained on Tiny-ImageNet make a better start on 10,000 of its images than random numbers?"


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; mode 'quick' makes everything small."""
    # 100,000 + 10,000 images of 64 x 64 in 200 classes; 50 a class for each recipient
    return few_images(QUESTION, "tiny_imagenet", mode, train_size=10_000)
