"""From CIFAR-100 to 2,000 images of CIFAR-10: how much does a donor give after a tenth of its training?

Command:  python -m agop_jax.main --config=configs/study/early_donor.py --workdir=runs/study/early_donor
Cost:     25 minutes on one of two CPU cores, with other jobs beside it: 3 donors and some 145 runs of 250 steps.
Result:   docs/evidence.md
"""

import ml_collections

from configs.study.base import SHORT, finish, transfer

QUESTION = "From CIFAR-100 to 2,000 images of CIFAR-10: how much does a donor give after a tenth of its training?"


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; mode 'quick' makes everything small."""
    config = transfer(QUESTION, mode, inits=SHORT)
    config.donor.train.steps //= 10
    return finish(config, mode)
