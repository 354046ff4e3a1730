"""The program, stopped after its first training step: python -m benchmarks.first_step --config=... --workdir=...

Prints the wall clock (seconds since the epoch) at which the results of the step, which is the donor's, were there.
"""

import os
import time
from typing import Any

import jax

from agop_jax import main
from agop_jax.training import Trainer

_step = Trainer.step


def _only_step(trainer: Trainer, *arguments: Any) -> None:
    jax.block_until_ready(_step(trainer, *arguments))
    print(time.time(), flush=True)
    os._exit(0)


if __name__ == "__main__":
    Trainer.step = _only_step
    main.run()
