"""From CIFAR-100 to 500 images of CIFAR-10: which start is best, and which needs the donor?

Command:  python -m agop_jax.main --config=configs/study/transfer_500.py --workdir=runs/study/transfer_500
          Of all inits; 250 steps.
Cost:     71 minutes on one of two CPU cores, with other jobs beside it: 3 donors and 361 runs of 250 steps.
Result:   docs/evidence.md
"""

import ml_collections

from configs.study.base import finish, transfer

QUESTION = "From CIFAR-100 to 500 images of CIFAR-10: which start is best, and which needs the donor?"


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; mode 'quick' makes everything small."""
    config = transfer(QUESTION, mode)
    config.recipients.train_sizes = (500,)
    return finish(config, mode)
