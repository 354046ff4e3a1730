"""The table of widths, kernel sizes and depths on the page of initialisations says what the code does."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

import agop_jax

PAGE = Path(__file__).parent.parent / "docs" / "initialisations.md"
RECIPIENTS = {  # column: (width, kernel size, convolutions); the donor's are the first
    "same shapes": (4, 3, 2),
    "wider": (6, 3, 2),
    "narrower": (2, 3, 2),
    "other kernel size": (4, 1, 2),
    "more layers": (4, 3, 3),
    "fewer layers": (4, 3, 1),
}


def rows() -> dict[str, dict[str, bool]]:
    """{method: {column: whether it works}}, as the page has it."""
    section = (
        PAGE.read_text(encoding="utf-8").partition("## Other widths, kernel sizes and depths")[2].partition("\n## ")[0]
    )
    header, _, *lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    columns = [cell.strip() for cell in header[1:]]
    assert columns == list(RECIPIENTS)
    table = {}
    for names, *cells in lines:
        answers = [cell.strip() for cell in cells]
        assert set(answers) <= {"yes", "no"}
        for name in re.findall(r"`(\S+?)`", names):
            table[name] = {column: answer == "yes" for column, answer in zip(columns, answers, strict=True)}
    return table


class Net(nn.Module):
    width: int
    size: int
    depth: int

    @nn.compact
    def __call__(self, x):
        for _ in range(self.depth):
            x = nn.relu(nn.Conv(self.width, (self.size, self.size))(x))
        return nn.Dense(2)(x.mean((1, 2)))


def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(8, 4, 4, 2)).astype(np.float32)


@cache
def network(column: str, seed: int) -> tuple[nn.Module, Any]:
    model, rng = Net(*RECIPIENTS[column]), np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images())
    return model, jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@cache
def donor() -> tuple[Any, agop_jax.Donor]:
    model, variables = network("same shapes", 0)
    features = agop_jax.extract(model, variables, images(), progress=False)
    return features, agop_jax.Donor(model, variables, images())


def works(method: str, column: str) -> bool:
    """Whether all layers are drawn, or one is refused."""
    (features, network_of_donor), (model, own) = donor(), network(column, 1)
    try:
        drawn = agop_jax.initialize(model, own, images(), features, method, key=0, donor=network_of_donor)
    except agop_jax.UserError as error:
        assert re.match(r"layer '\w+'", str(error)) or "copy_tiled" in str(error)
        return False
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(drawn))
    return True


QUICK = ("he_nfm", "copy", "copy_tiled", "copy_spaced", "spatial")  # which look at no examples


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in rows()]
)
def test_the_table_of_widths_is_what_happens(method):
    assert {column: works(method, column) for column in RECIPIENTS} == rows()[method]


def test_the_table_has_every_family():
    """Each method of a donor is in it, or differs from one that is in it by its covariance or scale alone."""
    assert set(QUICK) < set(rows()) <= set(agop_jax.INITIALIZERS)
    sources = lambda names: {(type(m.source), m.coupled, m.first) for m in map(agop_jax.initializers.get_method, names)}
    drawn = {name for name in agop_jax.INITIALIZERS if name != "convrfm"}  # drawn for the very network
    assert sources(rows()) >= sources(drawn)
