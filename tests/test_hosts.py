"""Two processes on one machine, joined by gloo: the program of one, and what happens when one dies."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from forked import Program, communicate_all

from agop_jax.core.files import read_json
from agop_jax.features.store import load_features
from agop_jax.results.tables import read_results

MINUTE = 60  # in which the survivor has to end, by the promise of `hosts`
OPTIONS = (
    "--config=configs/digits.py:quick",
    "--config.save_every=0.2",
    "--config.donor.train.steps=300",
    "--config.recipients.inits=('nfm',)",
    "--config.recipients.seeds=1",
    "--config.ansatz.draws=0",
    "--config.stages=donor,features,recipients",
    "--config.pictures.layers=Conv_0",
)


def start(workdir: pathlib.Path, *options: str) -> Program:
    return Program(*OPTIONS, f"--workdir={workdir}", *options)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_pair(workdir: pathlib.Path) -> list[Program]:
    joined = (f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2")
    return [start(workdir, *joined, f"--process_id={i}") for i in range(2)]


def run_pair(command: list[str], *arguments: str | pathlib.Path) -> list[tuple[int, str, str]]:
    """Exit status, output and errors of two processes, each of which is told its number after the command."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    pair = [subprocess.Popen([*command, str(i), *arguments], **options) for i in range(2)]
    try:
        texts = [process.communicate(timeout=2 * MINUTE) for process in pair]
        return [(process.returncode, *text) for process, text in zip(pair, texts, strict=True)]
    finally:
        for process in pair:
            process.kill()


def wait_for_checkpoint(directory: pathlib.Path, process: Program) -> None:
    """A whole one: Orbax gives it its number last."""
    start = time.monotonic()
    while not any(path.name.isdigit() for path in directory.glob("*")):
        if process.poll() is not None or time.monotonic() - start > 2 * MINUTE:
            raise AssertionError(process.communicate(timeout=0)[1])
        time.sleep(0.02)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Workdirs of one process and of a pair, of which the second was killed and which was started again."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    first, second = start_pair(two)
    wait_for_checkpoint(two / "checkpoints" / "donor", second)
    second.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    _, errors = first.communicate(timeout=MINUTE)
    assert time.monotonic() - killed < MINUTE
    second.communicate()
    left = [int(path.name) for path in (two / "checkpoints" / "donor").glob("*") if path.name.isdigit()]
    again = start_pair(two)
    said = communicate_all(again, timeout=4 * MINUTE)
    assert [process.returncode for process in again] == [0, 0], said
    alone = start(one)
    _, error = alone.communicate(timeout=5 * MINUTE)
    assert alone.returncode == 0, error
    return one, two, (first.returncode, errors), left, said


@pytest.mark.slow
def test_the_other_process_ends_with_a_line(runs):
    status, errors = runs[2]
    assert status == 1
    last = errors.strip().splitlines()[-1]
    assert last.startswith("agop_jax: process 0 of 2 failed: another has ended")
    assert last.endswith("the same commands continue from the last checkpoint")


@pytest.mark.slow
def test_the_pair_continues_from_the_last_checkpoint(runs):
    """The process that speaks says after which step."""
    *_, left, said = runs
    assert 0 < max(left) < 300
    assert f"donor: goes on after step {max(left)}" in said[0][1]


@pytest.mark.slow
def test_features_and_results_are_those_of_one_process(runs):
    one, two = runs[:2]
    alone, together = load_features(one / "features"), load_features(two / "features")
    for path, layer in together.items():
        assert layer.count == alone[path].count
        found, wanted = np.asarray(layer.agop.dense()), np.asarray(alone[path].agop.dense())
        # the donors' weights differ by the rounding of 300 steps
        np.testing.assert_allclose(found, wanted, atol=1e-3 * np.abs(wanted).max())
    assert read_json(two / "donor.json")["test_loss"] == pytest.approx(read_json(one / "donor.json")["test_loss"], 1e-3)
    (row,), (other,) = read_results(one / "results.csv"), read_results(two / "results.csv")
    assert row["test_loss"] == pytest.approx(other["test_loss"], 1e-2)


@pytest.mark.slow
def test_one_process_writes(runs):
    """The same files as one process leaves, and the table on one standard output."""
    one, two, _, _, said = runs
    names = lambda path: {file.relative_to(path) for file in path.rglob("*.csv")}
    assert names(one) == names(two)
    assert ["Done in" in output for output, _ in said] == [True, False]


EXTRACT = """
import sys
from agop_jax import extract
from agop_jax.core import devices, hosts
process = int(sys.argv[2])
hosts.initialize(sys.argv[1], 2, process)
import flax.linen as nn, jax, numpy as np
network = nn.Sequential([nn.Conv(3, (2, 2)), lambda x: x.mean((1, 2)), nn.Dense(5)])
images = np.random.default_rng(0).normal(size=(8, 3, 3, 4)).astype(np.float32)
variables = network.init(jax.random.key(0), images)
mine = images[:5] if process == 0 else images[5:]  # 5 and 3, in batches of 2: three and two
found = {method: extract(network, variables, mine, method=method, batch_size=2) for method in ("gram", "probe")}
with devices.only(jax.local_devices()):
    alone = extract(network, variables, images, progress=False)
for method, features in found.items():
    for path, layer in features.items():
        assert layer.count == 8, layer.count
        error = np.linalg.norm(layer.agop.dense() - alone[path].agop.dense())
        size = np.linalg.norm(alone[path].agop.dense())
        limit = 1e-5 * size if method == "gram" else 4 * float(layer.standard_error) + 1e-5 * size
        assert error <= limit, (method, path, error, limit)
hosts.wait("end")
"""


