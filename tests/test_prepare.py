"""Preparing and reading TFDS data, from archives in the layout and under the names in which they are published."""

import functools
import http.server
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agop_jax.core.errors import UserError
from agop_jax.data import load, prepare, prepared

tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra 'tfds'")
from agop_jax.data import tiny_imagenet  # noqa: E402

WNIDS = ("n02124075", "n01443537", "n07583066")  # not in alphabetical order, as in the archive


def jpeg(array: np.ndarray, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, quality=95)
    return file.getvalue()


def tiny_archive(folder: Path, pictures: dict[str, bytes], **extra: bytes) -> Path:
    """tiny-imagenet-200.zip with these images by their names below the root, and other entries."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"val_{i}.JPEG\t{wnid}\t0\t0\t62\t62" for i, wnid in enumerate(WNIDS)]
    entries = {f"train/{wnid}/{wnid}_boxes.txt": b"\n" for wnid in WNIDS}
    entries |= {"wnids.txt": "\n".join(WNIDS).encode(), "val/val_annotations.txt": ("\n".join(lines) + "\n").encode()}
    entries |= pictures
    with zipfile.ZipFile(folder / tiny_imagenet.ARCHIVE, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in entries.items():
            file.writestr(f"tiny-imagenet-200/{name}", data)
        for name, data in extra.items():
            file.writestr(name, data)
    return folder


@pytest.fixture(scope="module")
def pictures() -> dict[str, bytes]:
    """Two training images a class, of which one is grey, one of validation, and a test image without a label."""
    random = np.random.default_rng(0)
    colour = lambda: jpeg(random.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    grey = lambda: jpeg(random.integers(0, 256, (64, 64), dtype=np.uint8))
    train = {f"train/{w}/images/{w}_{i}.JPEG": grey() if i else colour() for w in WNIDS for i in range(2)}
    return train | {f"val/images/val_{i}.JPEG": colour() for i in range(3)} | {"test/images/test_0.JPEG": colour()}


def rgb(data: bytes) -> bytes:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).tobytes()


def test_tiny_imagenet_is_prepared_and_read_without_tensorflow(pictures, tmp_path):
    """Labels in the order of the WordNet ids, grey images as RGB."""
    manual = tiny_archive(tmp_path / "manual", pictures)
    program = f"""
