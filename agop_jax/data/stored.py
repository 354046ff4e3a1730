"""Training batches of images that stay on disk, read ahead by grain's threads."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from agop_jax.core.errors import UserError
from agop_jax.data.pipeline import batch_indices
from agop_jax.data.splits import StoredSplit

READ_AHEAD = 2  # batches, each decoded by threads of its own: one may wait for the disk while another is decoded


def stored_batches(
    split: StoredSplit,
    indices: np.ndarray,
    batch_size: int,
    seed: int,
    *,
    steps: int,
    start: int = 0,
    part: int = 0,
    parts: int = 1,
) -> Iterator[Any]:
    """The batches of a training run, decoded: those of `batch_indices`, as a run in memory has them.

    Memory holds `READ_AHEAD` batches besides those that the caller keeps.

    Args:
      split: the training split.
      indices: which of its images to use.
      batch_size: images a step, over all processes.
      seed: of the order.
      steps: the run's budget.
      start: steps that are done.
      part, parts: this process and the number of all; it gets its contiguous share of every batch.

    Returns:
      grain's iterator of `Split`s (uint8, not augmented), one a step. `get_state()` is a dict for JSON, the number of
      steps whose batches were handed out, and `set_state(state)` goes there, whatever was read ahead; `close()` ends
      the threads.

    Raises:
      UserError: grain is not installed, a batch that is larger than the set or does not divide by `parts`, steps or
        parts that cannot be; as it is iterated, a picture that cannot be read.
    """
    grain = _grain()
    if batch_size % parts or not 0 <= part < parts:
        raise UserError(f"batch_size {batch_size}, process {part} of {parts}: wanted a share of one size for each")
    if not 0 <= start <= steps:
        raise UserError(f"wanted a start of 0 to {steps} steps, got {start}")
    batch_indices(indices, batch_size, 0, seed)  # says what is wrong now, and not in a thread
    share = batch_size // parts

    def read(step: int) -> Any:
        whole = batch_indices(indices, batch_size, step, seed)
        return split.take(whole[part * share : (part + 1) * share]).load()

    options = grain.ReadOptions(num_threads=READ_AHEAD, prefetch_buffer_size=READ_AHEAD)
    batches = iter(grain.MapDataset.range(steps).map(read).to_iter_dataset(options))
    batches.set_state({"next_index": start})
    return batches


def _grain() -> Any:
    try:
        import grain
    except ImportError:
        raise UserError(
            "data sets larger than config.data.memory need an extra: pip install 'agop_jax[stream]'"
        ) from None
    return grain
