"""From CIFAR-100 to 2,000 images of CIFAR-10 with AdamW: does the order of the starts change?

Command:  python -m agop_jax.main --config=configs/study/adamw.py --workdir=runs/study/adamw
          The donors are trained with SGD as in the other settings.
Cost:     87 minutes on one of two CPU cores, with other jobs beside it: 3 donors and some 360 runs of 250 steps.
Result:   docs/evidence.md
"""

import ml_collections

from configs.study.base import finish, transfer

QUESTION = "From CIFAR-100 to 2,000 images of CIFAR-10 with AdamW: does the order of the starts change?"


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; mode 'quick' makes everything small."""
    config = transfer(QUESTION, mode)
    config.train.optimizer, config.train.weight_decay = "adamw", 0.01
    config.recipients.learning_rates = (0.001, 0.003, 0.01)
    return finish(config, mode)
