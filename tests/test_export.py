"""The command that writes what an experiment made: donors, recipients before and after training, features, matrices."""

import csv
import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from test_stages import contents, make_config

import agop_jax
from agop_jax import export
from agop_jax.experiments import experiment, recipients, sweep
from agop_jax.experiments.settings import Config


def config(**fields):
    own = make_config("donor,features,recipients", **fields)
    own.recipients.inits = ("kaiming_normal", "he_nfm", "lsuv")
    own.ansatz.draws, own.pictures.enabled = 0, False
    return own


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A work directory with kept recipients, and how each of them began."""
    directory, starts = tmp_path_factory.mktemp("run") / "run", {}
    with pytest.MonkeyPatch.context() as patch:
        before = sweep.before_training

        def recorded(comparison, cell, seed, variables, trainer):
            starts[cell.init, seed] = jax.device_get(variables)
            return before(comparison, cell, seed, variables, trainer)

        patch.setattr(sweep, "before_training", recorded)
        experiment.run(config(**{"recipients.keep": True}), directory)
    return directory, starts


def written(kind, directory, target, *options):
    """The command; the work directory must stay as it is."""
    before = contents(directory)
    export.main([kind, str(directory), str(target), *options])
    assert contents(directory) == before
    return target


def same(variables, others):
    return jax.tree.all(jax.tree.map(np.array_equal, dict(variables), dict(others)))


def loaded(target):
    return agop_jax.load_pretrained("small_cnn", f"safetensors:{target}")


def test_a_donor(begun, tmp_path, capsys):
    target = written("donor", begun[0], tmp_path / "donor.safetensors")
    own = agop_jax.load_pretrained("small_cnn", f"orbax:{begun[0]}/donor")
    assert loaded(target).model == own.model
    assert (loaded(target).mean, loaded(target).std) == (own.mean, own.std)
    assert same(loaded(target).variables, own.variables)
    kernel = load_file(target)["features.3.weight"]
    np.testing.assert_array_equal(kernel, np.transpose(own.variables["params"]["Conv_1"]["kernel"], (3, 2, 0, 1)))
    card, donor = (tmp_path / "donor.md").read_text(), json.loads((begun[0] / "donor.json").read_text())
    assert f"- test_accuracy: {donor['test_accuracy']}" in card
    assert "- data: digits" in card
    assert "- classes, in the order of the outputs: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in card
    assert capsys.readouterr().out == f"{target}\n"


@pytest.mark.parametrize("init", ["he_nfm", "lsuv"])
def test_a_recipient_begins_as_that_of_the_experiment_did(init, begun, tmp_path):
    target = written("recipient", begun[0], tmp_path / "a.safetensors", f"--init={init}")
    assert same(loaded(target).variables, begun[1][init, 0])
    card = (tmp_path / "a.md").read_text()
    for words in ("- kind: recipient before training", f"- init: {init}", "- seed: 0", "- train_size: 1150"):
        assert words in card


def test_a_recipient_need_not_be_one_of_the_experiments(begun, tmp_path):
    options = ("--init=coupled_nfm", "--seed=7", "--width=2", "--train_size=100")
    target = written("recipient", begun[0], tmp_path / "a.safetensors", *options)
    assert loaded(target).variables["params"]["Conv_1"]["kernel"].shape == (3, 3, 8, 12)


def test_a_trained_recipient_is_kept_and_written(begun, tmp_path):
    """Its test accuracy, computed from the file, is that of its row."""
    target = written("recipient", begun[0], tmp_path / "a.safetensors", "--init=he_nfm", "--trained")
    with (begun[0] / "results.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["init"] == "he_nfm")
    network = loaded(target)
    assert not same(network.variables, begun[1]["he_nfm", 0])
    own = Config.of(config())
    dataset = experiment.load_data(own, "digits")
    pipeline = experiment.pipeline_for(own, dataset)
    assert (network.mean, network.std) == (pipeline.mean, pipeline.std)
    logits = network.model.apply(network.variables, pipeline(jnp.asarray(dataset.test.images)))
    hits = np.mean(np.argmax(logits, -1) == np.asarray(dataset.test.labels))
    np.testing.assert_allclose(hits, float(row["test_accuracy"]), atol=1e-6)
    assert f"- test_accuracy: {row['test_accuracy']}" in (tmp_path / "a.md").read_text()


def test_features_and_matrices(begun, tmp_path):
    target = written("features", begun[0], tmp_path / "a.safetensors")
    stored, own = agop_jax.load_features(target), agop_jax.load_features(begun[0] / "features")
    assert list(stored) == list(own)
    assert all(np.array_equal(stored[path].gradient_gram, own[path].gradient_gram) for path in own)
    about = agop_jax.load_metadata(target)
    assert (about["method"], about["num_images"], about["data"]) == ("gram", 16, "digits")
    folder = written("matrices", begun[0], tmp_path / "csv")
    wanted = np.asarray(own["Conv_0"].nfm.dense())  # one channel: PyTorch's order of patches is ours
    np.testing.assert_allclose(np.loadtxt(folder / "nfm" / "layer_0.csv", delimiter=","), wanted, atol=1e-6)


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        export.main([str(argument) for argument in arguments])
    said = capsys.readouterr().err
    assert caught.value.code == 2
    return said


def test_what_cannot_be_written_is_one_line(begun, tmp_path, capsys):
    run, target = begun[0], tmp_path / "a.safetensors"
    cases = {
        "holds no experiment": ("donor", tmp_path, target),
        "wanted a name that ends in .safetensors": ("donor", run, tmp_path / "a.pth"),
        "the experiment's donors have the seeds 0": ("donor", run, target, "--seed=3"),
        "unknown init 'he_nfn'": ("recipient", run, target, "--init=he_nfn"),
        "Kept: kaiming_normal, he_nfm, lsuv": ("recipient", run, target, "--init=nfm", "--trained"),
        "run it in the experiment": ("recipient", run, target, "--init=nfm@untrained"),
        "no donor has recipients with the seed 5000": ("recipient", run, target, "--init=nfm", "--seed=5000"),
    }
    for words, arguments in cases.items():
        said = refused(capsys, *arguments)
        assert words in said
        assert len(said.splitlines()) == 1
    assert "required: --init" in refused(capsys, "recipient", run, target)
    assert not list(tmp_path.iterdir())
    target.write_text("precious")
    assert "exists already" in refused(capsys, "recipient", run, target, "--init=nfm")
    assert target.read_text() == "precious"


def test_kept_files_survive_a_stop_between_file_and_row(begun, tmp_path, monkeypatch):
    """The row was not written: the recipient is trained again, and its file is the same."""
    directory = tmp_path / "run"
    shutil.copytree(begun[0], directory)
    rows = (directory / "results.csv").read_text().splitlines()
    (directory / "results.csv").write_text("\n".join(row for row in rows if not row.startswith("lsuv")) + "\n")
    name = next(path.name for path in (directory / "recipients").iterdir() if path.name.startswith("lsuv"))
    kept = {path.name: path.read_bytes() for path in (directory / "recipients").iterdir()}
    (directory / "recipients" / name).write_bytes(b"half")
    experiment.run(config(**{"recipients.keep": True}), directory)
    again = {path.name: path.read_bytes() for path in (directory / "recipients").iterdir()}
    assert again.keys() == kept.keys()
    assert all(again[file] == content for file, content in kept.items() if file != name)
    read = [load_file(folder / "recipients" / name) for folder in (begun[0], directory)]
    assert all(np.array_equal(read[0][tensor], read[1][tensor]) for tensor in read[0])


def test_nothing_is_kept_unless_asked_for(begun, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(begun[0], directory, ignore=shutil.ignore_patterns("recipients"))
    experiment.run(config(**{"recipients.seeds": 2}), directory)
    assert not (directory / recipients.RECIPIENTS).exists()
    experiment.run(config(**{"recipients.seeds": 3, "recipients.keep": True}), directory)
    assert len(list((directory / recipients.RECIPIENTS).iterdir())) == 3


def test_the_code_of_the_guide_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page, names = (Path(__file__).parent.parent / "docs" / "export.md").read_text(), {}
    for code in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(code, names)
    assert same(names["again"].variables, names["network"].variables)
    left = {"recipient.safetensors", "recipient.md", "features.safetensors", "dense"}
    assert {path.name for path in tmp_path.iterdir()} == left


def test_the_commands_of_the_guide_are_commands():
    page = (Path(__file__).parent.parent / "docs" / "export.md").read_text()
    commands = re.findall(r"python -m agop_jax\.export (.*)", page)
    assert [export._parser().parse_args(line.split()).kind for line in commands] == [
        *("donor", "recipient", "recipient", "features", "matrices")
    ]
