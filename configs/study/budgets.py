"""From CIFAR-100 to 2,000 images of CIFAR-10: what does a longer training leave of a good start?

Command:  python -m agop_jax.main --config=configs/study/budgets.py --workdir=runs/study/budgets
          Each number of steps has its own schedule and its own choice of rates.
"""

import ml_collections

from configs.study.base import SHORT, finish, transfer

QUESTION = "From CIFAR-100 to 2,000 images of CIFAR-10: what does a longer training leave of a good start?"


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; mode 'quick' makes everything small."""
    config = transfer(QUESTION, mode, inits=SHORT)
    config.recipients.budgets = (250, 1000)
    return finish(config, mode)
