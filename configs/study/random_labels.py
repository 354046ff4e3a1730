"""From CIFAR-100 to 2,000 images of CIFAR-10: does a donor of random labels give a good start?

Command:  python -m agop_jax.main --config=configs/study/random_labels.py --workdir=runs/study/random_labels
          The donor's training images keep their pixels and lose what they show.
Cost:     24 minutes on one of two CPU cores: 3 donors and some 145 runs of 250 steps.
Result:   docs/evidence.md
"""

import ml_collections

from configs.study.base import SHORT, finish, transfer

QUESTION = "From CIFAR-100 to 2,000 images of CIFAR-10: does a donor of random labels give a good start?"


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; mode 'quick' makes everything small."""
    config = transfer(QUESTION, mode, inits=SHORT)
    config.donor.random_labels = True
    return finish(config, mode)
