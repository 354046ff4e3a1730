"""Draws that are kept until their recipient is done: a draw that looks at examples may take as long as some training.

A recipient starts anew for each learning rate of the grid, and after each stop. The file holds the leaves of the
variables in the order of a fresh network's, whose structure is not stored.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agop_jax.core import files, hosts
from agop_jax.initializers.model import Initialization

FITS = "explained_variance"


def kept(path: Path, fresh: Any, draw: Callable[[], Initialization]) -> Initialization:
    """What the file holds, or else the draw, which is written there.

    Args:
      path: of the file; one that cannot be read is replaced.
      fresh: variables of the same structure, shapes and types.
      draw: makes the recipient.
    """
    if hosts.several():  # they would have to agree on what is there
        return draw()
    found = _read(path, fresh)
    if found is None:
        found = draw()
        _write(path, found)
    return found


def _write(path: Path, drawn: Initialization) -> None:
    leaves = {str(number): np.asarray(leaf) for number, leaf in enumerate(jax.tree.leaves(drawn.variables))}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **leaves, **{FITS: np.array(json.dumps(drawn.explained_variance))})
    files.atomic_write_bytes(path, buffer.getvalue())


def _read(path: Path, fresh: Any) -> Initialization | None:
    if not path.exists():
        return None
    leaves, structure = jax.tree.flatten(fresh)
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = [stored[str(number)] for number in range(len(leaves))]
            fits = json.loads(str(stored[FITS]))
    except (*files.UNREADABLE, KeyError):
        return None
    if any((a.shape, a.dtype) != (leaf.shape, leaf.dtype) for a, leaf in zip(arrays, leaves, strict=True)):
        return None
    return Initialization(jax.tree.unflatten(structure, map(jnp.asarray, arrays)), fits)
