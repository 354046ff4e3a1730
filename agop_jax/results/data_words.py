"""Which images an experiment used, and for what, in words, from the work directory's `data.json` and config."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from agop_jax.results import setting_names
from agop_jax.results.work import Work

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


def facts_in_brief(work: Work) -> list[str]:
    """What was trained on what, for the line under the title: network, data, images, donors, seeds."""
    config, seeds = work.config, defaultdict[int, set[int]](set)
    for row in work.results:
        seeds[row["donor"]].add(row["seed"])
    parts = [setting_names.model_name(config.get("model", {})), _whose_data(config, work.data), _images(work)]
    return [part for part in [*parts, _donors(config, len(seeds)), _seeds(seeds)] if part]


def _whose_data(config: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    name, donor = str(config.get("data", {}).get("name") or ""), str(config.get("donor", {}).get("data") or "")
    if not name or donor in ("", name):
        return f"donor and recipients: {setting_names.data_name(name)}" if name else ""
    images = data.get("donor", {}).get("images", {}).get("train")
    own = f" ({images:,} training images)" if images else ""
    return f"donor: {setting_names.data_name(donor)}{own}, recipients: {setting_names.data_name(name)}"


def _images(work: Work) -> str:
    """Of the recipients' data."""
    sizes = list(dict.fromkeys(f"{size:,}" for size in sorted({row["train_size"] for row in work.results})))
    images = work.data.get("images", {})
    if not all(split in images for split in SPLITS):
        return f"{', '.join(sizes)} training images"
    train, *others = (f"{images[split]:,}" for split in SPLITS)
    of = "" if sizes == [train] else f" of {train}"
    return f"{', '.join(sizes)}{of} training, {others[0]} validation and {others[1]} test images"


def _donors(config: Mapping[str, Any], count: int) -> str:
    """How many, and how each was made."""
    donor = config.get("donor")
    origin = f", {setting_names.donor_name(donor).removeprefix('donor ')}" if donor else ""
    return f"{count} donor{'s' if count > 1 else ''}{origin}"


def _seeds(seeds: Mapping[int, set[int]]) -> str:
    """Of the recipients of each donor."""
    counts = sorted({len(own) for own in seeds.values()})
    number = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    return f"{number} seed{'s' if counts != [1] else ''}{' each' if len(seeds) > 1 else ''}"


def _words(data: Mapping[str, Any], lead: str) -> list[tuple[str, str]]:
    classes = f"{data['name']}, {data['num_classes']} classes: {_listed(data['classes'])}"
    images = "; ".join(f"{split}: {data['images'][split]}, {data['origins'][split]}" for split in SPLITS)
    unused = [("Not used", _listed(data["unused"]))] if data.get("unused") else []
    return [(lead, classes), ("Images", images), *unused]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(str, names[:SHOWN])) + more
