"""Every field of a config's sections, with its default. The files in `configs/` say what they change."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn

from agop_jax import models
from agop_jax.core.errors import UserError, unknown_name
from agop_jax.experiments.fields import require, require_numbers, require_pattern
from agop_jax.features.extraction import METHODS
from agop_jax.features.grams import output_function
from agop_jax.initializers.registry import get_method
from agop_jax.results.verdicts import VARIANCES
from agop_jax.training.settings import Settings


class Section:
    """A part of the config."""

    def to_dict(self) -> dict[str, Any]:
        """Field -> value, as a config file has them."""
        return dataclasses.asdict(self)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class DataConfig(Section):
    """The images, and what networks see of them."""

    name: str = "digits"  # recipients' data: digits, npz:FILE, folder:DIR, or a TFDS name such as cifar10
    validation: float = 0.2  # fraction of the training images kept for choices
    size: int = 0  # side of the squares that pictures of a folder or of TFDS are brought to; 0: as they are
    memory: float = 0.0  # GiB that decoded images may take; more are streamed from disk; 0: half of the machine's
    resize: int = 0  # side of the images that networks see, resized inside jit; 0: as they are stored
    rgb: bool = False  # grey images as three equal channels, for networks of colour images
    pad: int = 0  # random crops from images padded by so many pixels
    flip: bool = False  # random mirror images

    def __post_init__(self) -> None:
        require("data.validation", self.validation, 0 <= self.validation < 1, "a fraction from 0, below 1")
        require_numbers("data", self, ("size", "memory", "resize", "pad"), 0)


@dataclass(frozen=True)
class ModelConfig(Section):
    """The network: a key of `agop_jax.models.MODELS` and those of its fields that are not at their defaults."""

    name: str = "small_cnn"
    fields: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, values: Mapping[str, Any]) -> "ModelConfig":
        """The network of this name; a field of None or () is at its default.

        Raises:
          UserError: an unknown network, a field that it does not have, or a value that the field cannot have.
        """
        fields = {field: value for field, value in values.items() if value is not None and value != ()}
        config, lists = cls(name, fields), [field for field, value in fields.items() if isinstance(value, tuple)]
        try:
            config.network(num_classes=2)
        except UserError as error:
            if not (lists and str(error).startswith("unknown field")):
                raise
            unset = " ".join(f"--config.model.{field}=()" for field in lists)
            raise UserError(f"{error} Where a config file has set the field: {unset}") from None
        return config

    def to_dict(self) -> dict[str, Any]:
        """The fields stand beside the name."""
        return {"name": self.name, **self.fields}

    def network(self, num_classes: int, width: float = 1.0) -> nn.Module:
        """The network, its channels times `width`."""
        fields = {**self.fields, "width": width * self.fields.get("width", 1.0)}
        return models.create(self.name, num_classes, **fields)


@dataclass(frozen=True)
class DonorConfig(Section):
    """The network whose features are used."""

    source: str = ""  # orbax:DIR, npz:FILE, safetensors:FILE, hub:OWNER/NAME; rfm: (see there); empty: trained here
    mean: tuple[float, ...] = ()  # of a source, per channel, in units of pixel / 255; empty: its own, or ImageNet's
    std: tuple[float, ...] = ()  # like mean
    data: str = ""  # donor's data; empty: the recipients'
    resize: int = 0  # side of the images that the donor sees; 0: config.data.resize
    init: str = "kaiming_normal"  # how the donor itself starts
    seeds: tuple[int, ...] = ()  # of several donors, each with recipients of its own; empty: one, of config.seed
    learning_rate: float = 0.1  # peak
    random_labels: bool = False  # whether it is trained on its labels in random order: a control
    train: Settings = field(default_factory=lambda: Settings(steps=400))

    def __post_init__(self) -> None:
        require_numbers("donor", self, ("resize",), 0)
        require("donor.learning_rate", self.learning_rate, _is_rate(self.learning_rate), "a number above 0")
        for name, constants in (("mean", self.mean), ("std", self.std)):
            own = bool(self.source) or not constants
            require(
                f"donor.{name}", constants, own, "none without config.donor.source: a donor trained here has its own"
            )
        own = not (self.random_labels and self.source)
        require(
            "donor.random_labels",
            self.random_labels,
            own,
            "False with config.donor.source: it is for a donor trained here",
        )
        method = get_method(self.init)
        alone = not (method.needs_donor or method.needs_examples or method.needs_network)
        require("donor.init", self.init, alone, "an init that needs neither a donor nor images")


@dataclass(frozen=True)
class FeatureConfig(Section):
    """The donor's features."""

    source: str = ""  # directory of stored features, such as another workdir's 'features'; empty: this one's
    method: str = "gram"  # gram, probe, patch_jacobian
    outputs: str | tuple[int, ...] = "logits"  # logits, loss, or class indices: 0,1,2
    num_images: int = 512  # of the donor's training split
    batch_size: int = 128  # images in one compiled step

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown_name("method", self.method, METHODS)
        output_function(self.outputs)
        require_numbers("features", self, ("num_images", "batch_size"), 1)


@dataclass(frozen=True)
class AnsatzConfig(Section):
    """Is the donor's NFM proportional to a power of its AGOP?"""

    powers: tuple[float, ...] = (0.5, 1.0)  # of the AGOP
    draws: int = 100  # random rotations for the null; 0, or features.method 'probe': no such report
    resamples: int = 100  # bootstrap samples for the interval of the best-fitting power

    def __post_init__(self) -> None:
        require("ansatz.powers", self.powers, bool(self.powers) and min(self.powers) > 0, "one or more numbers above 0")
        require_numbers("ansatz", self, ("draws", "resamples"), 0)


