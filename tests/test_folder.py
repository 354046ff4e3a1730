"""A user's own pictures, and what networks see of them."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import ExifTags, Image

from agop_jax.core.errors import UserError
from agop_jax.data import Pipeline, load
from agop_jax.data.images import read_photograph

RNG = np.random.default_rng(0)


def picture(path, h=6, w=8, mode="RGB", **options):
    shape = (h, w) if mode == "L" else (h, w, len(mode))
    path.parent.mkdir(parents=True, exist_ok=True)
    array = RNG.integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(array, mode).save(path, **options)
    return array


def fill(root, classes=("cat", "dog"), count=5, **options):
    """A folder per class; {(pixels, label)} of what is in it."""
    arrays = {name: [picture(root / name / f"{i}.png", **options) for i in range(count)] for name in classes}
    return {(array.tobytes(), sorted(classes).index(name)) for name, found in arrays.items() for array in found}


def rows(*parts):
    return {(image.tobytes(), int(label)) for part in parts for image, label in zip(*part, strict=True)}


def test_one_folder_is_split(tmp_path):
    wanted = fill(tmp_path, ("dog", "cat", "ant"), count=10)
    (tmp_path / ".thumbnails").mkdir()
    dataset = load(f"folder:{tmp_path}", validation=0.25)
    assert rows(dataset.train, dataset.validation, dataset.test) == wanted  # labels in alphabetical order
    assert [len(part.labels) for part in (dataset.train, dataset.validation, dataset.test)] == [18, 6, 6]


def test_train_and_test_folders_are_kept_apart(tmp_path):
    train, test = fill(tmp_path / "train"), fill(tmp_path / "test", count=3)
    dataset = load(f"folder:{tmp_path}")
    assert rows(dataset.train, dataset.validation) == train
    assert rows(dataset.test) == test


def test_grey_pictures_stay_grey_unless_one_has_colour(tmp_path):
    fill(tmp_path, mode="L")
    assert load(f"folder:{tmp_path}").train.images.shape[1:] == (6, 8, 1)
    picture(tmp_path / "cat" / "colour.png")
    assert load(f"folder:{tmp_path}").train.images.shape[1:] == (6, 8, 3)


def test_pictures_of_many_sizes_are_brought_to_the_stated_one(tmp_path):
    """The shorter side to 10, then the centre: to one grey level, as Pillow rounds."""
    fill(tmp_path, h=20, w=30)
    tall = picture(tmp_path / "cat" / "tall.png", h=40, w=20)
    with pytest.raises(UserError, match=r"2 sizes \(20 x 30, 40 x 20, ...\).*--config.data.size"):
        load(f"folder:{tmp_path}")
    dataset = load(f"folder:{tmp_path}", size=10)
    wanted = np.asarray(Image.fromarray(tall).resize((10, 20), Image.Resampling.BILINEAR))[5:15].astype(int)
    found = np.concatenate([part.images for part in (dataset.train, dataset.validation, dataset.test)])
    assert sum(np.abs(image - wanted).max() <= 1 for image in found) == 1


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
@pytest.mark.parametrize("tested", [True, False])
def test_a_validation_folder_is_the_validation_split(name, tested, tmp_path):
    train, validation = fill(tmp_path / "train", count=10), fill(tmp_path / name, count=3)
    test = fill(tmp_path / "test", count=2) if tested else set()
    (tmp_path / "README").write_text("about")
    dataset = load(f"folder:{tmp_path}", validation=0.5)
    assert rows(dataset.validation) == validation
    assert rows(dataset.train, dataset.test) == train | test
    assert len(dataset.train.labels) == (20 if tested else 16)
    assert (dataset.origins["validation"], dataset.unused) == (f"{name}/", ("README",))
    assert dataset.origins["test"] == ("test/" if tested else "20 % of train/, the same in every experiment")


def test_class_folders_may_hold_their_pictures_deeper(tmp_path):
    """In images/, beside other files, which are named; or in folders of any names."""
    whole = fill(tmp_path / "one", count=6)
    for name in ("cat", "dog"):
        for number in range(6):
            place = "images" if name == "cat" else f"part{number % 2}/deeper"
            moved = tmp_path / "two" / name / place / f"{number}.png"
            moved.parent.mkdir(parents=True, exist_ok=True)
            moved.write_bytes((tmp_path / "one" / name / f"{number}.png").read_bytes())
    (tmp_path / "two" / "cat" / "boxes.txt").write_text("no picture")
    dataset = load(f"folder:{tmp_path / 'two'}")
    assert rows(dataset.train, dataset.validation, dataset.test) == whole
    assert (dataset.classes, dataset.unused) == (("cat", "dog"), ("cat/boxes.txt",))


@pytest.mark.parametrize("inside", ["", "images"])
@pytest.mark.parametrize("part", ["test", "val"])
def test_pictures_without_classes_are_named(part, inside, tmp_path):
    for name in {"train", "test", part}:
        fill(tmp_path / name)
    shutil.rmtree(tmp_path / part)
    picture(tmp_path / part / inside / "0.png")
    said = f"'{tmp_path / part}' has no folder of a training class, so that its pictures have no labels: sort them into"
    with pytest.raises(UserError, match=said):
        load(f"folder:{tmp_path}")


def test_tiny_imagenets_own_tree_is_named(tmp_path):
    fill(tmp_path / "train")
    picture(tmp_path / "val" / "images" / "val_0.png")
    (tmp_path / "val" / "val_annotations.txt").write_text("")
    with pytest.raises(UserError, match="is Tiny-ImageNet's own tree.*prepare tiny_imagenet --manual_dir="):
        load(f"folder:{tmp_path}")


def turned(array, code):
    """What a camera stores with this EXIF code of a scene that looks like `array`: by the EXIF standard's table."""
    flip, turn = array[:, ::-1], lambda picture, times: np.rot90(picture, times)
    return {
        1: array,
        2: flip,
        3: turn(array, 2),
        4: array[::-1],
        5: array.swapaxes(0, 1),
        6: turn(array, 1),
        7: array[::-1, ::-1].swapaxes(0, 1),
        8: turn(array, 3),
    }[code]


