"""Data sets that stay on disk: the same images in the same order as in memory, and never more of them than allowed."""

import dataclasses
import io
import json
import math
import os
import signal
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from agop_jax.core.errors import UserError
from agop_jax.data import Pipeline, Split, StoredSplit, batch_indices, folder, load, sources, stored, stored_batches
from agop_jax.experiments.donors import network_batches
from agop_jax.experiments.experiment import describe
from agop_jax.training import Run, Settings, Trainer, train
from agop_jax.training.device_data import DeviceData
from agop_jax.training.resumable import Stopped, stoppable, train_resumable

pytest.importorskip("grain", reason="needs the extra 'stream'")
SHAPE = (6, 8, 3)
STREAMED = 2.0**-30  # GiB: one byte, which no data set fits into


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def pictures() -> dict[str, list[bytes]]:
    random = np.random.default_rng(0)
    return {name: [png(random.integers(0, 256, SHAPE, np.uint8)) for _ in range(20)] for name in ("ant", "cat", "dog")}


@pytest.fixture
def in_folder(pictures, tmp_path):
    for name, files in pictures.items():
        (tmp_path / name).mkdir()
        for number, data in enumerate(files):
            (tmp_path / name / f"{number:02}.png").write_bytes(data)
    return f"folder:{tmp_path}"


