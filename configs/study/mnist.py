"""From colour photographs to digits: does a donor of another kind of image help on 500 images of MNIST?

Command:  python -m agop_jax.main --config=configs/study/mnist.py --workdir=runs/study/mnist
          The donor sees CIFAR-10 in colour, the recipients grey digits as three equal channels.
Cost:     87 minutes on one of two CPU cores, with other jobs beside it: 3 donors and some 410 runs of 250 steps.
Result:   docs/evidence.md
"""

import ml_collections

from configs.study.base import CIFAR10, MNIST, finish, transfer

QUESTION = "From colour photographs to digits: does a donor of another kind of image help on 500 images of MNIST?"


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; mode 'quick' makes everything small."""
    config = transfer(QUESTION, mode, CIFAR10, MNIST)
    config.data.rgb, config.data.resize = True, 32
    config.recipients.train_sizes = (500,)
    return finish(config, mode)
