"""What a killed process left in a work directory: temporary names of this program, in the places where it makes them.

A work directory may hold a user's own files, so nothing is looked for by recursion and every name is spelt out.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

SETTING = r"n\d+_w[\d.e+-]+(_t\d+)?"  # as `tables.Setting.stem` makes it
RECIPIENT = rf"[\w.@=+-]+_{SETTING}_s\d+"  # as `tables.recipient_name` makes it
PLACE = r"((_with_\d+_images|_at_width_[\d.e+-]+|_after_\d+_steps)+)"  # as `pictures` names it
FIGURE = (
    rf"(accuracy|learning_curves|loss_gap)_{SETTING}|accuracy_by_(train_size|width|budget){PLACE}|"
    "filters|spectra|ansatz|machine_(matrices|rounds)|donor(_heat_maps|_eigenvectors|_transforms|_feature_maps)?"
)
TABLES = r"(results|learning_rates|fits|spectra|ansatz|summary)\.csv"
TEXTS = r"(config|data|donor|gallery)\.json|environments\.jsonl|report\.html"
# folder -> the files that are written there
FILES = {
    ".": re.compile(rf"{TABLES}|{TEXTS}"),
    "metrics": re.compile(rf"(donor|{RECIPIENT})\.jsonl"),
    "draws": re.compile(rf"{RECIPIENT}\.npz"),
    "filters": re.compile(rf"{RECIPIENT}\.npz"),
    "recipients": re.compile(rf"{RECIPIENT}\.safetensors"),
    "figures": re.compile(rf"({FIGURE})\.(png|svg)"),
}
# A file is written as '.NAME.PID.tmp', a directory as 'NAME.tmp-' and 8 hexadecimal digits.
TEMPORARY_FILE = re.compile(r"\.(?P<name>.+)\.[1-9]\d*\.tmp")
TEMPORARY_DIRECTORY = re.compile(r"(donor|features|features_untrained)\.tmp-[0-9a-f]{8}")


def remove_unfinished(workdir: Path) -> None:
    """Removes what has such a name; nothing refers to it."""
    for path in list(workdir.iterdir()):
        if TEMPORARY_DIRECTORY.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
    for folder in FILES:
        for path in list(_files(workdir / folder)):
            temporary = TEMPORARY_FILE.fullmatch(path.name)
            if temporary and FILES[folder].fullmatch(temporary["name"]):
                path.unlink()


def outputs(workdir: Path) -> list[str]:
    """Files there that an experiment would write itself."""
    return sorted(
        path.relative_to(workdir).as_posix()
        for folder, names in FILES.items()
        for path in _files(workdir / folder)
        if names.fullmatch(path.name)
    )


def _files(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (path for path in folder.iterdir() if path.is_file() and not path.is_symlink())
