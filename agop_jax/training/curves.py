"""Curves of a run on disk: JSON lines for programs, TensorBoard events for people."""

import contextlib
import json
import math
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agop_jax.core import hosts
from agop_jax.core.files import atomic_write_text, write_new

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
    """Event files are named by time, so those of an interrupted call are removed first; nothing else of the folder.

    The file is written in this thread. `SummaryWriter` has a thread of its own, for which it waits for ever once a disk
    is full.
    """
    from tensorboardX import RecordWriter  # which imports PyTorch where it is installed: seconds

    for events in list(directory.glob("events.out.tfevents.*")):
        events.unlink()

    def write(path: Path) -> None:
        with contextlib.closing(RecordWriter(str(path))) as writer:
            for event in _events(history):
                writer.write(event)

    write_new(directory / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}", write)


def _events(history: list[dict[str, Any]]) -> Iterator[bytes]:
    """TensorBoard's messages: the version of its format, then the values of each record."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.summary import scalar

    now = time.time()
    yield Event(wall_time=now, file_version="brain.Event:2").SerializeToString()
    for record in history:
        values = {key.replace("_", "/", 1): value for key, value in record.items() if value is not None}
        step = values.pop("step")
        for name, value in values.items():
            yield Event(wall_time=now, step=step, summary=scalar(name, value)).SerializeToString()