@pytest.fixture(scope="module")
def tfds_directory(pictures, tmp_path_factory):
    """The same pictures as TFDS stores them, in three splits."""
    tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra 'tfds'")
    features = {"image": tfds.features.Image(shape=SHAPE), "label": tfds.features.ClassLabel(num_classes=3)}
    cuts = {"train": (0, 12), "validation": (12, 16), "test": (16, 20)}

    class Animals(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {name: self._generate_examples(*cut) for name, cut in cuts.items()}

        def _generate_examples(self, start, stop):
            for label, files in enumerate(pictures.values()):
                for number in range(start, stop):
                    yield f"{label} {number}", {"image": io.BytesIO(files[number]), "label": label}

    directory = tmp_path_factory.mktemp("tfds")
    Animals(data_dir=directory, file_format="array_record").download_and_prepare()
    return directory


@pytest.fixture(params=["folder", "tfds"])
def name(request, monkeypatch):
    if request.param == "folder":
        return request.getfixturevalue("in_folder")
    monkeypatch.setenv("TFDS_DATA_DIR", str(request.getfixturevalue("tfds_directory")))
    return "tfds:animals"


def parts(dataset):
    return dataset.train, dataset.validation, dataset.test


def assert_same(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)


def test_a_streamed_data_set_is_the_one_in_memory(name, pictures):
    streamed, held = load(name, memory=STREAMED, seed=3), load(name, memory=1.0, seed=3)
    assert all(isinstance(part, StoredSplit) for part in parts(streamed))
    assert all(isinstance(part, Split) for part in parts(held))
    assert_same([part.load() for part in parts(streamed)], parts(held))
    assert streamed.train.shape == held.train.shape == SHAPE
    np.testing.assert_array_equal([streamed.mean, streamed.std], [held.mean, held.std])
    found = {(image.tobytes(), int(label)) for part in parts(held) for image, label in zip(*part, strict=True)}
    read = lambda data: np.asarray(Image.open(io.BytesIO(data))).tobytes()
    assert found == {(read(data), label) for label, files in enumerate(pictures.values()) for data in files}


def test_what_fits_is_held_and_a_byte_more_is_streamed(in_folder):
    size = 60 * math.prod(SHAPE)
    assert isinstance(load(in_folder, memory=size / 2**30).train, Split)
    assert isinstance(load(in_folder, memory=(size - 1) / 2**30).train, StoredSplit)
    assert isinstance(load(in_folder).train, Split)  # half of any machine's memory


def test_nothing_is_decoded_before_it_is_loaded(in_folder, monkeypatch):
    decoded, decode = [], folder.decode
    monkeypatch.setattr(folder, "decode", lambda path, *others: (decoded.append(path), decode(path, *others))[1])
    dataset = load(in_folder, memory=STREAMED)
    decoded.clear()  # the training images' mean and deviation
    chosen = dataset.train.take(np.arange(30)).take(np.array([4, 2, 2]))
    assert not decoded
    whole = dataset.train.load()
    decoded.clear()
    assert_same([chosen.load()], [whole.take(np.array([4, 2, 2]))])
    assert len(decoded) == 3


def test_mean_and_deviation_of_a_sample(name, monkeypatch):
    """Exact of a small set; of a larger one that of the first training images, which hold all classes."""
    held = load(name, memory=1.0)
    monkeypatch.setattr(sources, "SAMPLE", 9)
    monkeypatch.setattr(sources, "AT_ONCE", 400)  # bytes: two images
    dataset = load(name, memory=STREAMED)
    pixels = held.train.images[:9].astype(np.float64) / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(dataset.std, pixels.std((0, 1, 2)), atol=1e-6)
    assert np.abs(np.bincount(dataset.train.labels[:9]) - 3).max() <= 1
    told = describe(dataset)
    assert (told["measured"], told["streamed"], told["shape"]) == (9, True, list(SHAPE))
    assert (describe(held)["measured"], describe(held)["streamed"]) == (len(held.train.labels), False)


INDICES = np.arange(3, 28)  # 25 images, in batches of 6: four batches an epoch, and one image that is left out


def test_batches_are_those_of_a_run_in_memory(name):
    """Over three epochs and a half."""
    held, streamed = (load(name, memory=memory).train for memory in (1.0, STREAMED))
    found = list(stored_batches(streamed, INDICES, 6, 5, steps=14))
    assert_same(found, [held.take(batch_indices(INDICES, 6, step, 5)) for step in range(14)])
    assert found[0].images.dtype == np.uint8
    assert not np.array_equal(found[0].images, found[4].images)  # another epoch


@pytest.mark.parametrize("done", [0, 1, 6, 11])
def test_a_resumed_stream_yields_exactly_the_rest(done, in_folder):
    """In the middle of an epoch, from the state in JSON, from the number of steps, and on the way."""
    split = load(in_folder, memory=STREAMED).train
    start = lambda **options: stored_batches(split, INDICES, 6, 5, steps=11, **options)
    whole, stopped = list(start()), start()
    assert_same([next(stopped) for _ in range(done)], whole[:done])
    state = json.loads(json.dumps(stopped.get_state()))
    resumed = start()
    resumed.set_state(state)
    assert_same(list(resumed), whole[done:])
    assert_same(list(start(start=done)), whole[done:])
    list(stopped)
    stopped.set_state(state)
    assert_same(list(stopped), whole[done:])
    with pytest.raises(StopIteration):
        next(resumed)


def test_the_shares_of_processes_make_up_the_batch(in_folder):
    split = load(in_folder, memory=STREAMED).train
    shares = [stored_batches(split, INDICES, 6, 5, steps=6, part=part, parts=3) for part in range(3)]
    whole = stored_batches(split, INDICES, 6, 5, steps=6)
    joined = [Split(*map(np.concatenate, zip(*pieces, strict=True))) for pieces in zip(*shares, strict=True)]
    assert_same(joined, list(whole))


def test_few_batches_are_read_ahead(in_folder):
    """And in the end every picture of the epoch once."""
    read = []
    split = load(in_folder, memory=STREAMED).train
    counted = dataclasses.replace(split, read=lambda row: (read.append(row), split.read(row))[1])
    batches = stored_batches(counted, INDICES, 6, 5, steps=4)
    next(batches)
    assert len(read) <= 6 * (1 + stored.READ_AHEAD)
    assert len(list(batches)) == 3
    assert len(read) == len({*read}) == 24


class Small(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.Conv(3, (3, 3))(x)).mean((1, 2))
        return nn.Dense(3)(nn.Dropout(0.2, deterministic=not train)(x))


def start(dataset):
    """A trainer of a batch that is augmented, the run's start, and the data where it trains."""
    trainer = Trainer(Small(), Pipeline.of(dataset, pad=1, flip=True), Settings(steps=11, batch_size=6))
    state = trainer.start(jax.jit(Small().init)(jax.random.key(0), jnp.zeros((1, *dataset.train.shape))))
    return trainer, state, DeviceData.of(dataset, trainer.mesh)


def test_a_streamed_run_is_that_in_memory(name):
    ends = []
    for memory in (0.0, STREAMED):
        trainer, state, data = start(load(name, memory=memory))
        run = train(trainer, Run(state), data, INDICES, 0.1, 5)
        ends.append((run.history, trainer.evaluate(run.state.variables, data.test)))
    assert isinstance(data.train, StoredSplit)
    assert ends[0] == ends[1]


def test_a_streamed_run_that_was_stopped_goes_on_with_what_it_had_not_seen(in_folder, tmp_path_factory, monkeypatch):
    """In the middle of the first epoch: the batches it asks for, and its end, are those of a whole run."""
    asked, take, directory = [], StoredSplit.take, tmp_path_factory.mktemp("stopped") / "run"
    monkeypatch.setattr(StoredSplit, "take", lambda split, rows: asked.append(tuple(rows)) or take(split, rows))
    trainer, state, data = start(load(in_folder, memory=STREAMED))

    def stop(_, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with stoppable(), pytest.raises(Stopped):
        train_resumable(trainer, state, data, INDICES, 0.1, 5, directory, stop, save_every=1e9)
    asked.clear()
    state = start(load(in_folder, memory=STREAMED))[1]
    run = train_resumable(trainer, state, data, INDICES, 0.1, 5, directory, lambda run, step: None)
    batches = {tuple(batch_indices(INDICES, 6, step, 5)) for step in range(2, 11)}
    assert {rows for rows in asked if len(rows) == 6} >= batches
    assert not {tuple(batch_indices(INDICES, 6, step, 5)) for step in range(2)} & set(asked)
    whole = train(trainer, Run(start(load(in_folder, memory=STREAMED))[1]), data, INDICES, 0.1, 5)
    assert run.history == whole.history


KILLED = """
import json, os, signal, sys
from pathlib import Path
from agop_jax.data import StoredSplit, load
from agop_jax.training.resumable import train_resumable
from test_stored import INDICES, STREAMED, start

asked, take = [], StoredSplit.take
StoredSplit.take = lambda split, rows: (asked.append(rows.tolist()), take(split, rows))[1]
trainer, state, data = start(load(sys.argv[1], memory=STREAMED))
asked.clear()

def on_step(run, step):
    if step == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

run = train_resumable(trainer, state, data, INDICES, 0.1, 5, Path(sys.argv[2]), on_step, save_every=0.0)
print(json.dumps([asked, run.history]))
"""


@pytest.mark.slow
def test_a_streamed_run_that_was_killed_goes_on_with_what_it_had_not_seen(in_folder, tmp_path_factory):
    """Kill -9 in the middle of the second epoch, while the state of the step before is being written."""
    directory = tmp_path_factory.mktemp("killed") / "run"
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}

    def run(kill_at: int) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", KILLED, in_folder, str(directory), str(kill_at)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert run(kill_at=7).returncode == -signal.SIGKILL
    done = max(int(path.name) for path in directory.iterdir() if path.name.isdigit())
    assert 4 < done < 7  # an epoch has 4 batches
    again = run(kill_at=0)
    assert again.returncode == 0, again.stderr[-2000:]
    asked, history = json.loads(again.stdout)
    batches = [batch_indices(INDICES, 6, step, 5).tolist() for step in range(11)]
    assert sorted(rows for rows in asked if len(rows) == 6) == sorted(batches[done:])
    trainer, state, data = start(load(in_folder, memory=STREAMED))
    assert history == train(trainer, Run(state), data, INDICES, 0.1, 5).history


def test_images_of_features_and_pictures(in_folder):
    streamed, held = load(in_folder, memory=STREAMED), load(in_folder, memory=1.0)
    pipeline = Pipeline.of(held)
    found = list(network_batches(pipeline, streamed.train, 15))
    for (images, labels), (wanted, others) in zip(found, network_batches(pipeline, held.train, 15), strict=True):
        np.testing.assert_array_equal(images, wanted)
        np.testing.assert_array_equal(labels, others)


def test_a_picture_that_is_damaged_meanwhile(in_folder, tmp_path):
    """It is named where its batch is asked for, not in a thread; those before it are whole."""
    split = load(in_folder, memory=STREAMED).train
    victim = int(split.rows[batch_indices(INDICES, 6, 7, 5)[2]])
    path = sorted(tmp_path.rglob("*.png"))[victim]
    whole = path.read_bytes()
    first = next(step for step in range(8) if victim in split.rows[batch_indices(INDICES, 6, step, 5)])
    path.write_bytes(whole[:-40])
    batches = stored_batches(split, INDICES, 6, 5, steps=14)
    for _ in range(first):
        next(batches)
    with pytest.raises(UserError, match=f"'{path}' is no readable picture") as error:
        next(batches)
    assert "\n" not in str(error.value)
    path.write_bytes(png(np.zeros((1, 1, 3), np.uint8)))  # would be broadcast
    with pytest.raises(UserError, match=rf"picture {victim} has the shape \(1, 1, 3\), wanted \(6, 8, 3\)"):
        split.load()


def test_what_cannot_be_streamed_is_refused(tmp_path_factory, in_folder, monkeypatch):
    images, labels = np.zeros((4, 6, 8, 3), np.uint8), np.arange(4) % 2
    file = tmp_path_factory.mktemp("npz") / "file.npz"
    np.savez_compressed(file, images=images, labels=labels)
    with pytest.raises(
        UserError, match=r"file.npz' takes .* GiB, wanted .* at most: raise config.data.memory"
    ) as error:
        load(f"npz:{file}", memory=500 / 2**30)  # bytes; the images take 576
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"config.data.memory: wanted GiB, .*, got -1"):
        load("digits", memory=-1.0)
    split = load(in_folder, memory=STREAMED).train
    with pytest.raises(UserError, match="batch_size 6, process 0 of 4: wanted a share of one size for each"):
        stored_batches(split, INDICES, 6, 5, steps=4, parts=4)
    with pytest.raises(UserError, match="batch_size 26 is larger than the training set of 25 images"):
        stored_batches(split, INDICES, 26, 5, steps=4)
    with pytest.raises(UserError, match="wanted a start of 0 to 4 steps, got 5"):
        stored_batches(split, INDICES, 6, 5, steps=4, start=5)
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(UserError, match=r"config.data.memory need an extra: pip install 'agop_jax\[stream\]'"):
        stored_batches(split, INDICES, 6, 5, steps=4)


