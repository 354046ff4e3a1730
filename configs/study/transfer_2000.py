"""From CIFAR-100 to 2,000 images of CIFAR-10: what do controls tell of every start after 250 steps?

Command:  python -m agop_jax.main --config=configs/study/transfer_2000.py --workdir=runs/study/transfer_2000
          Of all inits; 250 steps.
Cost:     74 minutes on one of two CPU cores, with other jobs beside it: 3 donors and 355 runs of 250 steps.
Result:   docs/evidence.md
"""

import ml_collections

from configs.study.base import finish, transfer

QUESTION = "From CIFAR-100 to 2,000 images of CIFAR-10: what do controls tell of every start after 250 steps?"


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; mode 'quick' makes everything small."""
    config = transfer(QUESTION, mode)
    return finish(config, mode)
