"""The config as files in `configs/` and the command line change it; its fields are those of `settings.Config`."""

# pyright: reportArgumentType=false

# pyright: reportOptionalMemberAccess=false
# (the fields of a ConfigDict have no types that a checker could know)

import dataclasses
from typing import Any

import ml_collections
from ml_collections import config_dict, config_flags
from ml_collections.config_flags import tuple_parser

from agop_jax import models
from agop_jax.core.errors import unknown_name
from agop_jax.experiments.settings import Config


class _ListParser(tuple_parser.TupleParser):
    """On the command line, words parted by commas are a list, with or without quotes and brackets."""

    def parse(self, argument: Any) -> tuple[Any, ...]:
        try:
            return super().parse(argument)
        except ValueError:
            words = (word.strip(" '\"") for word in argument.strip("()[] ").split(","))
            return tuple(word for word in words if word)


config_flags.register_flag_parser_for_type(tuple, _ListParser())


class _Fields(ml_collections.ConfigDict):
    """A `ConfigDict` that lists its fields where the command line names one that it lacks."""

    def get_type(self, key: str) -> Any:
        if key not in self:
            raise unknown_name("config field", key, self.keys())
        return super().get_type(key)


def experiment_config() -> ml_collections.ConfigDict:
    """The defaults, to be changed by a config file and the command line."""
    config = _Fields(Config().to_dict())
    for name in ("data", "donor", "features", "ansatz", "pictures", "rfm", "train", "recipients", "statistics"):
        config[name] = _Fields(config[name])
    config.donor.train = _Fields(config.donor.train)
    unset = {name: config_dict.placeholder(kind) for name, kind in _model_fields().items()}
    config.model = _Fields({**unset, "name": config.model.name})
    return config


def _model_fields() -> dict[str, type]:
    """Every field that some network has, with its type; the network's own default where it is None."""
    own = {part.name: part for make in models.MODELS.values() for part in dataclasses.fields(make.func)}
    return {
        name: type(part.default) for name, part in own.items() if isinstance(part.default, int | float | str | tuple)
    }


def require_mode(mode: str) -> None:
    """Refuses a `FILE:mode` that config files do not have.

    Raises:
      UserError: the mode is neither empty nor "quick".
    """
    if mode and mode != "quick":
        raise unknown_name("mode of the config file", mode, ("quick",))


def shrink(config: ml_collections.ConfigDict, inits: tuple[str, ...]) -> None:
    """Makes a config a smoke run of seconds: what `configs/x.py:quick` gives."""
    config.donor.train.steps = config.train.steps = 20
    config.features.num_images = config.recipients.num_images = 64
    config.rfm.num_images = 32
    config.ansatz.draws, config.ansatz.resamples = 10, 10
    config.recipients.inits, config.recipients.seeds, config.recipients.tuning_seeds = inits, 2, 1
    config.recipients.learning_rates, config.recipients.outer_rates = config.recipients.learning_rates[:1], 0
    config.recipients.budgets = (10, 20)[: len(config.recipients.budgets)]
