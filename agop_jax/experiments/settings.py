"""A whole config, checked.

Files and the command line change an `ml_collections.ConfigDict`. `Config.of` checks it and makes it a frozen dataclass
of `sections`, which is all that the rest of the program knows.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_collections

from agop_jax.core.errors import UserError, unknown_name
from agop_jax.experiments import fields
from agop_jax.experiments.fields import require, require_numbers
from agop_jax.experiments.keys import APART
from agop_jax.experiments.sections import (
    AnsatzConfig,
    DataConfig,
    DonorConfig,
    FeatureConfig,
    MachineConfig,
    ModelConfig,
    PictureConfig,
    RecipientConfig,
    Section,
    StatisticsConfig,
)
from agop_jax.experiments.trackers import TRACKERS
from agop_jax.training.settings import Settings

STAGES = ("donor", "features", "recipients", "report")


@dataclass(frozen=True)
class Config(Section):
    """A whole config: what runs on the bundled digits in a minute."""

    question: str = ""  # shown on top of the report
    stages: str = ",".join(STAGES)  # what this call does; the rest must be in the workdir already
    save_every: float = 30.0  # seconds between checkpoints of a run; shorter runs need none
    track: str = ""  # wandb or trackio: logs curves, tables and page there; empty: nowhere
    seed: int = 0  # of the donor, the validation split and the features
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    donor: DonorConfig = field(default_factory=DonorConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    ansatz: AnsatzConfig = field(default_factory=AnsatzConfig)
    pictures: PictureConfig = field(default_factory=PictureConfig)
    rfm: MachineConfig = field(default_factory=MachineConfig)
    train: Settings = field(default_factory=lambda: Settings(steps=200))  # recipients
    recipients: RecipientConfig = field(default_factory=RecipientConfig)
    statistics: StatisticsConfig = field(default_factory=StatisticsConfig)

    def __post_init__(self) -> None:
        require("seed", self.seed, 0 <= self.seed < 2**32, "a whole number from 0 to 2^32 - 1")
        self._check_donors()
        require("track", self.track, self.track in ("", *TRACKERS), f"{' or '.join(TRACKERS)}, or nothing")
        require_numbers("config", self, ("save_every",), 0)
        check_stages(self.stages)

    def _check_donors(self) -> None:
        seeds = self.donor.seeds
        whole = all(0 <= seed < 2**32 for seed in seeds) and len(seeds) == len(set(seeds))
        require("donor.seeds", seeds, whole, "whole numbers from 0 to 2^32 - 1, none of them twice")
        if seeds and (self.donor.source or self.features.source):
            raise UserError("config.donor.seeds: a donor from elsewhere has no seed: leave donor.seeds empty")
        if len(seeds) > 1 and self.recipients.seeds > APART:
            raise UserError(
                f"config.recipients.seeds: wanted {APART} or fewer of each donor, got {self.recipients.seeds}"
            )

    @property
    def budgets(self) -> tuple[int, ...]:
        """Training steps of recipients."""
        return self.recipients.budgets or (self.train.steps,)

    @property
    def donor_seeds(self) -> tuple[int, ...]:
        """The seeds of the donors. In order, the experiment's own first if it is one of them."""
        seeds = self.donor.seeds or (self.seed,)
        return tuple(sorted(seeds, key=lambda seed: (seed != self.seed, seed)))

    @classmethod
    def of(cls, config: ml_collections.ConfigDict) -> "Config":
        """The fields of a `ConfigDict`, checked one by one.

        Raises:
          UserError: a field that is not known, or a value that it cannot have.
        """
        values = config.to_dict()
        fields.require_local(values)
        model = {name: fields.hashable(value) for name, value in values.pop("model").items()}
        network = ModelConfig.of(str(model.pop("name")), model)
        return fields.unpack(cls, {**values, "model": network})

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries of plain values."""
        parts = {part.name: getattr(self, part.name) for part in dataclasses.fields(self)}
        plain: Callable[[Any], Any] = lambda part: part.to_dict() if isinstance(part, Section) else part
        return {name: dataclasses.asdict(p) if isinstance(p, Settings) else plain(p) for name, p in parts.items()}


def check_stages(stages: str) -> list[str]:
    """The stages of 'donor,features', in the order they run."""
    names = [name.strip() for name in stages.split(",") if name.strip()]
    for name in names:
        if name not in STAGES:
            raise unknown_name("stage", name, STAGES)
    if not names:
        raise UserError(f"config.stages: wanted one or more of {', '.join(STAGES)}, got none")
    return [stage for stage in STAGES if stage in names]
