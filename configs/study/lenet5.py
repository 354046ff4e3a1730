"""From CIFAR-100 to 2,000 images of CIFAR-10 with LeNet-5: do two convolutions and three dense layers agree?

Command:  python -m agop_jax.main --config=configs/study/lenet5.py --workdir=runs/study/lenet5
          Filters of 5 x 5, few channels, and dense layers that hold most of the weights.
Cost:     48 minutes on one of two CPU cores, with other jobs beside it: 3 donors and 411 runs of 250 steps.
Result:   docs/evidence.md
"""

import ml_collections

from configs.study.base import finish, transfer

QUESTION = "From CIFAR-100 to 2,000 images of CIFAR-10 with LeNet-5: do two convolutions and three dense layers agree?"


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; mode 'quick' makes everything small."""
    config = transfer(QUESTION, mode)
    config.model.name, config.model.features = "lenet5", None
    return finish(config, mode)
