"""Several seeds at once or one after another? Steps of 4 recipients, vmapped and in turn, interleaved in one run.

Command:  python -m benchmarks.seeds
Result:   2 CPU cores, jax 0.10.2, another job beside it; median and range of 5 repeats: at once is 0.84 x as fast
          (0.64 to 0.92) on 8 x 8 digits and 0.32 x (0.31 to 0.35) on 32 x 32 colour images, so a sweep trains one seed
          after another. GPU: not measured.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from agop_jax import models
from agop_jax.data import Pipeline, Split
from agop_jax.training import Settings, Trainer

SEEDS, STEPS, REPEATS = 4, 10, 5
NETWORKS = {"8 x 8 digits": ((16, 32, 64), (8, 8, 1)), "32 x 32 colour": ((32, 64, 128, 128), (32, 32, 3))}


def seconds(work) -> float:
    """Of one call, after which all results are there."""
    start = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - start


def compare(features: tuple[int, ...], shape: tuple[int, int, int]) -> list[float]:
    """Time in turn over time at once, one ratio for each repeat; the first, which compiles, is left out."""
    trainer = Trainer(models.create("small_cnn", 10, features=features), Pipeline((0.5,), (0.25,)), Settings(steps=100))
    random = np.random.default_rng(0)
    split = Split(jnp.asarray(random.integers(0, 256, (64, *shape)), jnp.uint8), jnp.asarray(np.arange(64) % 10))
    seeds = np.arange(SEEDS, dtype=np.uint32)
    states = lambda: [trainer.start(trainer.model.init(jax.random.key(seed), jnp.zeros((1, *shape)))) for seed in seeds]
    together = jax.jit(jax.vmap(trainer._step, in_axes=(0, None, None, None, 0)), donate_argnums=0)
    indices = np.arange(64)

    def in_turn():
        ends = []
        for state, seed in zip(states(), seeds, strict=True):
            for _ in range(STEPS):
                state = trainer.step(state, split, indices, 0.1, seed)
            ends.append(state)
        return ends

    def at_once():
        state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states())
        for _ in range(STEPS):
            state = together(state, split, indices, 0.1, seeds)
        return state

    return [seconds(in_turn) / seconds(at_once) for _ in range(REPEATS + 1)][1:]


def main() -> None:
    """Prints median and range of the ratios; above 1, all seeds at once are faster."""
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {SEEDS} seeds, batch 64")
    for name, (features, shape) in NETWORKS.items():
        ratios = compare(features, shape)
        print(f"{name}: at once is {statistics.median(ratios):.2f} x as fast ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
