"""Curves of a run on disk: JSON lines for programs, TensorBoard events for people."""

import json
import math
from pathlib import Path
from typing import Any

from agop_jax.core import hosts
from agop_jax.core.files import atomic_write_text

METRICS, TENSORBOARD = "metrics", "tensorboard"


def write_curves(workdir: Path, name: str, history: list[dict[str, Any]]) -> None:
    """Writes `metrics/{name}.jsonl`, one record a line, and `tensorboard/{name}/`.

    JSON has no word for numbers that are not finite: they become null. Of several processes the first writes.
    """
    if not hosts.is_first():
        return
    lines = [json.dumps({key: _finite(value) for key, value in record.items()}) for record in history]
    _write_events(workdir / TENSORBOARD / name, history)
    atomic_write_text(workdir / METRICS / f"{name}.jsonl", "\n".join(lines) + "\n")


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_events(directory: Path, history: list[dict[str, Any]]) -> None:
    """Event files are named by time, so those of an interrupted call are removed first; nothing else of the folder."""
    from tensorboardX import SummaryWriter  # which imports PyTorch where it is installed: seconds

    for events in list(directory.glob("events.out.tfevents.*")):
        events.unlink()
    with SummaryWriter(str(directory)) as writer:
        for record in history:
            for key, value in record.items():
                if key != "step" and value is not None:
                    writer.add_scalar(key.replace("_", "/", 1), value, record["step"])