@dataclass(frozen=True)
class PictureConfig(Section):
    """What is shown of the donor."""

    enabled: bool = True  # whether the donor's features are drawn
    image: str = ""  # PNG or JPEG to be seen through the donor's layers; empty: its first test image
    layers: str = ".*"  # regular expression: through which convolutions

    def __post_init__(self) -> None:
        require_pattern("pictures.layers", self.layers)


@dataclass(frozen=True)
class MachineConfig(Section):
    """Recursive feature machines: of init 'convrfm', and of a donor from 'rfm:'."""

    kernel: str = "arc_cosine"  # of patches: arc_cosine, radial
    bandwidth: float = 10.0  # of kernel radial
    exponent: float = 1.0  # of kernel radial: 1 is the Laplace kernel, 2 the Gaussian
    ridge: float = 1e-3  # in units of the mean of the kernel matrix's diagonal
    iterations: int = 1  # fits of a layer after the first
    positions: int = 16  # of an image, at most, that a fit looks at
    num_images: int = 1000  # labelled training images that it looks at

    def __post_init__(self) -> None:
        require("rfm.kernel", self.kernel, self.kernel in ("arc_cosine", "radial"), "arc_cosine or radial")
        require("rfm.bandwidth", self.bandwidth, self.bandwidth > 0, "a number above 0")
        require("rfm.exponent", self.exponent, 0 < self.exponent <= 2, "a number above 0 and at most 2")
        require("rfm.ridge", self.ridge, self.ridge >= 0, "0 or more")
        require_numbers("rfm", self, ("iterations",), 0)
        require_numbers("rfm", self, ("positions",), 1)
        require_numbers("rfm", self, ("num_images",), 2)


@dataclass(frozen=True)
class RecipientConfig(Section):
    """The networks that are compared."""

    inits: tuple[str, ...] = ("kaiming_normal", "matched_isotropic", "matched_spectrum", "nfm")  # by name
    layers: str = ".*Conv_.*"  # regular expression: layers to draw anew; the rest is paired by seed
    seeds: int = 5  # paired runs of each init
    train_sizes: tuple[int, ...] = (0,)  # training images; 0: all
    widths: tuple[float, ...] = (1.0,)  # factors on the number of channels
    budgets: tuple[int, ...] = ()  # training steps, each with a schedule and rates of its own; empty: train.steps
    learning_rates: tuple[float, ...] = (0.1,)  # peaks to choose from on validation, for each init
    tuning_seeds: int = 1  # seeds of that choice
    outer_rates: int = 0  # further rates in a row beyond an end of the grid, each only where the best so far is its end
    devices: int = 0  # that a recipient is trained on; 0: all; with fewer, several are trained at once
    num_images: int = 256  # unlabelled images of its own training set that a coupled or lsuv init looks at
    keep: bool = False  # the trained networks, a file each in the work directory's folder recipients
    probe: int = 2000  # images of each split at most for the linear probe before training; 0: no probe

    def __post_init__(self) -> None:
        for init in self.inits:
            get_method(init)
        for name in ("inits", "train_sizes", "widths", "learning_rates"):
            values = getattr(self, name)
            require(
                f"recipients.{name}", values, 0 < len(values) == len(set(values)), "one or more, none of them twice"
            )
        require_pattern("recipients.layers", self.layers)
        rates, sizes, widths = self.learning_rates, self.train_sizes, self.widths
        if self.seeds < 1 or not 1 <= self.tuning_seeds <= self.seeds:
            raise UserError(
                "config.recipients: wanted seeds >= 1 and 1 <= tuning_seeds <= seeds, got "
                f"{self.seeds} and {self.tuning_seeds}"
            )
        require("recipients.learning_rates", rates, all(map(_is_rate, rates)), "numbers above 0")
        require("recipients.train_sizes", sizes, min(sizes) >= 0, "numbers of images, 0 for all")
        require("recipients.widths", widths, all(map(_is_rate, widths)), "factors above 0")
        names = {f"{width:g}" for width in widths}  # by which files are called
        require("recipients.widths", widths, len(names) == len(widths), "factors that differ in their first six digits")
        budgets = self.budgets
        require(
            "recipients.budgets",
            budgets,
            len(budgets) == len(set(budgets)) and min(budgets, default=1) > 0,
            "numbers of training steps, none of them twice",
        )
        require_numbers("recipients", self, ("devices", "probe", "outer_rates"), 0)
        no_grid = "0 where learning_rates has one rate: two or more tell how far apart rates are"
        require("recipients.outer_rates", self.outer_rates, len(rates) > 1 or not self.outer_rates, no_grid)
        require_numbers("recipients", self, ("num_images",), 1)


@dataclass(frozen=True)
class StatisticsConfig(Section):
    """How recipients are compared."""

    variance: str = "moderated"  # by the other rows of a table, or each row's 'own'
    margin: float = 1.0  # points of accuracy that do not matter: within them inits are equivalent

    def __post_init__(self) -> None:
        if self.variance not in VARIANCES:
            raise unknown_name("config.statistics.variance", self.variance, VARIANCES)
        require("statistics.margin", self.margin, _is_rate(self.margin), "a number above 0")


def _is_rate(number: float) -> bool:
    return math.isfinite(number) and number > 0
