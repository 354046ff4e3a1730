"""From CIFAR-100 to 10,000 images of CIFAR-10: what is left of a good start after 1,000 steps?

Command:  python -m agop_jax.main --config=configs/study/transfer_10000.py --workdir=runs/study/transfer_10000
Cost:     about 90 minutes on one CPU core: 3 donors and some 145 runs of 1,000 steps.
Result:   none yet
"""

import ml_collections

from configs.study.base import SHORT, finish, transfer

QUESTION = "From CIFAR-100 to 10,000 images of CIFAR-10: what is left of a good start after 1,000 steps?"


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; mode 'quick' makes everything small."""
    config = transfer(QUESTION, mode, inits=SHORT)
    config.recipients.train_sizes, config.train.steps = (10_000,), 1000
    return finish(config, mode)
