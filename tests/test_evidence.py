"""What the evidence page says, against the tables of the runs that it is made from."""

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from agop_jax.core.errors import UserError
from agop_jax.results.runs import read_runs
from agop_jax.results.tables import read_results
from benchmarks import evidence

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "docs" / "evidence"


def section(page: Path, name: str = "evidence") -> str:
    match = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", page.read_text(), re.DOTALL)
    assert match
    return match[1]


@pytest.fixture(scope="module")
def runs():
    return evidence.kept_runs(KEPT)


def test_pages_are_made_from_the_tables_that_are_kept(runs):
    assert section(ROOT / "docs" / "evidence.md") == evidence.page_section(runs)
    assert section(ROOT / "README.md") == evidence.readme_section(evidence.study(runs))
    (choice,) = (run for run in runs if run.name == evidence.CHOICE)
    assert section(ROOT / "docs" / "initialisations.md", "transfer") == evidence.choice_section(choice)


def test_numbers_of_the_page_are_means_of_results(runs):
    """By hand, from results.csv: accuracy of lsuv, and the mean of paired differences from it."""
    page = section(ROOT / "docs" / "evidence.md")
    lines = [line.split(" | ") for line in page.splitlines()]
    start = next(number for number, line in enumerate(lines) if line[0].startswith("| against"))
    header, differences = lines[start], lines[start : lines.index([""], start)]
    names = [name.strip("`| ") for name in header[1:]]
    for run in evidence.settings(runs):
        values = {}
        for row in read_results(KEPT / run.name / "results.csv"):
            values.setdefault(row["init"], {})[row["seed"]] = 100 * row["test_accuracy"]
        lsuv = values["lsuv"]
        (line,) = (line for line in lines if line[0] == f"| `{run.name}`")
        assert line[-1].startswith(f"{sum(lsuv.values()) / len(lsuv):.1f} ±")
        for init in set(values) - {"lsuv"}:
            (line,) = (line for line in differences if line[0] == f"| `{init}`")
            difference = sum(values[init][seed] - lsuv[seed] for seed in lsuv) / len(lsuv)
            number = line[1 + names.index(run.name)].split(" ±")[0].replace("\N{MINUS SIGN}", "-")
            assert float(number) == pytest.approx(difference, abs=0.0501)


def test_a_question_of_its_own_is_answered_against_its_own_init(tmp_path):
    """By hand, on the results of another run under its name."""
    run = tmp_path / "selected_parts"
    shutil.copytree(KEPT / evidence.FIRST, run)
    lines = [line.split(" | ") for line in evidence.question_table(*read_runs([run])).splitlines()]
    assert lines[0][-1] == "against `selected`, points |"
    values = {}
    for row in read_results(run / "results.csv"):
        values.setdefault(row["init"], {})[row["seed"]] = 100 * row["test_accuracy"]
    (line,) = (line for line in lines if line[0] == "| `copy`")
    difference = sum(values["copy"][seed] - values["selected"][seed] for seed in values["copy"]) / len(values["copy"])
    assert float(line[-1].split(" ±")[0]) == pytest.approx(difference, abs=0.0501)
    (own,) = (line for line in lines if line[0] == "| `selected`")
    assert own[-1] == " |"


def test_what_the_transfer_config_tells_is_what_its_run_gave():
    """By hand, from results.csv: accuracies, and the parts of copy's gain over lsuv."""
    values = {}
    for row in read_results(KEPT / evidence.CHOICE / "results.csv"):
        values.setdefault(row["init"], []).append(100 * row["test_accuracy"])
    means = {init: np.mean(accuracies) for init, accuracies in values.items()}
    told = (ROOT / "configs" / "cifar_transfer.py").read_text()
    lines = dict(re.findall(r"^ {14}(\S+) +([\d.]+) \+- ", told, re.MULTILINE))
    assert {init: float(number) for init, number in lines.items()} == pytest.approx(means, abs=0.0501)
    parts = dict(re.findall(r"(\w+) (?:has )?(\d+) %", re.search("Of what copy gains.*", told)[0]))
    assert set(parts) == {"selected", "whitened", "rainbow", "coupled_nfm"}
    for init, part in parts.items():
        gain = (means[init] - means["lsuv"]) / (means["copy"] - means["lsuv"])
        assert float(part) == pytest.approx(100 * gain, abs=0.501)


