"""The memory that the container of this process may use, from the files of Linux control groups, version 1 and 2."""

import math
from pathlib import Path
from typing import NamedTuple

GROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


class _Files(NamedTuple):
    """The names of a version's files: the limit, what is in use, and the cache in it that the system would give up."""

    limit: str
    usage: str
    cache: str


VERSION_1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
VERSION_2 = _Files("memory.max", "memory.current", "inactive_file")


def limit_bytes(groups: Path = GROUPS, own: Path = OWN) -> int | float:
    """The smallest limit of the groups that this process is in; infinity where there is none, or no such files."""
    limits = [_number(folder / files.limit) for folder, files in _folders(groups, own)]
    return min((limit for limit in limits if limit is not None), default=math.inf)


def free_bytes(groups: Path = GROUPS, own: Path = OWN) -> int | float:
    """What the fullest of these groups still has; file cache that the system would give up counts as free."""
    return min((_free(folder, files) for folder, files in _folders(groups, own)), default=math.inf)


def _folders(groups: Path, own: Path) -> list[tuple[Path, _Files]]:
    """The groups of this process that limit memory, and those around them, up to the root of what it can see.

    A container often sees its own group at the root, under whatever name the process is told.
    """
    folders = []
    for line in _text(own).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            folders += [(folder, VERSION_1) for folder in _upwards(groups / "memory", path)]
        elif not controllers:
            folders += [(folder, VERSION_2) for folder in _upwards(groups, path)]
    return folders


def _upwards(root: Path, path: str) -> list[Path]:
    inside = [part for part in path.split("/") if part not in ("", "..")]
    return [root.joinpath(*inside[:depth]) for depth in range(len(inside), -1, -1)]


def _free(folder: Path, files: _Files) -> int | float:
    limit, usage = _number(folder / files.limit), _number(folder / files.usage)
    if limit is None or usage is None:
        return math.inf
    return max(0, limit - max(0, usage - _cache(folder, files)))


def _cache(folder: Path, files: _Files) -> int:
    entries = dict(line.split(maxsplit=1) for line in _text(folder / "memory.stat").splitlines() if " " in line)
    count = entries.get(files.cache, "0").strip()
    return int(count) if count.isdecimal() else 0


def _number(file: Path) -> int | None:
    """None where there is no such file, or no limit ('max')."""
    text = _text(file).strip()
    return int(text) if text.isdecimal() else None


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
