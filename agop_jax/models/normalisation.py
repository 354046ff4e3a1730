"""How a donor's images are normalised: (pixel / 255 - mean) / std, per channel, as a file states it or a user."""

# pyright: reportArgumentType=false

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from agop_jax.core.errors import UserError

Constants = tuple[float, ...]
Numbers = Sequence[int | float] | int | float  # one for each channel, or one for all
# of ImageNet's training images, in units of pixel / 255: what torchvision, timm and most others normalise with
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SECTIONS = ("pretrained_cfg", "default_cfg")  # of a hub's config.json; older files state the same at the top
NAMES = {"mean": ("mean", "image_mean"), "std": ("std", "image_std")}


class Stated(NamedTuple):
    """What a file states of mean and std: numbers, one for all channels or one for each, or nothing."""

    mean: Any = None
    std: Any = None


def stated_in(about: Any, where: str) -> Stated:
    """What a hub's `config.json` states.

    Args:
      about: its content.
      where: for messages.

    Raises:
      UserError: something else than a JSON object.
    """
    if not isinstance(about, Mapping):
        raise UserError(f"donor {where}: wanted config.json to hold a JSON object, got {type(about).__name__}")
    sections = {name: about[name] for name in SECTIONS if about.get(name) is not None}
    for name, section in sections.items():
        if not isinstance(section, Mapping):
            raise UserError(
                f"donor {where}: wanted {name} of config.json to be an object, got {type(section).__name__}"
            )
    for section in (*sections.values(), about):
        stated = Stated(*(_first(section, names) for names in NAMES.values()))
        if stated != Stated():
            return stated
    return Stated()


def _first(section: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((section[name] for name in names if section.get(name) is not None), None)


def normalisation(
    where: str, channels: int, stated: Stated, mean: Numbers = (), std: Numbers = ()
) -> tuple[Constants, Constants]:
    """Mean and std of each channel.

    Args:
      where: the donor came from, for messages.
      channels: of its images.
      stated: by the donor's file; ImageNet's constants are used only where it states nothing.
      mean, std: what the user says instead; empty for what the file states.

    Raises:
      UserError: one of the two is missing, or is not a number for each channel in units of pixel / 255.
    """
    default = Stated(IMAGENET_MEAN, IMAGENET_STD) if stated == Stated() else stated
    chosen = {"mean": default.mean if _is_empty(mean) else mean, "std": default.std if _is_empty(std) else std}
    for name, values in chosen.items():
        if values is None:
            other = "std" if name == "mean" else "mean"
            raise UserError(f"donor {where} states a {other} and no {name}: set config.donor.{name}")
    means, deviations = (_numbers(where, name, values, channels) for name, values in chosen.items())
    if not len(means) == len(deviations) == channels:
        got = f"{len(means)} and {len(deviations)}"
        raise UserError(f"donor {where}: wanted a mean and std for each of its {channels} channels, got {got}")
    _check_units(where, "mean", means, all(0 <= value <= 1 for value in means))
    _check_units(where, "std", deviations, all(0 < value <= 1 for value in deviations))
    return means, deviations


def _numbers(where: str, name: str, values: Any, channels: int) -> Constants:
    """One number stands for all channels."""
    numbers = [values] * channels if _is_number(values) else values
    if isinstance(numbers, (str, bytes, Mapping)) or not hasattr(numbers, "__iter__"):
        numbers = [None]
    numbers = list(numbers)
    if not all(map(_is_number, numbers)):
        raise UserError(f"donor {where}: wanted numbers as its {name}, got {values!r}: set config.donor.{name}")
    return tuple(map(float, numbers))


def _is_empty(values: Any) -> bool:
    return hasattr(values, "__len__") and not len(values)


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and hasattr(value, "__float__") and getattr(value, "ndim", 0) == 0


def _check_units(where: str, name: str, values: Constants, fit: bool) -> None:
    """Refuses a mean outside [0, 1] or a deviation outside (0, 1], in units of pixel / 255."""
    if fit:
        return
    advice = "divide by 255" if 1 < max(values) <= 255 and min(values) >= 0 else f"set config.donor.{name}"
    interval = "0 to 1" if name == "mean" else "above 0, up to 1"
    shown = ", ".join(f"{value:g}" for value in values)
    raise UserError(f"donor {where}: wanted its {name} in units of pixel / 255 ({interval}), got {shown}: {advice}")