@pytest.mark.parametrize("code", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "tiff", "webp"])
def test_pictures_are_upright(code, kind, tmp_path):
    """Of 6 x 8, so that a quarter turn changes the shape; all formats that keep every pixel."""
    scene = picture(tmp_path / "cat" / f"plain.{kind}", lossless=True)
    for name in ("cat", "dog"):
        for number in range(5):
            array = scene if (name, number) == ("dog", 0) else RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = code
            path = tmp_path / name / f"{number}.{kind}"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.ascontiguousarray(turned(array, code))).save(path, exif=exif, lossless=True)
    dataset = load(f"folder:{tmp_path}")
    assert dataset.train.images.shape[1:] == (6, 8, 3)
    stored = rows(dataset.train, dataset.validation, dataset.test)
    assert {(scene.tobytes(), 0), (scene.tobytes(), 1)} <= stored
    np.testing.assert_array_equal(read_photograph(tmp_path / "dog" / f"0.{kind}"), scene)


def test_a_photograph_of_a_camera_is_upright(tmp_path):
    """JPEG keeps colours to a few levels: the bright half of the scene is on its left, not on top."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    stored = np.zeros((16, 32, 3), np.uint8)  # the camera lay on its side
    stored[8:] = 255
    for name in ("cat", "dog"):
        for number in range(5):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(stored).save(tmp_path / name / f"{number}.jpg", exif=exif)
    dataset = load(f"folder:{tmp_path}")
    assert dataset.train.images.shape[1:] == (32, 16, 3)
    for image in (*dataset.train.images, read_photograph(tmp_path / "cat" / "0.jpg")):
        assert image[:, :8].min() > 250
        assert image[:, 8:].max() < 5


@pytest.mark.parametrize("name", ["data[1]", "a{b}*?", "two words", "größe"])
def test_every_path_of_a_folder_will_do(name, tmp_path):
    fill(tmp_path / name, ("cat[0]", "d*g"), h=6)
    assert load(f"folder:{tmp_path / name}").classes == ("cat[0]", "d*g")


def test_damaged_exif_data_cost_no_picture(tmp_path):
    whole = fill(tmp_path)
    array = picture(tmp_path / "cat" / "odd.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    dataset = load(f"folder:{tmp_path}")
    assert rows(dataset.train, dataset.validation, dataset.test) == whole | {(array.tobytes(), 0)}


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_a_photograph_of_16_bits_is_scaled(kind, tmp_path):
    levels = np.array([[0, 128, 257, 32768], [65535, 65407, 256, 12850]], np.uint16)
    Image.fromarray(levels).save(tmp_path / f"deep.{kind}")
    wanted = np.array([[0, 0, 1, 128], [255, 255, 1, 50]])  # 257 levels to one
    np.testing.assert_array_equal(read_photograph(tmp_path / f"deep.{kind}"), np.repeat(wanted[..., None], 3, -1))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_a_photograph_of_no_known_range_is_refused(dtype, tmp_path):
    Image.fromarray(np.ones((4, 5), dtype)).save(tmp_path / "x.tiff")
    with pytest.raises(UserError, match="x.tiff': wanted 8 or 16 bits a channel, got Pillow's mode"):
        read_photograph(tmp_path / "x.tiff")


@pytest.mark.parametrize("mode", ["RGBA", "CMYK", "P", "L", "LA", "1"])
def test_a_photograph_of_any_mode_is_rgb(mode, tmp_path):
    image = Image.fromarray(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)).convert(mode)
    image.save(tmp_path / "x.tiff")
    np.testing.assert_array_equal(read_photograph(tmp_path / "x.tiff"), np.asarray(image.convert("RGB")))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


BAD = {
    "empty": (lambda root: root.mkdir(), "wanted two classes or more, a folder each, got 0"),
    "one class": (lambda root: fill(root, ("cat",)), "wanted two classes or more, a folder each, got 1"),
    "no folder": (lambda root: None, "no folder"),
    "no pictures": (lambda root: (fill(root), (root / "emu").mkdir()), "'.*emu' is an empty folder"),
    "text": (lambda root: (fill(root), (root / "cat" / "a.txt").write_text("a")), "a.txt' is no readable picture"),
    "cut off": (lambda root: (fill(root, h=30, w=30), truncate(root / "dog" / "3.png")), "3.png' is no readable pict"),
    "loose": (lambda root: (fill(root), picture(root / "x.png")), "x.png' is in no class"),
    "no test": (lambda root: fill(root / "train"), "no folder '.*test': wanted train/ and test/, or neither"),
    "new class": (lambda root: (fill(root / "train"), fill(root / "test", ("cat", "emu"))), "emu': the training pict"),
    "16 bits": (
        lambda root: (fill(root), Image.fromarray(np.ones((6, 8), np.uint16)).save(root / "cat" / "deep.png")),
        "deep.png': wanted 8 bits a channel",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_folders_are_refused(make, message, tmp_path):
    make(tmp_path / "pictures")
    with pytest.raises(UserError, match=message) as error:
        load(f"folder:{tmp_path / 'pictures'}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "size"), [("digits", 8), ("folder:x", -1)])
def test_a_size_that_cannot_be(name, size):
    with pytest.raises(UserError, match=f"config.data.size: .*got {size} for '{name.partition(':')[0]}'"):
        load(name, size=size)


@pytest.mark.parametrize(("before", "after"), [(32, 224), (28, 32), (96, 64), (64, 24), (50, 50)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_resize_is_that_of_pillow(before, after, channels):
    """To 1e-3 grey levels of Pillow on floats, and to one level of Pillow on uint8, which rounds after each axis."""
    images = RNG.integers(0, 256, (2, before, before, channels), dtype=np.uint8)
    pipeline = Pipeline((0.0,) * channels, (1 / 255,) * channels, resize=after)  # in grey levels
    found = np.asarray(jax.jit(pipeline)(jnp.asarray(images)))
    assert found.shape == (2, after, after, channels)
    for image, resized in zip(images, found, strict=True):
        for channel in range(channels):
            plane = Image.fromarray(image[..., channel])
            bilinear = lambda plane: np.asarray(plane.resize((after, after), Image.Resampling.BILINEAR), np.float32)
            np.testing.assert_allclose(resized[..., channel], bilinear(plane.convert("F")), atol=1e-3)
            np.testing.assert_allclose(resized[..., channel], bilinear(plane), atol=1.0)


def test_grey_images_become_three_equal_channels():
    dataset = load("digits")
    images = jnp.asarray(dataset.train.images[:4])
    plain = np.asarray(Pipeline.of(dataset, resize=12)(images))
    found = np.asarray(Pipeline.of(dataset, rgb=True, resize=12)(images))
    np.testing.assert_array_equal(found, np.repeat(plain, 3, axis=-1))


def test_augmentation_comes_before_the_resize():
    """A mirrored image is the mirror image of the resized one."""
    images = jnp.asarray(RNG.integers(0, 256, (8, 6, 6, 3), dtype=np.uint8))
    pipeline = Pipeline((0.5,) * 3, (0.25,) * 3, flip=True, resize=9)
    augmented = pipeline.augment(images, jax.random.key(0))
    assert (augmented.shape, augmented.dtype) == (images.shape, images.dtype)
    plain, found = pipeline(images), pipeline(augmented)
    for one, other in zip(plain, found, strict=True):
        assert any(np.allclose(other, side, atol=1e-5) for side in (one, one[:, ::-1]))
