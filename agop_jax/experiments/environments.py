"""Where results come from: one line of `environments.jsonl` for each environment that computed any of them."""

import importlib.metadata
import json
import platform
import subprocess
import time
import zlib
from pathlib import Path

import jax

from agop_jax.core import hosts
from agop_jax.core.files import atomic_write_text, read_text

ENVIRONMENTS = "environments.jsonl"
PACKAGES = ("agop_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def record_environment(workdir: Path) -> str:
    """Appends this environment, with the date of its first call, unless its line is there.

    Returns:
      Its key, which the rows of the results state: a hash of everything but the date.
    """
    described = environment()
    key = f"{zlib.crc32(json.dumps(described).encode()):08x}"
    hosts.by_first(lambda: _append(workdir / ENVIRONMENTS, key, described))
    return key


def _append(path: Path, key: str, described: dict[str, str]) -> None:
    lines = read_text(path).splitlines() if path.exists() else []
    if not any(line.startswith(_start(key)) for line in lines):
        date = time.strftime("%Y-%m-%d %H:%M:%S %z")
        lines.append(json.dumps({"environment": key, "date": date, **described}))
        atomic_write_text(path, "\n".join(lines) + "\n")


def _start(key: str) -> str:
    """How the line of an environment begins."""
    return json.dumps({"environment": key})[:-1]


def environment() -> dict[str, str]:
    """What the results depend on besides the config."""
    device = jax.devices()[0]
    described = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": f"{len(jax.devices())} x {device.platform} ({device.device_kind})",
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }
    commit = _commit()
    return {**described, "commit": commit} if commit else described


def _commit() -> str | None:
    """The commit of the checkout that this package is run from, if it is one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