import sys
import numpy as np
from agop_jax.data import load, prepare
prepare.main(["tiny_imagenet", "--manual_dir={manual}"])
dataset = load("tiny_imagenet", validation=0.3)
images = np.concatenate([dataset.train.images, dataset.validation.images])
labels = np.concatenate([dataset.train.labels, dataset.validation.labels])
np.savez("{tmp_path}/read.npz", images=images, labels=labels, test=dataset.test.images, test_labels=dataset.test.labels)
assert "tensorflow" not in sys.modules
"""
    environment = os.environ | {"TFDS_DATA_DIR": str(tmp_path / "tfds")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "examples" in done.stderr  # the progress bar
    classes = sorted(WNIDS)
    wanted = {(rgb(data), classes.index(name.split("/")[1])) for name, data in pictures.items() if "train/" in name}
    with np.load(tmp_path / "read.npz") as file:
        assert {(image.tobytes(), int(y)) for image, y in zip(file["images"], file["labels"], strict=True)} == wanted
        found = {(image.tobytes(), int(y)) for image, y in zip(file["test"], file["test_labels"], strict=True)}
    assert found == {(rgb(pictures[f"val/images/val_{i}.JPEG"]), classes.index(w)) for i, w in enumerate(WNIDS)}


@pytest.mark.parametrize("place", ["", "tiny-imagenet-200", "renamed"])
def test_a_tree_that_was_unzipped_already_will_do(place, pictures, tmp_path, monkeypatch):
    """The folder around it, or itself, under whatever name: what comes of it is what comes of the archive."""
    archive = tiny_archive(tmp_path / "manual", pictures)
    prepare.prepare("tiny_imagenet", tmp_path / "zip", archive)
    with zipfile.ZipFile(archive / tiny_imagenet.ARCHIVE) as file:
        file.extractall(tmp_path / "tree")
    if place == "renamed":
        (tmp_path / "tree" / "tiny-imagenet-200").rename(tmp_path / "tree" / place)
    prepare.prepare("tiny_imagenet", tmp_path / "folder", tmp_path / "tree" / place)
    parts = []
    for name in ("zip", "folder"):
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / name))
        dataset = load("tiny_imagenet", validation=0.3)
        splits = [split.load() for split in (dataset.train, dataset.test)]
        parts.append(sorted((x.tobytes(), int(y)) for split in splits for x, y in zip(*split, strict=True)))
    assert dataset.classes == tuple(sorted(WNIDS))
    assert parts[0] == parts[1]


def test_a_tree_that_lacks_its_labels_is_refused(pictures, tmp_path):
    with zipfile.ZipFile(tiny_archive(tmp_path, pictures) / tiny_imagenet.ARCHIVE) as file:
        file.extractall(tmp_path / "tree")
    (tmp_path / "tree" / "tiny-imagenet-200" / "val" / "val_annotations.txt").unlink()
    with pytest.raises(UserError, match=r"wanted tiny-imagenet-200/train/WNID.*, got .*val_annotations.txt") as error:
        prepare.prepare("tiny_imagenet", tmp_path / "tfds", tmp_path / "tree")
    assert "\n" not in str(error.value)


def test_tiny_imagenet_is_downloaded(pictures, tmp_path, monkeypatch):
    folder = tiny_archive(tmp_path / "server", pictures)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        monkeypatch.setattr(tiny_imagenet, "URL", f"http://127.0.0.1:{server.server_port}/{tiny_imagenet.ARCHIVE}")
        directory = prepare.prepare("tiny_imagenet", tmp_path / "tfds")
        server.shutdown()
    assert prepared.find("tiny_imagenet", tmp_path / "tfds") == directory
    assert prepare.prepare("tiny_imagenet", tmp_path / "tfds") == directory  # no server: it is there already


def damaged(folder: Path, change) -> Path:
    file = folder / tiny_imagenet.ARCHIVE
    file.write_bytes(change(file.read_bytes()))
    return folder


BAD_ARCHIVES = {
    "traversal": (
        lambda p, f: tiny_archive(f, p, **{"../../evil.txt": b"x"}),
        r"^agop_jax: '[^']*' is not to be trusted: its entry '../../evil.txt'",
    ),
    "absolute": (lambda p, f: tiny_archive(f, p, **{"/etc/evil": b"x"}), "not to be trusted.*'/etc/evil'"),
    "windows": (lambda p, f: tiny_archive(f, p, **{"C:\\evil": b"x"}), "not to be trusted"),
    "truncated": (lambda p, f: damaged(tiny_archive(f, p), lambda data: data[: len(data) // 2]), "no whole zip file"),
    "missing": (lambda p, f: f, "no file.*download it from http"),
    "layout": (lambda p, f: tiny_archive(f, {"a.JPEG": b""}), "wanted tiny-imagenet-200/train/WNID/images"),
    "size": (
        lambda p, f: tiny_archive(f, p | {f"train/{WNIDS[0]}/images/x.JPEG": jpeg(np.zeros((32, 64, 3), np.uint8))}),
        "x.JPEG': wanted an image of 64 x 64, got 64 x 32",
    ),
    "text": (lambda p, f: tiny_archive(f, p | {"val/images/val_0.JPEG": b"text"}), "val_0.JPEG' is no readable"),
}


@pytest.mark.parametrize(("make", "message"), BAD_ARCHIVES.values(), ids=BAD_ARCHIVES)
def test_bad_archives_are_refused_and_leave_nothing(make, message, pictures, tmp_path, capsys):
    manual = make(pictures, tmp_path / "manual")
    with pytest.raises(SystemExit) as stopped:
        prepare.main(["tiny_imagenet", f"--data_dir={tmp_path / 'tfds'}", f"--manual_dir={manual}"])
    assert stopped.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("agop_jax: ")]
    assert len(lines) == 1
    assert re.search(message, lines[0])
    assert prepared.find("tiny_imagenet", tmp_path / "tfds") is None
    assert not list(tmp_path.rglob("evil*"))


def test_tiny_imagenet_from_real_pictures(tmp_path, monkeypatch):
    """CIFAR-100's test images at 64 x 64 as JPEG, in the published layout, come back as a JPEG reader sees them."""
    file = Path(os.environ.get("AGOP_JAX_DATA", "")) / "cifar100.npz"
    if not file.is_file():
        pytest.skip("set AGOP_JAX_DATA to a folder with cifar100.npz")
    with np.load(file) as real:
        images, labels = real["test_images"][:1000], real["test_labels"][:1000]
    wnids = [f"n{label:08d}" for label in range(100)]
    larger = [jpeg(np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BICUBIC))) for image in images]
    train, validation = range(800), range(800, 1000)
    pictures = {f"train/{wnids[labels[i]]}/images/{wnids[labels[i]]}_{i}.JPEG": larger[i] for i in train}
    pictures |= {f"val/images/val_{i}.JPEG": larger[i] for i in validation}
    lines = "".join(f"val_{i}.JPEG\t{wnids[labels[i]]}\t0\t0\t62\t62\n" for i in validation)
    pictures |= {"val/val_annotations.txt": lines.encode(), "wnids.txt": "\n".join(wnids).encode()}
    prepare.prepare("tiny_imagenet", tmp_path / "tfds", tiny_archive(tmp_path / "manual", pictures))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    dataset = load("tiny_imagenet", validation=0.2)
    classes = {label: i for i, label in enumerate(sorted({*labels[:800]}))}
    rows = lambda *splits: sorted((x.tobytes(), int(y)) for split in splits for x, y in zip(*split, strict=True))
    wanted = lambda chosen: sorted((rgb(larger[i]), classes[labels[i]]) for i in chosen)
    assert rows(dataset.train, dataset.validation) == wanted(train)
    assert rows(dataset.test) == wanted(validation)