def test_no_rate_of_the_transfer_run_is_an_end_of_what_was_tried():
    """The seeds of the second donor's recipients begin at 2000."""
    tried = {}
    with (KEPT / evidence.CHOICE / "learning_rates.csv").open() as file:
        for row in csv.DictReader(file):
            tried.setdefault((row["init"], int(row["seed"]) >= 2000), []).append(float(row["learning_rate"]))
    for row in read_results(KEPT / evidence.CHOICE / "results.csv"):
        rates = tried[row["init"], row["seed"] >= 2000]
        assert min(rates) < row["learning_rate"] < max(rates)


@pytest.mark.parametrize(
    ("init", "words"),
    [
        ("kaiming_normal", "nothing"),
        ("nfm", "donor"),
        ("selected", "donor, images"),
        ("whitened", "images"),
        ("convrfm@lsuv", "images, labels"),
        ("matched_spectrum:coupled_nfm", "donor, images"),
    ],
)
def test_what_a_method_needs(init, words):
    assert evidence.needs(init) == words


def test_fits_that_the_page_tells_are_those_of_the_run():
    """Medians of explained variance over all layers and seeds."""
    fits = {}
    with (KEPT / "rainbow_mixing" / "fits.csv").open() as file:
        for row in csv.DictReader(file):
            fits.setdefault(row["init"], []).append(float(row["explained_variance"]))
    shared, independent = (np.median(fits[f"coupled_nfm@{how}@standardised"]) for how in ("shared", "independent"))
    page = (ROOT / "docs" / "evidence.md").read_text()
    assert f"{shared:.2f} with shared and {independent:.2f} with\nindependent mixing by ridge, below 0 by" in page
    assert max(np.median(fits[f"rainbow@{how}"]) for how in ("shared", "independent")) < 0


def test_what_the_page_tells_of_mnist():
    accuracies, rates = {}, {}
    for row in read_results(KEPT / "mnist" / "results.csv"):
        accuracies.setdefault(row["init"], []).append(100 * row["test_accuracy"])
    medians = {init: np.median(values) for init, values in accuracies.items()}
    assert max(medians, key=lambda init: medians[init]) == "selected"
    page = (ROOT / "docs" / "evidence.md").read_text()
    median, mean = medians["selected"], np.mean(accuracies["selected"])
    assert f"highest median of all inits, {median:.1f} %, and a mean of {mean:.0f} %" in page
    assert sum(value < 20 for value in accuracies["selected"]) == 3
    with (KEPT / "mnist" / "learning_rates.csv").open() as file:
        for row in csv.DictReader(file):
            if (row["init"], row["seed"]) == ("selected", "0"):
                rates[row["learning_rate"]] = float(row["validation_accuracy"])
    assert max(rates.values()) == rates["0.1"]
    assert min(rates[rate] for rate in ("0.02", "0.05")) > rates["0.1"] - 0.01


def test_every_setting_is_paired_and_complete(runs):
    for run in runs:
        seeds = {}
        for row in run.work.results:
            seeds.setdefault(row["init"], set()).add((row["donor"], row["seed"]))
        assert len({frozenset(own) for own in seeds.values()}) == 1
        assert all(len(own) >= 5 for own in seeds.values())


def test_what_is_kept_of_a_run(tmp_path):
    run = tmp_path / "runs" / "one"
    shutil.copytree(KEPT / evidence.FIRST, run)
    (run / "features").mkdir()
    (run / "features" / "large").touch()
    with pytest.raises(UserError, match="no finished work directory"):
        evidence.keep(run.parent, tmp_path / "kept")
    (run / "report.html").touch()
    evidence.keep(run.parent, tmp_path / "kept")
    files = {str(path.relative_to(run)) for path in run.rglob("*.*")} - {"report.html"}
    assert {str(path.relative_to(tmp_path / "kept" / "one")) for path in (tmp_path / "kept").rglob("*.*")} == files


def test_configs_say_which_of_them_have_run():
    for path in sorted((ROOT / "configs" / "study").glob("*.py")):
        if "get_config" in (text := path.read_text()):
            assert "Cost:     " in text
            result = re.search("Result:   (.*)", text)
            assert result
            assert result[1] == ("docs/evidence.md" if (KEPT / path.stem).exists() else "none yet")
