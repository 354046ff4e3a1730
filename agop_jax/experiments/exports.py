"""What an experiment made, for use elsewhere: its donor, its recipients and its features as files of their own.

Nothing is written into the work directory.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections

from agop_jax.core import files
from agop_jax.core.arrays import load_metadata
from agop_jax.core.errors import UserError
from agop_jax.core.tensors import SUFFIX, read_about
from agop_jax.experiments import experiment, recipients
from agop_jax.experiments.donors import pipeline_for
from agop_jax.experiments.keys import APART, recipient_seeds
from agop_jax.experiments.recipients import Comparison
from agop_jax.experiments.settings import Config
from agop_jax.experiments.sweep_tables import Cell
from agop_jax.experiments.workdir import CONFIG, DATA, DONOR, FEATURES, RESULTS, donor_directory
from agop_jax.features.layer import LayerFeatures
from agop_jax.features.matrices import save_matrices
from agop_jax.features.store import load_features, save_features
from agop_jax.initializers.registry import get_method
from agop_jax.models.pretrained import Pretrained, load_pretrained, save_pretrained
from agop_jax.results import tables
from agop_jax.results.tables import Setting
from agop_jax.training.trainer import Trainer

STATED = ("model", "mean", "std", "versions", "checksum")  # of metadata, what is no fact of a card


class Work:
    """A finished work directory, or one in progress, to be read.

    Args:
      path: of the directory.

    Raises:
      UserError: no experiment has run there.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()
        if not (self.path / CONFIG).is_file():
            raise UserError(f"{str(self.path)!r} holds no experiment: name the --workdir of one that has run")
        self.config = Config.of(ml_collections.ConfigDict(files.read_json(self.path / CONFIG)))
        self._data = files.read_json(self.path / DATA) if (self.path / DATA).is_file() else {}

    def write_donor(self, target: str | Path, seed: int | None = None) -> None:
        """The donor as a PyTorch state dict with its card.

        Args:
          target: NAME.safetensors, which must not exist.
          seed: of the donor; None for the experiment's own.
        """
        require_suffix(target)
        directory = self._directory(seed) / DONOR
        donor = load_pretrained(self.config.model.name, f"orbax:{directory}")
        facts = {key: value for key, value in load_metadata(directory).items() if key not in STATED}
        facts = {"kind": "donor", "seed": self._donor_seed(seed), **facts}
        save_pretrained(target, donor, facts | self._classes(donor, self._data.get("donor", self._data)))

    def write_features(self, target: str | Path, seed: int | None = None) -> None:
        """The donor's features in one file.

        Args:
          target: NAME.safetensors, which must not exist.
          seed: of the donor; None for the experiment's own.
        """
        require_suffix(target)
        about = load_metadata(self._features_path(seed))
        facts = {key: value for key, value in about.items() if key not in ("layers", "versions")}
        save_features(target, self._features(seed), facts)

    def write_matrices(self, target: str | Path, seed: int | None = None) -> None:
        """The donor's NFM and AGOP as CSV, `save_matrices`."""
        save_matrices(target, self._features(seed))

    def write_recipient(
        self,
        target: str | Path,
        init: str,
        seed: int | None = None,
        train_size: int | None = None,
        width: float | None = None,
        budget: int | None = None,
        trained: bool = False,
    ) -> None:
        """A recipient as a PyTorch state dict with its card.

        Before training it is drawn anew, as the experiment draws it, so that it need not be one of the experiment's.

        Args:
          target: NAME.safetensors, which must not exist.
          init: method of its initialisation.
          seed: of the recipient, as `results.csv` has it; None for the first.
          train_size: training images, of which methods that look at examples see some; None for the config's first.
          width: factor on the channels; None for the config's first.
          budget: training steps of a trained one; None for the config's first.
          trained: the recipient at the end of its training, which `config.recipients.keep` has kept.
        """
        require_suffix(target)
        files.require_new(target)
        section = self.config.recipients
        seed = recipient_seeds(self.config.donor_seeds[0], self.config.seed, 1)[0] if seed is None else seed
        size = (section.train_sizes[0] if train_size is None else train_size) or self._training_images()
        factor = section.widths[0] if width is None else width
        cell = Cell(init, Setting(size, factor, self.config.budgets[0] if budget is None else budget))
        network, facts = self._kept(cell, seed) if trained else self._start(cell, seed)
        facts = {"kind": "trained recipient" if trained else "recipient before training", **facts}
        save_pretrained(target, network, facts | self._classes(network, self._data))

    def _kept(self, cell: Cell, seed: int) -> tuple[Pretrained, dict[str, Any]]:
        path = self._kept_path(cell, seed)
        if not path.is_file():
            rows = tables.read_optional_results(self.path / RESULTS, budget=self.config.train.steps)
            kept = [row for row in rows if self._kept_path(Cell.of(row), row["seed"]).is_file()]
            inits = ", ".join(dict.fromkeys(row["init"] for row in kept)) or "none"
            raise UserError(
                f"no {str(path)!r}: config.recipients.keep=True keeps what is trained from then on. Kept: {inits}"
            )
        network = load_pretrained(self.config.model.name, f"safetensors:{path}")
        return network, {key: value for key, value in read_about(path).items() if key not in STATED}

    def _kept_path(self, cell: Cell, seed: int) -> Path:
        name = tables.recipient_name(cell.init, cell.setting, seed, self.config.train.steps)
        return recipients.kept_path(self.path, name)

    def _start(self, cell: Cell, seed: int) -> tuple[Pretrained, dict[str, Any]]:
        """Drawn as `Sweep` draws it."""
        method = get_method(cell.init)
        donor_seed = self._donor_of(seed)
        path = donor_directory(self.path, donor_seed, self.config.seed)
        if method.untrained and not (path / f"{FEATURES}_untrained").exists():
            raise UserError(
                f"init {cell.init!r} needs {str(path / f'{FEATURES}_untrained')!r}: run it in the experiment"
            )
        section = dataclasses.replace(
            self.config.recipients,
            inits=(cell.init,),
            widths=(cell.setting.width,),
            train_sizes=(cell.setting.train_size,),
        )
        config = dataclasses.replace(self.config, seed=donor_seed, stages="recipients", recipients=section)
        own = dataclasses.replace(config, seed=self.config.seed)
        dataset = experiment.load_data(own, own.data.name)
        networks = experiment.make_donors(config, experiment.donor_dataset(own, dataset), dataset, path, "")
        donors = {name: donor.for_recipients(section.layers, method.needs_network) for name, donor in networks.items()}
        trainer = Trainer(
            own.model.network(dataset.num_classes, cell.setting.width), pipeline_for(own, dataset), own.train
        )
        drawn = recipients.drawn(Comparison(self.path, own, dataset, donors), cell, seed, trainer)
        constants = trainer.pipeline.mean, trainer.pipeline.std
        facts = {**cell.columns, "seed": seed, "donor": donor_seed}
        return Pretrained(trainer.model, jax.device_get(drawn.variables), *constants), facts

    def _donor_of(self, seed: int) -> int:
        """The seed of the donor that a recipient with this seed is drawn from."""
        for donor in self.config.donor_seeds:
            if seed in recipient_seeds(donor, self.config.seed, APART):
                return donor
        raise UserError(f"no donor has recipients with the seed {seed}: take one of the column seed of {RESULTS}")

    def _directory(self, seed: int | None) -> Path:
        path = donor_directory(self.path, self._donor_seed(seed), self.config.seed)
        if not (path / DONOR).exists():
            seeds = ", ".join(map(str, self.config.donor_seeds))
            raise UserError(f"no donor in {str(path)!r}: the experiment's donors have the seeds {seeds}")
        return path

    def _donor_seed(self, seed: int | None) -> int:
        return self.config.donor_seeds[0] if seed is None else seed

    def _features_path(self, seed: int | None) -> Path:
        source = self.config.features.source
        return Path(source).expanduser() if source else self._directory(seed) / FEATURES

    def _features(self, seed: int | None) -> Mapping[str, LayerFeatures]:
        return load_features(self._features_path(seed))

    def _training_images(self) -> int:
        return int(self._data.get("images", {}).get("train", 0))

    def _classes(self, network: Pretrained, data: Mapping[str, Any]) -> dict[str, Any]:
        """The data that a network was made for, and the names of its classes where its outputs are these."""
        facts = {"data": data["name"]} if "name" in data else {}
        classes = list(map(str, data.get("classes", ())))
        return facts | ({"classes": classes} if len(classes) == network.model.num_classes else {})


def require_suffix(target: str | Path) -> None:
    """Refuses a file name that PyTorch's reader would not know."""
    if Path(target).suffix != SUFFIX:
        raise UserError(f"{str(target)!r}: wanted a name that ends in {SUFFIX}")
