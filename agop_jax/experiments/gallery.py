"""What the donor learned, for the work directory and its report: the ansatz with its null, and pictures."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax.errors import FlaxError

from agop_jax.analysis import transforms
from agop_jax.analysis.ansatz import ansatz_report
from agop_jax.core import files, trees
from agop_jax.core.errors import UserError, first_line
from agop_jax.data import Dataset
from agop_jax.data.images import read_photograph
from agop_jax.experiments.donors import DonorNetwork
from agop_jax.experiments.keys import Role, stream
from agop_jax.experiments.machines import Rounds
from agop_jax.experiments.settings import Config
from agop_jax.experiments.workdir import ANSATZ, GALLERY
from agop_jax.models.pretrained import Pretrained
from agop_jax.results import feature_figures, figures, machine_figures
from agop_jax.training.resumable import Stopped

SHOWN = 5  # layers of one picture, spread evenly over the network
Entry = tuple[str, figures.Figure, str, str]  # name, figure, caption and alternative text


def write_ansatz(
    path: Path,
    config: Config,
    donor: DonorNetwork,
    untrained: Pretrained | None,
    images: np.ndarray,
    labels: np.ndarray,
) -> None:
    """`ansatz.csv`, unless it is there.

    Args:
      path: the work directory.
      config: of the experiment.
      donor: the trained network.
      untrained: the same before its training, where that is known.
      images: (n, h, w, c), normalised for the donor.
      labels: (n,).
    """
    section, outputs = config.ansatz, config.features.outputs
    if (path / ANSATZ).exists() or not section.draws or config.features.method == "probe":
        return
    rows = ansatz_report(
        donor.model,
        donor.variables,
        images,
        None if untrained is None else untrained.variables,
        powers=tuple(section.powers),
        layers=config.recipients.layers,
        draws=section.draws,
        resamples=section.resamples,
        outputs=outputs,
        labels=labels if outputs == "loss" else None,
        seed=stream(Role.ANSATZ, config.seed),
    )
    files.write_rows(path / ANSATZ, rows)


def read_picture(file: str) -> np.ndarray:
    """A picture file of 8 or 16 bits a channel as uint8 (h, w, 3), upright and without transparency."""
    try:
        return read_photograph(file)
    except UserError as error:
        raise UserError(f"pictures.image: {error}") from None


def check_picture(config: Config, donor_data: Dataset) -> None:
    """Refuses `pictures.image`, which has one channel or three, for a donor that takes another number."""
    channels = donor_data.train.shape[-1]
    if config.pictures.enabled and config.pictures.image and channels not in (1, 3):
        raise UserError(
            f"pictures.image: the donor takes images of {channels} channels, {config.pictures.image!r} is a picture in "
            "grey or RGB: leave it empty, to see the donor's first test image"
        )


def write_gallery(
    path: Path,
    config: Config,
    donor: DonorNetwork,
    dataset: Dataset,
    machine: Callable[[int], Rounds] | None,
) -> None:
    """`figures/donor_*` and `gallery.json`, which names them with their captions; unless it is there for this picture.

    An experiment does not depend on its pictures: what goes wrong with them is logged and noted in `gallery.json`.

    Args:
      path: the work directory.
      config: of the experiment.
      donor: whose features are drawn.
      dataset: of the donor.
      machine: from the side of a patch to a recursive feature machine's rounds, in experiments that use some.
    """
    pictures = {"image": config.pictures.image, "layers": config.pictures.layers, "machines": machine is not None}
    if not config.pictures.enabled or _is_drawn(path, pictures):
        return
    try:
        drawn = _drawn(donor, _picture(config.pictures.image, donor, dataset), config.pictures.layers)
        drawn += _machine_pictures(donor, machine) if machine else []
        contents = {"entries": [_save(path, *figure) for figure in drawn]}
    except Stopped:
        raise
    except Exception as error:
        note = f"There are no pictures of the donor's features: {first_line(error)}"
        logging.warning("%s", note)
        logging.debug("what went wrong with the pictures", exc_info=True)
        contents = {"entries": [], "note": note}
    files.atomic_write_text(path / GALLERY, json.dumps({"pictures": pictures, **contents}, indent=1))


def _is_drawn(path: Path, pictures: Mapping[str, Any]) -> bool:
    """Whether the gallery is that of this picture, and whole."""
    try:
        gallery = files.read_json(path / GALLERY) if (path / GALLERY).exists() else {}
    except UserError:  # damaged: drawn anew
        return False
    return "note" not in gallery and {"machines": False, **gallery.get("pictures", {})} == pictures


def _picture(file: str, donor: DonorNetwork, dataset: Dataset) -> np.ndarray:
    """The picture (h, w, channels) that is seen through the donor's layers."""
    if not file:
        return dataset.test.take(np.arange(1)).load().images[0]
    picture = read_picture(file)
    return picture.mean(-1, keepdims=True).astype(np.uint8) if len(donor.pipeline.mean) == 1 else picture


