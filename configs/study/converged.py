"""From CIFAR-100 to 500 images of CIFAR-10 until nothing changes: is a good start only a quick one?

Command:  python -m agop_jax.main --config=configs/study/converged.py --workdir=runs/study/converged
          1,000 steps are 128 times all images; `transfer_500` is the same at 250 steps.
Cost:     about 90 minutes on one CPU core: 3 donors and some 145 runs of 1,000 steps.
Result:   none yet
"""

import ml_collections

from configs.study.base import SHORT, finish, transfer

QUESTION = "From CIFAR-100 to 500 images of CIFAR-10 until nothing changes: is a good start only a quick one?"


def get_config(mode: str = "") -> ml_collections.ConfigDict:
    """The config; mode 'quick' makes everything small."""
    config = transfer(QUESTION, mode, inits=SHORT)
    config.recipients.train_sizes, config.train.steps = (500,), 1000
    return finish(config, mode)