SIDE, COUNT, CAP = 256, 1024, 48  # 192 MiB of decoded images, four times the cap in MiB
EPOCH = """
import dataclasses, re, sys
import flax.linen as nn
import jax
import jax.numpy as jnp
from agop_jax.data import Pipeline, StoredSplit, load, subset
from agop_jax.training.device_data import DeviceData
from agop_jax.training import Run, Settings, Trainer, train
from agop_jax.training import trainer as trainer_module

class Tiny(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.Conv(2, (8, 8), strides=8)(x).mean((1, 2)))

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024

def new_trainer():
    return Trainer(Tiny(), Pipeline.of(dataset), Settings(80, batch_size=8))

def epoch(trainer, steps=80):
    trainer.settings = dataclasses.replace(trainer.settings, steps=steps)
    run = Run(trainer.start(jax.jit(Tiny().init)(jax.random.key(0), jnp.zeros((1, *dataset.train.shape)))))
    data, indices, seen = DeviceData.of(dataset, trainer.mesh), subset(dataset.train, None, 0), []
    train(trainer, run, data, indices, 0.01, 0, lambda run, step: seen.append(resident()))
    return max(seen)

trainer_module.EVALUATION_BATCH = 8  # intermediate results of 50 such images would take more than the data may
dataset = load(sys.argv[1], validation=0.02, memory=2.0**-30)
trainer = new_trainer()
epoch(trainer, steps=2)  # what the program itself takes
before = resident()
dataset = load(sys.argv[1], validation=0.02, memory=float(sys.argv[2]) / 1024)
print(epoch(trainer if isinstance(dataset.train, StoredSplit) else new_trainer()) - before)
"""


@pytest.mark.long
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux")
def test_a_data_set_four_times_the_cap_is_trained_on_under_the_cap(tmp_path):
    """Memory of a process over an epoch and its evaluations; the same set held in memory breaks the cap."""
    random = np.random.default_rng(0)
    kinds = [png(np.tile(random.integers(0, 256, (8, 8, 3), np.uint8), (SIDE // 8, SIDE // 8, 1))) for _ in range(4)]
    for number in range(COUNT):
        path = tmp_path / str(number % 2) / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(kinds[number % 4])
    assert COUNT * SIDE * SIDE * 3 == 4 * CAP * 2**20
    growth = {}
    for memory in (CAP, 4 * CAP):
        command = [sys.executable, "-c", EPOCH, f"folder:{tmp_path}", str(memory)]
        # what is freed goes back to the system, so that memory held is what is measured
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "100000", "MALLOC_TRIM_THRESHOLD_": "100000"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        growth[memory] = float(done.stdout)
    assert growth[CAP] < CAP < 4 * CAP < growth[4 * CAP]
