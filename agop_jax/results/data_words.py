"""Which images an experiment used, and for what, in words, from the work directory's `data.json` and config."""

from collections.abc import Mapping
from typing import Any

SHOWN = 12  # names of a longer list
SPLITS = ("train", "validation", "test")


def data_words(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(a few words that lead in, the rest) for each line; none where an older version has written nothing of this."""
    if not data.get("origins"):
        return []
    donor = _words(donor, "The donor's data") if (donor := data.get("donor")) else []
    return _words(data, "Data") + donor


def evaluation_words(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How many images evaluations and probe looked at; nothing of versions that had no such fields."""
    share, probe = config.get("train", {}).get("evaluation_share"), config.get("recipients", {}).get("probe")
    parts = []
    if share is not None:
        part = f"on a fixed part of the validation images, which costs at most {100 * share:g} % of the training"
        parts.append(("Evaluations during training", f"{part}; after the last step on all validation images."))
    if probe:
        fit = f"ridge regression on the inputs of the last layer, on at most {probe:,} images of each split"
        parts.append(("Linear probe before training", f"{fit}; penalty by validation, test images read once."))
    return parts


def _words(data: Mapping[str, Any], lead: str) -> list[tuple[str, str]]:
    classes = f"{data['name']}, {data['num_classes']} classes: {_listed(data['classes'])}"
    images = "; ".join(f"{split}: {data['images'][split]}, {data['origins'][split]}" for split in SPLITS)
    unused = [("Not used", _listed(data["unused"]))] if data.get("unused") else []
    return [(lead, classes), ("Images", images), *unused]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(str, names[:SHOWN])) + more
