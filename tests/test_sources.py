"""What a file of arrays may hold: labels of any kind, a validation split of its own, axes in the right order."""

import logging

import numpy as np
import pytest

from agop_jax.core.errors import UserError
from agop_jax.data import load

RNG = np.random.default_rng(1)


def images(*shape):
    return RNG.integers(0, 256, shape).astype(np.uint8)


def whole_file(path, labels, **more):
    """A file of images and labels, from which a test split is split off."""
    np.savez(path, images=images(len(labels), 6, 7, 3), labels=labels, **more)
    return f"npz:{path}"


def file_with_test(path, train, test, **more):
    np.savez(
        path,
        train_images=images(len(train), 6, 7, 3),
        train_labels=train,
        test_images=images(len(test), 6, 7, 3),
        test_labels=test,
        **more,
    )
    return f"npz:{path}"


def line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


LABELS = {
    "from 1 on": ((1, 2, 3, 4), np.int64),
    "ids": ((2**40 + 7, 7, 2**40 + 8), np.int64),
    "gaps": ((0, 5, 1_000_000), np.int32),
    "negative": ((-3, -1, 2), np.int16),
    "unsigned": ((2**63 + 1, 2**63 + 2), np.uint64),
    "big endian": ((300, 2), ">i8"),
    "truth": ((True, False), bool),
    "names": (("zebra", "ant", "größe"), None),
}


@pytest.mark.parametrize(("values", "dtype"), LABELS.values(), ids=LABELS)
def test_the_distinct_labels_are_the_classes(values, dtype, tmp_path):
    labels = np.resize(np.array(values, dtype), 40)
    source = file_with_test(tmp_path / "file.npz", labels, labels[:10])
    dataset = load(source, validation=0.25)
    ordered = sorted(values)
    assert (dataset.num_classes, dataset.classes) == (len(values), tuple(map(str, ordered)))
    assert dataset.test.labels.tolist() == [ordered.index(label) for label in labels[:10].tolist()]
    assert set(dataset.train.labels.tolist()) == set(range(len(values)))
    assert {split.labels.dtype for split in (dataset.train, dataset.validation, dataset.test)} == {np.dtype(np.int32)}


def test_labels_from_0_on_are_what_they_were(tmp_path):
    labels = RNG.permutation(np.arange(50) % 5)
    file = whole_file(tmp_path / "a.npz", labels)
    dataset, shifted = load(file), tmp_path / "b.npz"
    with np.load(tmp_path / "a.npz") as arrays:
        np.savez(shifted, images=arrays["images"], labels=1000 * arrays["labels"].astype(np.int64) - 7)
    for part in ("train", "validation", "test"):  # the same images in the same order
        one, other = getattr(dataset, part), getattr(load(f"npz:{shifted}"), part)
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        ([0, 1, 2], [0, 1, 3], "the label 3 occurs only among the test images, wanted labels of the 3 classes"),
        ([1, 2, 3], [0, 1, 5], r"the label 0 \(and 1 more\) occurs only among the test images"),
        (np.array([2**63 - 1, 5]), np.array([2**63, 5], np.uint64), f"the label {2**63} occurs only"),
        (["cat", "dog"], ["cat", "cow"], "the label 'cow' occurs only among the test images"),
        ([0, 1], ["0", "1"], "the label '0'"),
    ],
)
def test_a_label_of_the_test_images_alone_is_refused(train, test, said, tmp_path):
    source = file_with_test(tmp_path / "file.npz", np.resize(train, 30), np.resize(test, 12))
    with pytest.raises(UserError, match=said) as error:
        load(source)
    line(error)


def test_a_fraction_is_wanted_only_where_it_is_used(tmp_path):
    own = {"val_images": images(8, 6, 7, 3), "val_labels": np.arange(8) % 2}
    for more, fraction in ((own, 0.0), (own, 0.3)):
        source = file_with_test(tmp_path / "file.npz", np.arange(30) % 2, np.arange(6) % 2, **more)
        assert len(load(source, validation=fraction).train.labels) == 30
    with pytest.raises(UserError, match="validation: wanted a fraction between 0 and 1, got 0"):
        load(file_with_test(tmp_path / "file.npz", np.arange(30) % 2, np.arange(6) % 2), validation=0.0)


@pytest.mark.parametrize("prefix", ["val", "valid", "validation"])
def test_validation_images_are_the_validation_split(prefix, tmp_path, caplog):
    own = {f"{prefix}_images": images(8, 6, 7, 3), f"{prefix}_labels": np.arange(8) % 2 + 4, "names": np.array(["a"])}
    labels = np.arange(30) % 2 + 4
    with caplog.at_level(logging.WARNING, logger="absl"):
        dataset = load(file_with_test(tmp_path / "file.npz", labels, labels[:6], **own), validation=0.4)
    np.testing.assert_array_equal(dataset.validation.images, own[f"{prefix}_images"])
    assert dataset.validation.labels.tolist() == [0, 1] * 4
    assert [len(split.labels) for split in (dataset.train, dataset.test)] == [30, 6]  # nothing is split off
    assert dataset.origins == {"train": "train_images", "validation": f"{prefix}_images", "test": "test_images"}
    assert dataset.unused == ("names",)
    assert "not used: names" in caplog.text


def test_a_file_may_have_validation_images_and_no_test(tmp_path):
    own = {"val_images": images(8, 6, 7, 3), "val_labels": np.arange(8) % 2}
    for name in ("", "train_"):
        arrays = {f"{name}images": images(30, 6, 7, 3), f"{name}labels": np.arange(30) % 2}
        np.savez(tmp_path / "file.npz", **arrays, **own)
        dataset = load(f"npz:{tmp_path / 'file.npz'}")
        np.testing.assert_array_equal(dataset.validation.images, own["val_images"])
        assert [len(split.labels) for split in (dataset.train, dataset.test)] == [24, 6]
        assert dataset.origins["test"] == f"20 % of {name}images, the same in every experiment"
        assert dataset.origins["train"] == f"what the other splits leave of {name}images"