CIFAR10 = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cifar10_archive(folder: Path, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> Path:
    """cifar-10-binary.tar.gz: rows of a label and 3,072 bytes, channel by channel, in five training files and one."""
    folder.mkdir()

    def rows(images: np.ndarray, labels: np.ndarray) -> bytes:
        flat = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        return np.concatenate([labels.astype(np.uint8)[:, None], flat], axis=1).tobytes()

    parts = zip(*(np.array_split(array, 5) for array in train), strict=True)
    files = {f"data_batch_{i + 1}.bin": rows(*part) for i, part in enumerate(parts)}
    files |= {"test_batch.bin": rows(*test), "batches.meta.txt": ("\n".join(CLASSES) + "\n\n").encode()}
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as file:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            entry.size = len(data)
            file.addfile(entry, io.BytesIO(data))
    return folder / "cifar-10-binary.tar.gz"


def cifar10_images(source: str):
    """Training and test images with labels: random ones, or the first of the real ones."""
    if source == "random":
        random, labels = np.random.default_rng(0), np.arange(60) % 10
        images = random.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
        return (images[:40], labels[:40]), (images[40:], labels[40:])
    file = Path(os.environ.get("AGOP_JAX_DATA", "")) / "cifar10.npz"
    if not file.is_file():
        pytest.skip("set AGOP_JAX_DATA to a folder with cifar10.npz")
    with np.load(file) as real:
        return [
            (real[f"{part}_images"][:n], real[f"{part}_labels"][:n]) for part, n in (("train", 2000), ("test", 500))
        ]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["random", "real"])
def test_cifar10_is_prepared_from_its_archive(source, tmp_path, monkeypatch):
    """By TFDS's own builder. Its checksum of the archive is replaced: this archive is ours, in the published format."""
    pytest.importorskip("tensorflow", reason="needs the extra 'prepare'")
    train, test = cifar10_images(source)
    archive = cifar10_archive(tmp_path / "manual", train, test)
    checksum = tfds.core.download.checksums.compute_url_info(archive)
    monkeypatch.setitem(tfds.builder_cls("cifar10").url_infos, CIFAR10, checksum)
    directory = prepare.prepare("cifar10", tmp_path / "tfds", archive.parent)
    assert directory.parent.name == "cifar10"
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    dataset = load("cifar10", validation=0.25)
    rows = lambda *splits: sorted((x.tobytes(), int(y)) for split in splits for x, y in zip(*split, strict=True))
    assert rows(dataset.train, dataset.validation) == rows(train)
    assert rows(dataset.test) == rows(test)


@pytest.mark.slow
def test_a_changed_archive_is_refused(tmp_path):
    """As published, it has another checksum."""
    pytest.importorskip("tensorflow", reason="needs the extra 'prepare'")
    archive = cifar10_archive(tmp_path / "manual", *cifar10_images("random"))
    with pytest.raises(
        UserError, match=r"cifar10 could not be prepared \(Artifact.*has wrong checksum\): download"
    ) as e:
        prepare.prepare("cifar10", tmp_path / "tfds", archive.parent)
    assert "\n" not in str(e.value)


