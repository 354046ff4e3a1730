"""What a setting is, in a few words: those parts of a config in which the settings that are compared differ."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agop_jax.results.summary_words import TIMES, width_factor
from agop_jax.results.tables import Setting

Facts = dict[str, str]  # what -> words; '' for what is off or at its default

# What a name does not tell: it selects results and says nothing of what they are, or stands in the facts already.
UNTOLD = (
    "question",
    "stages",
    "save_every",
    "ansatz",
    "pictures",
    "statistics",
    "recipients",
    "data.name",
    "data.memory",
    "donor.data",
    "donor.random_labels",
    "donor.seeds",
    "donor.source",
    "donor.train.steps",
    "features.batch_size",
    "model",
    "train.steps",
    "train.optimizer",
    "train.weight_decay",
)


def facts(config: Mapping[str, Any], setting: Setting) -> Facts:
    """The parts of a name, in their order; `other` fields of the config follow by their own names."""
    model, donor, train = (config.get(section, {}) for section in ("model", "donor", "train"))
    data, donor_data = (data_name(str(name or "")) for name in (config.get("data", {}).get("name"), donor.get("data")))
    told = {
        "model": model_name(model),
        "data": f"{donor_data} \N{RIGHTWARDS ARROW} {data}" if donor_data not in ("", data) else data,
        "donor": donor_name(donor),
        "images": f"n = {setting.train_size:,}",
        "width": width_factor(setting.width),
        "budget": f"{setting.budget:,} steps",
        "optimizer": _optimizer(train),
    }
    other = {name: value for name, value in _flat(config).items() if not _untold(name)}
    return told | {name: _words(name, value) for name, value in other.items()}


def names(settings: Sequence[Facts], runs: Sequence[str]) -> list[str]:
    """One a setting, no two alike.

    Args:
      settings: their facts.
      runs: the name of each one's run, which is added where the facts are the same.
    """
    shared = [fact for fact in settings[0] if all(fact in own for own in settings)]  # an older config has kept less
    telling = [fact for fact in shared if len({own[fact] for own in settings}) > 1]
    short = [", ".join(words for fact in telling if (words := own[fact])) for own in settings]
    counts = Counter(short)
    return [
        name if name and counts[name] == 1 else " ".join([name, f"({run})" if name else run]).strip()
        for name, run in zip(short, runs, strict=True)
    ]


def model_name(model: Mapping[str, Any]) -> str:
    """Such as 'small_cnn 16-32-64-64' or 'resnet20 x 0.5'."""
    fields = {name: value for name, value in model.items() if name != "name" and value is not None}
    width, features = fields.pop("width", None), fields.pop("features", None)
    words = [
        str(model.get("name", "")),
        _value(features) if features else "",
        f"{TIMES} {width:g}" if width else "",
    ]
    return " ".join(filter(None, [*words, *(f"{name} {_value(value)}" for name, value in fields.items())]))


def data_name(name: str) -> str:
    """'npz:DIR/cifar10.npz' and 'cifar10' are both CIFAR-10."""
    source, colon, path = name.partition(":")
    return (Path(path).stem if source == "npz" else Path(path).name) if colon else name


def donor_name(donor: Mapping[str, Any]) -> str:
    """Where it comes from, or how it was trained."""
    if donor.get("source"):
        return f"donor {donor['source']}"
    labels = " on random labels" if donor.get("random_labels") else ""
    return f"donor {donor.get('train', {}).get('steps', 0):,} steps{labels}"


def _optimizer(train: Mapping[str, Any]) -> str:
    """Such as 'sgd' or 'adamw (decay 0.01)'."""
    name, decay = str(train.get("optimizer", "sgd")), float(train.get("weight_decay", 0.0))
    return f"{name} (decay {decay:g})" if decay else name


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    return {
        name: leaf for key, value in tree.items() for name, leaf in _flat(value, f"{prefix}.{key}".strip(".")).items()
    }


def _untold(name: str) -> bool:
    return any(name == field or name.startswith(f"{field}.") for field in UNTOLD)


def _words(name: str, value: Any) -> str:
    """'batch_size 64' of train.batch_size, 'donor batch_size 64' of donor.train.batch_size, 'rgb' where it is on."""
    section, last = name.partition(".")[0], name.rpartition(".")[2]
    field = f"donor {last}" if section == "donor" else last
    if value is False or (last == "resize" and not value):
        return ""
    return field if value is True else f"{field} {_value(value)}"


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "-".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
