"""The directory of one experiment: who may write to it, and of which config it holds the results."""

import contextlib
import fcntl
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from agop_jax.core import hosts
from agop_jax.core.errors import UserError
from agop_jax.core.files import atomic_write_text, read_json, read_text
from agop_jax.experiments import fields, leftovers
from agop_jax.experiments.environments import record_environment
from agop_jax.experiments.settings import Config
from agop_jax.training.resumable import remove_checkpoints

CONFIG, DATA, LOCK = "config.json", "data.json", ".lock"
DONOR, FEATURES, CHECKPOINTS, DRAWS = "donor", "features", "checkpoints", "draws"
RECIPIENTS = "recipients"  # folder of trained ones, by `config.recipients.keep`
DONORS = "donors"  # folder of further donors, by seed
RESULTS, RATES, FITS, SPECTRA = "results.csv", "learning_rates.csv", "fits.csv", "spectra.csv"
ANSATZ, GALLERY = "ansatz.csv", "gallery.json"

# May change from one call to the next in the same directory: they select which results are there, not what they are.
EXTENDABLE = (
    "question",
    "stages",
    "save_every",
    "track",
    "pictures.enabled",
    "pictures.image",
    "pictures.layers",
    "donor.seeds",
    "recipients.budgets",
    "recipients.devices",
    "recipients.inits",
    "recipients.keep",
    "recipients.seeds",
    "recipients.train_sizes",
    "recipients.widths",
    "statistics.variance",
    "statistics.margin",
)


def donor_directory(workdir: Path, seed: int, own: int) -> Path:
    """Where a donor lies with its features: in the work directory itself where its seed is the experiment's own."""
    return workdir if seed == own else workdir / DONORS / str(seed)


def further_donors(workdir: Path) -> list[Path]:
    """The directories of donors with other seeds than the experiment's."""
    folder = workdir / DONORS
    return sorted(path for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def local_directory(directory: str | Path, flag: str = "--workdir") -> Path:
    """A directory to write to by its absolute path; it need not exist yet. `flag` is what named it.

    Raises:
      UserError: a URL, a place where no directory can be, or one that cannot be written.
    """
    if fields.URL.match(str(directory)):
        raise fields.url_error(flag, str(directory))
    path = Path(directory).expanduser().absolute()
    try:
        nearest = next(parent for parent in (path, *path.parents) if parent.exists() or parent.is_symlink())
        writable = nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
    except OSError as error:  # a name that is too long, or a folder that may not be looked into
        raise UserError(f"{flag}: {str(path)!r} cannot be a directory ({error.strerror}): choose another") from None
    if not nearest.is_dir():
        raise UserError(f"{flag}: wanted a directory, but {str(nearest)!r} is a file: choose another")
    if not writable:
        raise UserError(f"{flag}: {str(nearest)!r} cannot be written by this user: choose another")
    return path


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the directory for this program; the system lets go of it however the process ends."""
    with contextlib.ExitStack() as stack:
        hosts.by_first(lambda: _lock(workdir, stack))
        owner = (workdir / LOCK).read_text() if (workdir / LOCK).exists() else "none"
        hosts.require_same(
            f"directories at {str(workdir)!r}", owner, "choose a workdir on a file system that all of them share"
        )
        yield


def _lock(workdir: Path, stack: contextlib.ExitStack) -> None:
    """Takes the lock; what it holds tells the other processes that theirs is the same directory."""
    lock = workdir / LOCK
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if lock.exists() and not re.fullmatch("[0-9a-f]*", lock.read_text(errors="replace")):
            raise UserError(f"{str(lock)!r} was not written by this program: choose another workdir")
        file = stack.enter_context(lock.open("a"))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{str(workdir)!r} is in use by another process: wait for it or choose another workdir"
        ) from None
    except OSError as error:
        raise UserError(f"--workdir: {str(workdir)!r} cannot be written ({error.strerror}): choose another") from None
    file.truncate(0)
    file.write(uuid.uuid4().hex)
    file.flush()
    for directory in (workdir, *further_donors(workdir)):
        leftovers.remove_unfinished(directory)


def claim(workdir: Path, config: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """Writes the config and what is known of the data, or compares them with those whose results are there already.

    Returns:
      The key of this environment in `environments.jsonl`.
    """
    hosts.by_first(lambda: _claim(workdir, config, data))
    return record_environment(workdir)


def _claim(workdir: Path, config: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    changed = _changed_config(workdir, config) + _changed_data(workdir, data)
    if "recipients.layers" in changed:
        (workdir / ANSATZ).unlink(missing_ok=True)  # it is of the layers that were selected before
    if changed:  # checkpoints of runs that are no more
        every = (workdir, *further_donors(workdir))
        for run in (run for directory in every for run in (directory / CHECKPOINTS).glob("*")):
            if run.name == DONOR or re.fullmatch(rf"{leftovers.RECIPIENT}_lr[\d.e+-]+", run.name):
                remove_checkpoints(run)
        for draw in (workdir / DRAWS).glob("*.npz"):
            if re.fullmatch(rf"{leftovers.RECIPIENT}\.npz", draw.name):
                draw.unlink()
    for name, content in ((CONFIG, config), (DATA, data)):
        atomic_write_text(workdir / name, json.dumps(content, indent=1))


def _changed_config(workdir: Path, config: Mapping[str, Any]) -> list[str]:
    """The fields on which no result depends yet but a checkpoint may; a `UserError` if there are others."""
    before = _own_config(workdir)
    if before is None:
        if others := leftovers.outputs(workdir):
            raise UserError(
                f"{str(workdir / others[0])!r} was not written by this program, which would replace it: choose another "
                "workdir"
            )
        return []
    old, new = (_flat(json.loads(json.dumps(fields))) for fields in (before, config))
    old = _flat(json.loads(json.dumps(Config().to_dict()))) | old  # an older version has kept less
    changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    changed = [name for name in changed if name not in EXTENDABLE]
    if fixed := [name for name in changed if _has_results(workdir, name)]:
        what = ", ".join(f"{name} (was {old.get(name)!r}, now {new.get(name)!r})" for name in fixed)
        raise UserError(f"{str(workdir)!r} holds results of another config: {what}: choose another workdir")
    return changed


def _own_config(workdir: Path) -> dict[str, Any] | None:
    """The config of the experiment in this directory; None where there is none, whatever else is there."""
    path = workdir / CONFIG
    if not path.exists():
        return None
    try:
        config = json.loads(read_text(path))
    except ValueError:
        raise UserError(f"{str(path)!r} is damaged: restore it, or choose another workdir") from None
    return config if isinstance(config, dict) and {"stages", "recipients"} <= config.keys() else None


def _changed_data(workdir: Path, data: Mapping[str, Any]) -> list[str]:
    """The facts of the data that have changed; an error if there are results from before.

    Pictures may be new in a folder, or streamed now, with constants from a sample.
    """
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
    finished = [workdir / RESULTS, workdir / RATES]
    if not of_recipients:
        finished += [path / file for path in (workdir, *further_donors(workdir)) for file in (DONOR, FEATURES)]
    return any(path.exists() for path in finished)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        name: leaf for key, value in tree.items() for name, leaf in _flat(value, f"{prefix}.{key}".strip(".")).items()
    }