def test_offline_and_unprepared_says_how_to_prepare(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for name in ("svhn_cropped", "tfds:svhn_cropped"):
        with pytest.raises(UserError, match=f"not prepared in '{tmp_path}'.*agop_jax.data.prepare svhn_cropped"):
            load(name)
    with pytest.raises(UserError, match="unknown TFDS data set 'cifar01'. Did you mean 'cifar10'"):
        load("tfds:cifar01")


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="unknown TFDS data set 'imagenet'"):
        prepare.prepare("imagenet", tmp_path)
    monkeypatch.setattr(prepare, "_require_extras", lambda name: None)
    with pytest.raises(UserError, match=r"lacks .*idx3-ubyte.gz.*: wanted "):
        prepare.prepare("mnist", tmp_path, tmp_path)
    monkeypatch.setattr(prepare.urllib.request, "urlopen", raise_offline)
    with pytest.raises(UserError, match=r"no network \(no route\): download https?://.* --manual_dir=FOLDER"):
        prepare.prepare("mnist", tmp_path)


def raise_offline(*arguments, **options):
    raise OSError("no route")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A data set of pictures of two sizes, with the splits of Oxford Flowers, as TFDS stores it."""
    features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.ClassLabel(num_classes=2)}
    folder = tmp_path_factory.mktemp("tfds")
    picture = lambda i: io.BytesIO(jpeg(np.full((20, 20 + 4 * i, 3), 20 * i, np.uint8)))
    splits = {
        name: [(i, {"image": picture(i), "label": i % 2}) for i in range(n)]
        for name, n in (("train", 6), ("validation", 4), ("test", 5))
    }

    class Photographs(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {name: self._generate_examples(rows) for name, rows in splits.items()}

        def _generate_examples(self, rows):
            yield from rows

    Photographs(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_pictures_of_many_sizes_want_a_size(stored, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(stored))
    with pytest.raises(UserError, match="pictures are of many sizes.*--config.data.size"):
        load("tfds:photographs")
    dataset = load("tfds:photographs", size=8, validation=0.2)
    assert [s.images.shape for s in (dataset.train, dataset.validation, dataset.test)] == [
        (8, 8, 8, 3),  # 6 + 4 training and validation images, of which a fifth is drawn
        (2, 8, 8, 3),
        (5, 8, 8, 3),
    ]


def test_classes_are_those_that_occur_and_splits_are_named(stored, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(stored))
    dataset = load("tfds:photographs", size=8, validation=0.2)
    assert (dataset.num_classes, dataset.classes) == (2, ("0", "1"))
    assert (dataset.origins["test"], dataset.unused) == ("test", ())
    assert dataset.origins["train"] == "what the other splits leave of train and validation"


@pytest.mark.parametrize("name", ["data[1]", "a{b}*?", "two words", "größe"])
def test_every_path_of_prepared_data_will_do(name, stored, pictures, tmp_path, monkeypatch):
    """Read there, and prepared there."""
    (tmp_path / name).mkdir()
    shutil.copytree(stored / "photographs", tmp_path / name / "photographs")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / name))
    assert len(load("tfds:photographs", size=8).test.labels) == 5
    prepare.prepare("tiny_imagenet", tmp_path / name, tiny_archive(tmp_path / name / "manual", pictures))
    assert load("tiny_imagenet", validation=0.3).num_classes == 3


def test_data_that_cannot_be_opened_are_not_called_damaged(stored, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(stored))
    monkeypatch.setattr(tfds, "builder_from_directory", raise_too_many)
    with pytest.raises(UserError, match="cannot be read .*Too many open files.*: its files may well be whole") as error:
        load("tfds:photographs", size=8)
    assert "delete" not in str(error.value)


def raise_too_many(*arguments, **options):
    raise OSError(24, "Too many open files")


def test_damaged_prepared_data_is_named(stored, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for name in ("features.json", "dataset_info.json", "photographs-train.array_record-00000-of-00001"):
        copy = tmp_path / "photographs" / "1.0.0"
        copy.mkdir(parents=True, exist_ok=True)
        for file in (stored / "photographs" / "1.0.0").iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        (copy / name).write_bytes((copy / name).read_bytes()[:40])
        with pytest.raises(UserError, match=f"'{copy}' cannot be read .*: delete it") as error:
            load("tfds:photographs", size=8)
        assert "\n" not in str(error.value)
