"""From CIFAR-100 to 2,000 images of CIFAR-10 with a residual network: do the same starts win?

Command:  python -m agop_jax.main --config=configs/study/resnet20.py --workdir=runs/study/resnet20
          Normalised by BatchNorm; a quarter of the width.
Cost:     about 2 hours on one CPU core: 3 donors of 10 minutes each, and some 145 runs of 250 steps.
Result:   none yet
"""

import ml_collections

from configs.study.base import SHORT, finish, residual, transfer

QUESTION = "From CIFAR-100 to 2,000 images of CIFAR-10 with a residual network: do the same starts win?"


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; mode 'quick' makes everything small."""
    config = transfer(QUESTION, mode, inits=SHORT)
    residual(config)
    config.recipients.learning_rates = (0.05, 0.2)
    return finish(config, mode)