def test_images_and_labels_beside_test_images_are_the_training_split(tmp_path):
    test = {"test_images": images(8, 6, 7, 3), "test_labels": np.arange(8) % 2}
    source = whole_file(tmp_path / "file.npz", np.arange(30) % 2, **test)
    dataset = load(source, validation=0.2)
    np.testing.assert_array_equal(dataset.test.images, test["test_images"])
    assert len(dataset.train.labels) == 24
    assert dataset.origins["validation"] == "20 % of the training images, drawn by seed 0"


VALIDATION = {
    "labels alone": ({"val_labels": np.arange(6) % 2}, "lacks val_images; it holds"),
    "images alone": ({"valid_images": images(6, 6, 7, 3)}, "lacks valid_labels"),
    "two": (
        {f"{name}_{kind}": np.zeros(3, np.uint8) for name in ("val", "valid") for kind in ("images", "labels")},
        "holds val_ and valid_: wanted one validation split",
    ),
    "shape": (
        {"val_images": images(6, 5, 7, 3), "val_labels": np.arange(6) % 2},
        r"training and validation images of one shape, got \(6, 7, 3\) and \(5, 7, 3\)",
    ),
    "class": (
        {"val_images": images(6, 6, 7, 3), "val_labels": np.arange(6) % 3},
        "the label 2 occurs only among the validation images",
    ),
    "layouts": ({"images": images(6, 6, 7, 3)}, "holds both images and train_images"),
}


@pytest.mark.parametrize(("arrays", "said"), VALIDATION.values(), ids=VALIDATION)
def test_validation_arrays_that_cannot_be(arrays, said, tmp_path):
    with pytest.raises(UserError, match=said) as error:
        load(file_with_test(tmp_path / "file.npz", np.arange(30) % 2, np.arange(6) % 2, **arrays))
    line(error)


ORDERS = {
    "channels first": ((24, 3, 32, 32), "(0, 2, 3, 1)"),
    "grey first": ((24, 1, 28, 28), "(0, 2, 3, 1)"),
    "no square": ((24, 3, 20, 12), "(0, 2, 3, 1)"),
    "small": ((24, 3, 6, 6), "(0, 2, 3, 1)"),
    "13 bands first": ((24, 13, 16, 16), "(0, 2, 3, 1)"),
    "images last": ((32, 32, 3, 24), "(3, 0, 1, 2)"),
    "images last, of one number": ((24, 24, 3, 24), "(3, 0, 1, 2)"),
    "both": ((3, 32, 32, 24), "(3, 1, 2, 0)"),
    "grey, images last": ((28, 28, 24), "(2, 0, 1)"),
}


@pytest.mark.parametrize(("shape", "order"), ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("layout", ["images", "train_images"])
def test_axes_in_another_order_are_refused(shape, order, layout, tmp_path):
    labels, pictures = np.arange(24) % 3, images(*shape)
    arrays = {"images": pictures, "labels": labels}
    if layout == "train_images":
        arrays = {f"{part}_{name}": array for part in ("train", "test") for name, array in arrays.items()}
    np.savez(tmp_path / "file.npz", **arrays)
    with pytest.raises(UserError) as error:
        load(f"npz:{tmp_path / 'file.npz'}")
    assert f"images of shape {shape} seem to be in another order, wanted (n, height, width, channels)" in line(error)
    assert line(error).endswith(f"store np.transpose(images, {order})")
    axes = tuple(map(int, order.strip("()").split(", ")))
    right = np.transpose(pictures, axes)
    np.savez(tmp_path / "file.npz", images=right, labels=labels)
    assert len(load(f"npz:{tmp_path / 'file.npz'}").train.labels) > 0  # the advice helps


ODD = (
    *((12, 20), (1, 40), (5, 5), (12, 20, 1), (12, 20, 13), (1, 40, 1), (1, 40, 3), (3, 40, 3), (32, 3, 1)),
    *((4, 5, 13), (4, 5, 5), (8, 8, 13), (8, 8, 5), (32, 32, 2), (24, 24, 4)),
)


@pytest.mark.parametrize("shape", ODD)
@pytest.mark.parametrize("fortran", [False, True])
def test_odd_shapes_are_what_they_are(shape, fortran, tmp_path):
    pictures = images(24, *shape)
    stored = np.asfortranarray(pictures) if fortran else pictures
    np.savez(tmp_path / "file.npz", images=stored, labels=(np.arange(24) % 3).astype(">i4"))
    dataset = load(f"npz:{tmp_path / 'file.npz'}")
    assert dataset.train.shape == (shape if len(shape) == 3 else (*shape, 1))


def test_no_message_passes_on_advice_to_unpickle(tmp_path):
    np.savez(tmp_path / "objects.npz", images=np.array([None]), labels=np.arange(1))
    (tmp_path / "text.npz").write_text("text")
    for name in ("objects.npz", "text.npz"):
        with pytest.raises(UserError, match="no readable .npz file") as error:
            load(f"npz:{tmp_path / name}")
        assert "allow_pickle" not in line(error)


@pytest.mark.parametrize("name", ["data[1]", "a{b}", "s*r?", "two words", "größe"])
def test_every_path_of_a_file_will_do(name, tmp_path):
    (tmp_path / name).mkdir()
    assert load(whole_file(tmp_path / name / "file.npz", np.arange(30) % 2)).num_classes == 2
