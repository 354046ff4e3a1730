"""The directory of one experiment: who may write to it, and of which config it holds the results."""

import contextlib
import fcntl
import importlib.metadata
import json
import platform
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from agop_jax.core import hosts
from agop_jax.core.errors import UserError
from agop_jax.core.files import atomic_write_text, read_json, read_text

CONFIG, DATA, ENVIRONMENT, LOCK = "config.json", "data.json", "environment.json", ".lock"
DONOR, FEATURES, CHECKPOINTS = "donor", "features", "checkpoints"
RESULTS, RATES, FITS, SPECTRA = "results.csv", "learning_rates.csv", "fits.csv", "spectra.csv"
ANSATZ, GALLERY = "ansatz.csv", "gallery.json"

# May change from one call to the next in the same directory: they select which results are there, not what they are.
EXTENDABLE = (
    "question",
    "stages",
    "save_every",
    "pictures.enabled",
    "pictures.image",
    "pictures.layers",
    "recipients.devices",
    "recipients.inits",
    "recipients.seeds",
    "recipients.train_sizes",
    "recipients.widths",
)


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the directory for this program; the system lets go of it however the process ends."""
    with contextlib.ExitStack() as stack:
        hosts.by_first(lambda: _lock(workdir, stack))
        found = (workdir / LOCK).read_text() if (workdir / LOCK).exists() else "none"
        hosts.require_same(
            f"directories at {str(workdir)!r}", found, "choose a workdir on a file system that all of them share"
        )
        yield


def _lock(workdir: Path, stack: contextlib.ExitStack) -> None:
    """Takes the lock; what it holds tells the other processes that theirs is the same directory."""
    workdir.mkdir(parents=True, exist_ok=True)
    file = stack.enter_context((workdir / LOCK).open("a"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{str(workdir)!r} is in use by another process: wait for it or choose another workdir"
        ) from None
    file.truncate(0)
    file.write(uuid.uuid4().hex)
    file.flush()
    _remove_unfinished(workdir)


def _remove_unfinished(workdir: Path) -> None:
    """Temporary names that a killed process left: nothing refers to them."""
    for directory in workdir.glob("*.tmp-*"):
        shutil.rmtree(directory)
    for file in workdir.rglob(".*.tmp"):
        file.unlink()


def claim(workdir: Path, config: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Writes the config and what is known of the data, or compares them with those whose results are there already."""
    hosts.by_first(lambda: _claim(workdir, config, data))


def _claim(workdir: Path, config: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    if _changed_config(workdir, config) + _changed_data(workdir, data):
        shutil.rmtree(workdir / CHECKPOINTS, ignore_errors=True)  # of unfinished runs of another config or other data
    for name, content in ((CONFIG, config), (DATA, data), (ENVIRONMENT, environment())):
        atomic_write_text(workdir / name, json.dumps(content, indent=1))


def _changed_config(workdir: Path, config: Mapping[str, Any]) -> list[str]:
    """The fields on which no result depends yet but a checkpoint may; a `UserError` if there are others."""
    path = workdir / CONFIG
    if not path.exists():
        return []
    try:
        before = json.loads(read_text(path))
    except ValueError:
        raise UserError(f"{str(path)!r} is damaged: restore it, or choose another workdir") from None
    old, new = _flat(before), _flat(json.loads(json.dumps(config)))
    changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    changed = [name for name in changed if name not in EXTENDABLE]
    if fixed := [name for name in changed if _has_results(workdir, name)]:
        what = ", ".join(f"{name} (was {old.get(name)!r}, now {new.get(name)!r})" for name in fixed)
        raise UserError(f"{str(workdir)!r} holds results of another config: {what}: choose another workdir")
    return changed


def _changed_data(workdir: Path, data: Mapping[str, Any]) -> list[str]:
    """The same of the data: pictures may be new in a folder, or streamed now, with constants from a sample."""
    path = workdir / DATA
    if not path.exists():
        return []
    before = read_json(path)
    compared = before.keys() & data.keys() - {"streamed", "unused"}  # an older version has kept less
    changed = [name for name in data if name in compared and not _alike(before[name], data[name])]
    if changed and _has_results(workdir, "data"):
        what = ", ".join(f"{name} (was {before.get(name)}, now {data[name]})" for name in changed)
        raise UserError(
            f"{str(workdir)!r} holds results from other data: {what}: restore the data and config.data.memory, or "
            "choose another workdir"
        )
    return changed


def _alike(before: Any, now: Any) -> bool:
    """Constants of a data set may differ in their last digits between machines."""
    if isinstance(now, list) and all(isinstance(value, (int, float)) for value in now):
        return before is not None and len(before) == len(now) and bool(np.allclose(before, now, rtol=1e-6))
    return before == now


def _has_results(workdir: Path, name: str) -> bool:
    """Whether anything finished there depends on this field of the config."""
    of_recipients = name.startswith(("recipients.", "train."))
    finished = (RESULTS, RATES) if of_recipients else (DONOR, FEATURES, RESULTS, RATES)
    return any((workdir / file).exists() for file in finished)


def environment() -> dict[str, str]:
    """What the results depend on besides the config."""
    packages = ("agop_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    device = jax.devices()[0]
    found = {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": f"{len(jax.devices())} x {device.platform} ({device.device_kind})",
        **{name: importlib.metadata.version(name) for name in packages},
    }
    commit = _commit()
    return {**found, "commit": commit} if commit else found


def _commit() -> str | None:
    """Of the checkout this package is run from, if it is one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        name: leaf for key, value in tree.items() for name, leaf in _flat(value, f"{prefix}.{key}".strip(".")).items()
    }