@pytest.mark.slow
def test_features_of_two_processes_with_images_of_their_own():
    """Unequal numbers, and batches: `gram` is exact, `probe` within four of its standard errors."""
    command = [sys.executable, "-c", EXTRACT, f"127.0.0.1:{free_port()}"]
    for status, _, errors in run_pair(command):
        assert status == 0, errors[-2000:]


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_after_a_checkpoint(tmp_path):
    pair = start_pair(tmp_path)
    wait_for_checkpoint(tmp_path / "checkpoints" / "donor", pair[1])
    pair[1].send_signal(signal.SIGTERM)
    (_, first), (_, second) = communicate_all(pair, timeout=MINUTE)
    assert pair[0].returncode == 128 + signal.SIGTERM, first
    assert first.splitlines()[-1] == "agop_jax: stopped by SIGTERM: the same command continues from here"
    # JAX aborts the second where the first has left before it
    assert pair[1].returncode in (128 + signal.SIGTERM, -signal.SIGABRT), second
    assert not list(tmp_path.rglob("*tmp*"))


CHECKPOINT = """
import contextlib, os, sys, time
from pathlib import Path
from agop_jax.core import arrays, devices, hosts
from agop_jax.training import resumable
from agop_jax.training.loop import Run
process, folder = int(sys.argv[2]), Path(sys.argv[3])
hosts.initialize(sys.argv[1], 2, process)
import jax, jax.numpy as jnp
state = devices.replicate({"a": jnp.arange(3.0), "b": {"c": jnp.ones((300, 300))}}, devices.mesh())
for name in ("donor", "features"):
    arrays.save_arrays(folder / name, state, {})  # by the first process alone
make = os.mkdir

def slow(path, *arguments, **options):
    time.sleep(1 if "orbax" in str(path) else 0)
    make(path, *arguments, **options)

if process == 0:
    os.mkdir = slow  # the other is far ahead
with contextlib.ExitStack() as stack:
    checkpoints = resumable._Checkpoints(folder / "checkpoints", stack)
    for step in (10, 20):
        checkpoints.save(Run(state), step, wait=True)
hosts.wait("saved")
with contextlib.ExitStack() as stack:
    run = Run(jax.tree.map(jnp.zeros_like, state))
    resumable._Checkpoints(folder / "checkpoints", stack).restore(run)
assert run.state["a"].tolist() == [0, 1, 2]
hosts.wait("end")
"""


@pytest.mark.slow
def test_checkpoints_of_all_after_arrays_of_the_first(tmp_path):
    """Nobody writes into a checkpoint's directory before the first process has made it."""
    command = [sys.executable, "-c", CHECKPOINT, f"127.0.0.1:{free_port()}"]
    for status, _, errors in run_pair(command, tmp_path):
        assert status == 0, errors[-2000:]


APART = """
import json, os, signal, sys, time
from pathlib import Path
from agop_jax.core import hosts
from agop_jax.core.errors import UserError
from agop_jax.experiments import workdir
process = int(sys.argv[2])
hosts.initialize(sys.argv[1], 2, process)
said = []

def tell(work):
    try:
        work()
    except UserError as error:
        said.append(str(error))

def enter(path):
    with workdir.locked(path):
        pass

def broken():
    raise UserError("broken")

tell(lambda: hosts.require_same("configs", "{}", "give all the same"))
tell(lambda: hosts.require_same("configs", str(process), "give all the same"))
tell(lambda: enter(Path(sys.argv[3]) / "one"))
tell(lambda: enter(Path(sys.argv[3]) / str(process)))
tell(lambda: hosts.by_first(broken))
print(json.dumps(said), flush=True)
hosts.wait("end")
if process == 0:
    time.sleep(0.5)  # the other is out of the barrier
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""


@pytest.mark.slow
def test_processes_that_are_not_of_one_program_and_the_death_of_the_first(tmp_path):
    """Other configs, other directories and what the first alone finds are told by all; its death by its survivors."""
    command = [sys.executable, "-c", APART, f"127.0.0.1:{free_port()}"]
    (_, first, _), (status, second, errors) = run_pair(command, tmp_path)
    wanted = [
        "the 2 processes have different configs: give all the same",
        f"the 2 processes have different directories at '{tmp_path / '0'}': choose a workdir on a file system that "
        "all of them share",
        "broken",
    ]
    assert json.loads(first.splitlines()[-1]) == wanted  # below what gloo prints
    wanted[1:] = [wanted[1].replace("/0'", "/1'"), "the first process found something wrong, see what it says"]
    assert json.loads(second.splitlines()[-1]) == wanted
    assert status != 0
    assert "leader" in errors or "coordination service" in errors.lower()  # JAX's own words, as it aborts
    assert "Current thread" not in errors


@pytest.mark.slow
def test_options_of_several_processes_come_together(tmp_path):
    process = start(tmp_path, "--num_processes=2", "--process_id=0")
    _, errors = process.communicate(timeout=MINUTE)
    assert process.returncode == 2
    wanted = "--coordinator, --num_processes and --process_id together, got --num_processes and --process_id"
    assert errors.splitlines()[-1] == f"agop_jax: wanted {wanted}"


@pytest.mark.slow
def test_a_process_of_no_cluster_is_told_what_to_do(tmp_path):
    process = start(tmp_path, "--distributed")
    _, errors = process.communicate(timeout=MINUTE)
    assert process.returncode == 2
    (line,) = [line for line in errors.splitlines() if line.startswith("agop_jax:")]
    assert "the processes could not be joined" in line
    assert "--coordinator=HOST:PORT --num_processes=N --process_id=0 to N-1" in line
    assert not os.listdir(tmp_path)
