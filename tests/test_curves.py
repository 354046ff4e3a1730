"""Curves of a run on disk: what TensorBoard and programs read."""

import errno
import json
import math
import os
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from agop_jax.core.errors import UserError
from agop_jax.training.curves import write_curves

HISTORY = [
    {"step": 0, "train_loss": None, "validation_loss": math.nan},
    {"step": 5, "train_loss": 1.5, "validation_loss": 2.0},
]


def castagnoli(data: bytes) -> int:
    """CRC-32C bit by bit (RFC 3720, appendix B.4), masked as in TFRecord files."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 * (crc & 1))
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def records(content: bytes) -> list[bytes]:
    """A TFRecord file: length, its checksum, data, their checksum."""
    contents = []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        end = 12 + length
        contents.append(content[12:end])
        assert struct.unpack("<I", content[8:12]) == (castagnoli(content[:8]),)
        assert struct.unpack("<I", content[end : end + 4]) == (castagnoli(content[12:end]),)
        content = content[end + 4 :]
    return contents


def test_events_are_tensorboards(tmp_path):
    write_curves(tmp_path, "run", HISTORY)
    (path,) = (tmp_path / "tensorboard" / "run").iterdir()
    assert path.name.startswith("events.out.tfevents.")
    first, *events = [Event.FromString(record) for record in records(path.read_bytes())]
    assert first.file_version == "brain.Event:2"
    values = [(event.step, value.tag, value.simple_value) for event in events for value in event.summary.value]
    assert values[1:] == [(5, "train/loss", 1.5), (5, "validation/loss", 2.0)]
    assert values[0][:2] == (0, "validation/loss")
    assert math.isnan(values[0][2])


def test_lines_have_null_for_what_is_not_finite(tmp_path):
    write_curves(tmp_path, "run", HISTORY)
    lines = [json.loads(line) for line in (tmp_path / "metrics" / "run.jsonl").read_text().splitlines()]
    assert lines == [{**HISTORY[0], "validation_loss": None}, HISTORY[1]]


def test_events_of_an_earlier_call_are_replaced_and_nothing_else(tmp_path):
    folder = tmp_path / "tensorboard" / "run"
    folder.mkdir(parents=True)
    for name in ("events.out.tfevents.1.host", "notes.txt"):
        (folder / name).write_text("x")
    write_curves(tmp_path, "run", HISTORY)
    write_curves(tmp_path, "run", HISTORY)
    assert (folder / "notes.txt").read_text() == "x"
    (events,) = (path for path in folder.iterdir() if path.name != "notes.txt")
    assert len(records(events.read_bytes())) == 4


def test_a_full_disk_is_one_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tensorboardX.RecordWriter.write", full)
    with pytest.raises(UserError, match="run' cannot be written, its disk or your quota is full"):
        write_curves(tmp_path, "run", HISTORY)
    assert not list((tmp_path / "tensorboard" / "run").iterdir())
