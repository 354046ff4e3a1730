"""Does a CNN trained on photographs of 102 kinds of flowers make a better start than random numbers?

Command:  python -m agop_jax.main --config=configs/flowers102.py --workdir=runs/flowers102
          after `python -m agop_jax.data.prepare oxford_flowers102`
Cost:     not measured.
Result:   not run yet.
"""

import ml_collections

from agop_jax.experiments.protocols import few_images

QUESTION = "Does a CNN trained on photographs of 102 kinds of flowers make a better start than random numbers?"


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; mode 'quick' makes everything small."""
    # 2,040 + 6,149 photographs of many sizes in 102 classes; 10 a class for each recipient
    config = few_images(QUESTION, "oxford_flowers102", mode, train_size=1020)
    config.data.size = 64  # the largest centred square, made so small as it is read
    config.data.validation = 0.2  # 408 images
    return config
