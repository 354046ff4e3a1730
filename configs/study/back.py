"""From CIFAR-10 to 2,000 images of CIFAR-100: does a donor of fewer classes serve as well?

Command:  python -m agop_jax.main --config=configs/study/back.py --workdir=runs/study/back
Cost:     137 minutes on one of two CPU cores, with other jobs beside it: 3 donors and some 360 runs of 250 steps.
Result:   docs/evidence.md
"""

import ml_collections

from configs.study.base import CIFAR10, CIFAR100, finish, transfer

QUESTION = "From CIFAR-10 to 2,000 images of CIFAR-100: does a donor of fewer classes serve as well?"


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; mode 'quick' makes everything small."""
    config = transfer(QUESTION, mode, CIFAR10, CIFAR100)
    return finish(config, mode)
