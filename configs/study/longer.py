"""From CIFAR-100 to 2,000 images of CIFAR-10: what does a training four times as long leave of a good start?

Command:  python -m agop_jax.main --config=configs/study/longer.py --workdir=runs/study/longer
          1,000 steps with a schedule and a choice of rates of their own; `transfer_2000` is the same at 250 steps.
Cost:     about 90 minutes on one CPU core: 3 donors and some 145 runs of 1,000 steps.
Result:   none yet
"""

import ml_collections

from configs.study.base import SHORT, finish, transfer

QUESTION = "From CIFAR-100 to 2,000 images of CIFAR-10: what does a training four times as long leave of a good start?"


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; mode 'quick' makes everything small."""
    config = transfer(QUESTION, mode, inits=SHORT)
    config.train.steps = 1000
    return finish(config, mode)