def _drawn(donor: DonorNetwork, picture: np.ndarray, layers: str) -> list[Entry]:
    """The pictures of the donor's features."""
    images = donor.pipeline(jnp.asarray(picture)[None])
    _require_size(donor, images)
    first_last = _spread(list(donor.features), 2)
    drawn = [
        (
            "donor_heat_maps",
            feature_figures.heat_maps({name: donor.features[name] for name in first_last}),
            "NFM and AGOP of the donor's first and last layer. Rows and columns are the entries of a patch, position "
            "by position and within it channel by channel; red is above zero, blue below. Where the two look alike, "
            "the layer weighs directions as its effect on the output does.",
            f"Heat maps of NFM and AGOP of {' and '.join(first_last)}.",
        )
    ]
    maps = {name: batch[0] for name, batch in _feature_maps(donor, images, layers).items()}
    if not maps:
        return drawn
    chosen = _spread(list(maps), SHOWN)
    pattern = "|".join(map(re.escape, chosen))
    seen = transforms.image_transforms(donor.model, donor.variables, images, donor.features, pattern)
    first = donor.features[next(iter(maps))]
    return [
        *drawn,
        (
            "donor_eigenvectors",
            feature_figures.filter_patches(_eigenvectors(first)),
            f"The eight top eigenvectors of NFM and AGOP of {first.path}, as filters: the directions of a patch that "
            "the layer amplifies most, and those that matter most to the output.",
            f"Top eigenvectors of NFM and AGOP of {first.path} as small patches.",
        ),
        (
            "donor_transforms",
            feature_figures.transform_grid(picture, {name: np.asarray(batch[0]) for name, batch in seen.items()}),
            "A picture through the square root of each layer's AGOP: the norm of AGOP^(1/2) x for every patch x of the "
            "layer's input. Bright is what the network's output is sensitive to at this layer.",
            f"A picture beside its transforms by {', '.join(chosen)}.",
        ),
        (
            "donor_feature_maps",
            feature_figures.feature_maps({name: np.asarray(maps[name]) for name in chosen}),
            "Outputs of the donor's convolutions for the same picture, the eight channels of largest variance of each "
            "layer; numbers are those of the channels.",
            f"Feature maps of {', '.join(chosen)}.",
        ),
    ]


def _machine_pictures(donor: DonorNetwork, machine: Callable[[int], Rounds]) -> list[Entry]:
    """Pictures of a machine on patches of the donor's first convolution; none where those are not square."""
    first = next((layer for layer in donor.features.values() if layer.kernel.ndim == 4), None)
    if first is None or first.groups > 1 or first.kernel.shape[0] != first.kernel.shape[1]:
        return []
    side, _, channels, _ = first.kernel.shape
    rounds = machine(side)
    matrices = {"M of the machine": rounds.covariance, f"NFM of the donor's {first.path}": first.nfm}
    drawn = [
        (
            "machine_matrices",
            machine_figures.patch_matrices(matrices, (side, side, channels)),
            "M of a recursive feature machine on patches of the images, and the NFM of the donor's first convolution, "
            "with their top eigenvectors as filters. No network was trained for M.",
            "M of a recursive feature machine and the NFM of the donor's first layer, with their top eigenvectors.",
        )
    ]
    if rounds.accuracies:
        drawn.append(
            (
                "machine_rounds",
                machine_figures.accuracy_by_round([rounds.accuracies]),
                "Validation accuracy of that machine by round. Round 0 has M = I; each later round has the AGOP of the "
                "round before.",
                "Validation accuracy of a recursive feature machine by round.",
            )
        )
    return drawn


def _require_size(donor: DonorNetwork, images: Any) -> None:
    try:
        jax.eval_shape(lambda x: transforms.feature_maps(donor.model, donor.variables, x), images)
    except (FlaxError, TypeError) as error:  # by what does not fit
        raise UserError(f"pictures.image: the donor does not take a picture of {images.shape[1:3]}") from error


def _feature_maps(donor: DonorNetwork, images: Any, layers: str) -> Mapping[str, Any]:
    """The feature maps of the chosen convolutions; none of a network without any."""
    every = transforms.feature_maps(donor.model, donor.variables, images)
    return {name: every[name] for name in trees.select(every, layers)} if every else {}


def _eigenvectors(layer: Any) -> dict[str, np.ndarray]:
    shape = tuple(layer.kernel.shape[:-1])
    matrices = {name.upper(): feature_figures.first_of_stack(getattr(layer, name)) for name in ("nfm", "agop")}
    return {name: transforms.eigenvector_patches(matrix, shape) for name, matrix in matrices.items()}


def _spread(names: list[str], number: int) -> list[str]:
    """At most so many of them, the first and the last included."""
    places = np.unique(np.linspace(0, len(names) - 1, number).round().astype(int))
    return [names[place] for place in places]


def _save(path: Path, name: str, figure: figures.Figure, caption: str, alt: str) -> dict[str, Any]:
    figures.save(figure, path / "figures" / name)
    return {"name": name, "caption": caption, "alt": alt, "width": figure.get_figwidth()}
