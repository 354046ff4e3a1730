"""The report on a synthetic work directory whose numbers are known."""

import csv
import html.parser
import json
import math
import xml.etree.ElementTree as ElementTree

import matplotlib.image
import numpy as np
import pytest

from agop_jax import figures, results, summary
from agop_jax.errors import UserError
from agop_jax.report import write_report

CHANCE = 0.1
# init -> mean accuracy it trains to
ACCURACY = {
    "kaiming_normal": 0.44,
    "copy": 0.62,
    "coupled_nfm": 0.514,
    "coupled_sqrt_agop": 0.513,
    "he_nfm": 0.43,
    "he_agop": 0.352,
    "he_sqrt_agop": 0.41,
    "nfm": 0.394,
    "agop": 0.40,
    "matched_isotropic": 0.451,
    "matched_spectrum": 0.446,
    "matched_isotropic:coupled_sqrt_agop": 0.452,
    "matched_spectrum:coupled_sqrt_agop": 0.449,
    "kaiming_uniform": 0.437,
    "xavier_normal": 0.442,
    "default": 0.41,
    "orthogonal": 0.46,
    "delta_orthogonal": 0.453,
    "lsuv": 0.4515,
    "zeros": CHANCE,
}
DIVERGING = "kaiming_nfm"
DESCRIPTIONS = {name: f"what {name} is" for name in ACCURACY} | {"nfm": "<script>alert('&')</script>"}


def accuracy(init, seed, train_size=2000, width=1.0):
    """Seeds differ by 1 point for all inits alike, and by up to 0.3 points of their own."""
    own = 0.003 * math.sin(7 * seed + len(init))
    more = 0.03 * math.log2(train_size / 2000) + 0.02 * math.log2(width)
    return ACCURACY[init] + (0 if init == "zeros" else 0.01 * (seed - 1) + own + more)


def recipient(init, seed, train_size=2000, width=1.0):
    diverged = init == DIVERGING
    reached = CHANCE if diverged else accuracy(init, seed, train_size, width)
    row = dict.fromkeys(results.RESULT_COLUMNS, reached)
    losses = {name: math.nan if diverged else 1.5 for name in ("test_loss", "validation_loss", "train_loss")}
    counts = {"steps": 250, "seconds": 3.2, "images_per_second": 5000.0, "diverged": int(diverged)}
    place = {"init": init, "seed": seed, "train_size": train_size, "width": width, "learning_rate": 0.1}
    return row | losses | counts | place


def curve(row):
    """Accuracy rises from chance to what the recipient reaches; a diverged one loses its losses."""
    lines = []
    for step in range(0, 251, 25):
        reached = CHANCE + (row["validation_accuracy"] - CHANCE) * (1 - math.exp(-step / 60)) / (
            1 - math.exp(-250 / 60)
        )
        loss = None if row["diverged"] and step else 2.3 - 1.5 * (reached - CHANCE)
        gap = 0.002 * step * row["validation_accuracy"]
        lines.append(
            {
                "step": step,
                "train_loss": None if loss is None else loss - gap,
                "train_accuracy": min(1.0, reached + gap / 4),
                "validation_loss": loss,
                "validation_accuracy": reached,
            }
        )
    return "\n".join(json.dumps(line) for line in lines) + "\n"


def write_minimal(path, rows):
    results.write_rows(path / "results.csv", rows)
    question = "Does <b>any</b> start from a donor's feature matrices help?"
    config = {"question": question, "seed": 0, "model": {"name": "small_cnn", "features": [32, 64, 128, 128]}}
    environment = {"agop_jax": "0.1.0", "jax": "0.10.2", "device": "2 x <cpu>", "date": "2025-01-01 12:00:00 +0000"}
    results.atomic_write_text(path / "config.json", json.dumps(config))
    results.atomic_write_text(path / "environment.json", json.dumps(environment))


def write_optional(path, rows):
    rng = np.random.default_rng(0)
    for row in rows:
        name = results.recipient_name(row["init"], row["train_size"], row["width"], row["seed"])
        results.atomic_write_text(path / "metrics" / f"{name}.jsonl", curve(row))
        if row["seed"] == 0:
            (path / "filters").mkdir(exist_ok=True)
            initial = rng.normal(size=(3, 3, 3, 16))
            trained = initial * (math.nan if row["diverged"] else 1.1) + 0.2
            np.savez(path / "filters" / f"{name}.npz", initial=initial, trained=trained)
    results.atomic_write_text(path / "metrics" / "donor.jsonl", curve(recipient("copy", 0)))
    results.atomic_write_text(path / "donor.json", json.dumps({"test_accuracy": 0.712, "validation_accuracy": 0.7}))
    key = {"train_size": 2000, "width": 1.0, "seed": 0}
    rates = [
        {
            "init": init,
            "learning_rate": rate,
            "validation_accuracy": 0.3 + rate,
            "validation_loss": 1.5,
            "chosen": chosen,
        }
        for init, best in (("copy", 0.1), ("he_nfm", 0.3))
        for rate, chosen in ((rate, int(rate == best)) for rate in (0.03, 0.1, 0.3))
    ]
    results.write_rows(path / "learning_rates.csv", [key | row for row in rates])
    fits = [("Conv_1", 0.8), ("Conv_2", 0.57), ("Conv_3", 0.47)]
    fit_rows = [{"init": "coupled_nfm", **key, "layer": layer, "explained_variance": r2} for layer, r2 in fits]
    results.write_rows(path / "fits.csv", fit_rows)
    spectra = [
        {"layer": f"Conv_{layer}", "matrix": matrix, "index": i, "eigenvalue": math.exp(-i * rate)}
        for layer in range(4)
        for matrix, rate in (("nfm", 0.1), ("agop", 0.4))
        for i in range(32)
    ]
    results.write_rows(path / "spectra.csv", spectra)


def grid(inits, seeds=3, sizes=(2000,), widths=(1.0,)):
    return [recipient(i, s, n, w) for n in sizes for w in widths for i in inits for s in range(seeds)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """20 inits and one that diverges, 3 seeds, everything there: (directory, table)."""
    path = tmp_path_factory.mktemp("work")
    rows = grid([*ACCURACY, DIVERGING])
    write_minimal(path, rows)
    write_optional(path, rows)
    return path, write_report(path, DESCRIPTIONS)


@pytest.fixture(scope="module")
def page(finished):
    return (finished[0] / "report.html").read_text(encoding="utf-8")
