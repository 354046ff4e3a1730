"""Draws that are kept until their recipient is done: a draw that looks at examples may take as long as some training.

A recipient starts anew for each learning rate of the grid, and after each stop. The file holds the leaves of the
variables in the order of a fresh network's, whose structure is not stored.
"""

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agop_jax.core import files, hosts
from agop_jax.initializers.model import Initialization

FITS, SECONDS = "explained_variance", "seconds"


class Start(NamedTuple):
    """A recipient before training.

    Attributes:
      variables: of its network.
      explained_variance: of a coupled init's fits, by layer.
      seconds: that the draw took, compilation and a machine's fits included.
    """

    variables: Any
    explained_variance: dict[str, float]
    seconds: float


def timed(draw: Callable[[], Initialization]) -> Start:
    """A draw with its time."""
    begin = time.perf_counter()
    drawn = draw()
    jax.block_until_ready(drawn.variables)
    return Start(drawn.variables, drawn.explained_variance, time.perf_counter() - begin)


def kept(path: Path, fresh: Any, draw: Callable[[], Initialization]) -> Start:
    """What the file holds, or else the draw, which is written there.

    Args:
      path: of the file; one that cannot be read is replaced.
      fresh: variables of the same structure, shapes and types.
      draw: makes the recipient.
    """
    if hosts.several():  # they would have to agree on what is there
        return timed(draw)
    start = _read(path, fresh)
    if start is None:
        start = timed(draw)
        _write(path, start)
    return start


def _write(path: Path, start: Start) -> None:
    leaves = {str(number): np.asarray(leaf) for number, leaf in enumerate(jax.tree.leaves(start.variables))}
    about = {FITS: np.array(json.dumps(start.explained_variance)), SECONDS: np.array(start.seconds)}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **leaves, **about)
    files.atomic_write_bytes(path, buffer.getvalue())


def _read(path: Path, fresh: Any) -> Start | None:
    if not path.exists():
        return None
    leaves, structure = jax.tree.flatten(fresh)
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = [stored[str(number)] for number in range(len(leaves))]
            fits, seconds = json.loads(str(stored[FITS])), float(stored[SECONDS])
    except (*files.UNREADABLE, KeyError):
        return None
    if any((a.shape, a.dtype) != (leaf.shape, leaf.dtype) for a, leaf in zip(arrays, leaves, strict=True)):
        return None
    return Start(jax.tree.unflatten(structure, map(jnp.asarray, arrays)), fits, seconds)
