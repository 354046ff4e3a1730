"""Data sets, their splits and the order in which a run sees their images."""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from agop_jax.core.errors import UserError
from agop_jax.data import Pipeline, Split, batch_indices, load, subset
from agop_jax.data.splits import balanced_order

RNG = np.random.default_rng(0)


def images(n, h=4, w=5, channels=3):
    return RNG.integers(0, 256, (n, h, w, channels)).astype(np.uint8)


def labels(n, classes=3):
    return np.arange(n) % classes


def split_file(path, **changes):
    """A file in the layout of four arrays, with some of them changed, or left out where None."""
    arrays = {
        "train_images": images(30),
        "train_labels": labels(30),
        "test_images": images(9),
        "test_labels": labels(9),
    } | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def rows(*splits):
    """Images with their labels, sorted, so that two collections can be compared."""
    return sorted((image.tobytes(), int(label)) for split in splits for image, label in zip(*split, strict=True))


def parts(dataset):
    return dataset.train, dataset.validation, dataset.test


def assert_same(one, other):
    for a, b in zip(parts(one), parts(other), strict=True):
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.labels, b.labels)


def test_digits_have_the_sizes_that_the_fractions_give():
    """Of 1,797 images (scikit-learn's documentation) a fifth is 359; of the other 1,438 a fifth is 288."""
    dataset = load("digits", validation=0.2)
    assert [split.images.shape for split in parts(dataset)] == [(1150, 8, 8, 1), (288, 8, 8, 1), (359, 8, 8, 1)]
    assert dataset.num_classes == 10
    for split in parts(dataset):
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
        assert np.ptp(np.bincount(split.labels, minlength=10) / len(split.labels)) < 0.02  # classes as in the whole


def test_digits_splits_are_a_partition():
    whole = load_digits()
    scaled = np.round(whole.images[..., None] * 255 / 16).astype(np.uint8)  # 16 is the brightest
    assert rows(*parts(load("digits"))) == rows((scaled, whole.target))


def test_splits_depend_on_the_seed_alone_and_the_test_split_on_nothing():
    first, again, other = (load("digits", seed=seed) for seed in (1, 1, 2))
    assert_same(first, again)
    assert rows(first.validation) != rows(other.validation)
    np.testing.assert_array_equal(first.test.images, other.test.images)


def test_mean_and_deviation_are_those_of_the_training_split(tmp_path):
    dataset = load(f"npz:{split_file(tmp_path / 'file.npz')}")
    pixels = dataset.train.images.astype(np.float64).reshape(-1, 3) / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(dataset.std, pixels.std(0), rtol=1e-6)


def test_a_constant_channel_is_left_as_it_is(tmp_path):
    dark = images(30)
    dark[..., 1] = 7
    dataset = load(f"npz:{split_file(tmp_path / 'file.npz', train_images=dark)}")
    found = Pipeline.of(dataset)(jnp.asarray(dataset.train.images))
    np.testing.assert_allclose(found[..., 1], 0, atol=1e-6)


def test_npz_with_a_test_split_keeps_it(tmp_path):
    given = dict(np.load(split_file(tmp_path / "file.npz")).items())
    dataset = load(f"npz:{tmp_path / 'file.npz'}", validation=0.1)
    np.testing.assert_array_equal(dataset.test.images, given["test_images"])
    np.testing.assert_array_equal(dataset.test.labels, given["test_labels"])
    assert len(dataset.validation.labels) == 3  # a tenth of 30
    assert rows(dataset.train, dataset.validation) == rows((given["train_images"], given["train_labels"]))


def test_npz_of_images_and_labels_is_split(tmp_path):
    pictures = images(50)
    np.savez(tmp_path / "file.npz", images=pictures, labels=labels(50))
    dataset = load(f"npz:{tmp_path / 'file.npz'}", validation=0.25)
    assert [len(split.labels) for split in parts(dataset)] == [30, 10, 10]  # a fifth for testing, a quarter of the rest
    assert rows(*parts(dataset)) == rows((pictures, labels(50)))


def test_grey_images_need_no_channel_axis(tmp_path):
    grey = split_file(tmp_path / "grey.npz", train_images=images(30)[..., 0], test_images=images(9)[..., 0])
    assert load(f"npz:{grey}").train.images.shape == (27, 4, 5, 1)


def test_all_classes_count_even_if_validation_took_the_last_of_one(tmp_path):
    rare = labels(30)
    rare[0] = 7
    dataset = load(f"npz:{split_file(tmp_path / 'file.npz', train_labels=rare)}", validation=0.6)
    assert (dataset.num_classes, dataset.classes) == (4, ("0", "1", "2", "7"))
    assert 3 in dataset.validation.labels  # 7 is the last class
    assert 3 not in dataset.train.labels


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": images(30).astype(np.float32)}, "wanted uint8 images.*float32"),
        ({"train_labels": labels(30).astype(np.float32)}, "wanted integer labels.*float32"),
        ({"train_labels": labels(29)}, r"wanted images \(n, h, w, c\) and labels \(n,\).*\(29,\)"),
        ({"train_labels": labels(31)}, r"\(31,\)"),
        ({"train_labels": labels(30)[:, None]}, r"\(30, 1\)"),
        ({"train_images": images(30)[:, 0, 0]}, r"\(30, 3\)"),
        ({"train_images": images(30, h=6)}, r"\(6, 5, 3\).*\(4, 5, 3\)"),
        ({"train_images": images(30)[:0], "train_labels": labels(30)[:0]}, r"\(0,\)"),
        ({"test_labels": labels(9) - 1}, "the label -1 occurs only among the test images"),
        ({"test_labels": labels(9) * 0}, "two classes"),
        ({"test_labels": None, "train_images": None}, "lacks train_images, test_labels; it holds"),
        ({"train_labels": np.array([0, 1, None] * 10)}, "no readable .npz file"),
    ],
)
def test_npz_with_wrong_arrays_is_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        load(f"npz:{split_file(tmp_path / 'file.npz', **changes)}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("count", "message"), [(31, r"\(31,\)"), (29, r"\(29,\)"), ((30, 1), r"\(30, 1\)"), (0, r"\(0,\)")]
)
def test_npz_to_be_split_with_wrong_arrays_is_refused(tmp_path, count, message):
    np.savez(tmp_path / "file.npz", images=images(30), labels=np.resize(labels(30), count))
    with pytest.raises(UserError, match=message):
        load(f"npz:{tmp_path / 'file.npz'}")


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-1], lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"text\n"],
    ids=["truncated", "half", "empty", "text"],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_npz_is_refused(tmp_path, save, damage):
    file = tmp_path / "file.npz"
    save(file, images=images(40), labels=labels(40))
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match="no readable .npz file") as caught:
        load(f"npz:{file}")
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_any_flipped_bit_of_an_npz_is_noticed_or_harmless(tmp_path, save):
    """Time stamps and permissions in the ZIP format are covered by no checksum, and matter to nobody."""
    file = tmp_path / "file.npz"
    save(file, images=images(40) // 16, labels=labels(40))
    data, whole = file.read_bytes(), load(f"npz:{file}")
    for place in range(0, len(data), 3):
        file.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        try:
            found = load(f"npz:{file}")
        except UserError as error:
            assert "\n" not in str(error)
            continue
        assert_same(found, whole)


def test_what_is_no_npz_at_all_is_refused(tmp_path):
    np.save(tmp_path / "images.npy", images(3))
    for name in ("images.npy", ""):
        with pytest.raises(UserError, match="no readable .npz file"):
            load(f"npz:{tmp_path / name}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", "unknown data set 'digit'. Did you mean 'digits'"),
        ("imagenet", "unknown data set 'imagenet'. Did you mean 'tiny_imagenet'"),
        ("digits:0", "needed two digits or more after the colon, such as 5-9, got '0'"),
        ("digits:5-3", "needed two digits or more after the colon, such as 5-9, got '5-3'"),
        ("npz", "needs a file"),
        ("npz:/no/such/file.npz", "no file '/no/such/file.npz'"),
    ],
)
def test_names_that_say_nothing(name, message):
    with pytest.raises(UserError, match=message):
        load(name)


@pytest.mark.parametrize("validation", [0.0, 1.0, -0.1, 0.9999])
def test_a_validation_fraction_that_leaves_nothing(validation):
    with pytest.raises(UserError, match=f"validation.*{validation}"):
        load("digits", validation=validation)


@pytest.mark.parametrize(
    ("name", "classes", "shape", "mean", "deviation"),
    [
        # widely published constants of the whole training sets; of CIFAR-100 any half will do
        ("cifar10", 10, (32, 32, 3), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ("cifar100", 100, (32, 32, 3), (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        ("mnist", 10, (28, 28, 1), (0.1307,), (0.3081,)),
    ],
)
def test_known_data_sets(name, classes, shape, mean, deviation):
    folder = os.environ.get("AGOP_JAX_DATA")
    if not folder:
        pytest.skip("AGOP_JAX_DATA names no folder with cifar10.npz, cifar100.npz and mnist.npz")
    file = pathlib.Path(folder) / f"{name}.npz"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    dataset = load(f"npz:{file}", validation=0.02)
    assert (dataset.num_classes, dataset.train.images.shape[1:]) == (classes, shape)
    np.testing.assert_allclose(dataset.mean, mean, atol=0.003)
    np.testing.assert_allclose(dataset.std, deviation, atol=0.003)


def worst_deviation(ordered, shares):
    """Over all prefixes and classes: how far the count is from the prefix's length times the class's share."""
    counts = np.cumsum(ordered[:, None] == np.arange(len(shares)), axis=0)
    return np.abs(counts - np.arange(1, len(ordered) + 1)[:, None] * shares).max()


@pytest.mark.parametrize("seed", [0, 1])
def test_every_prefix_holds_the_classes_in_proportion(seed):
    given = RNG.permutation(np.repeat(np.arange(10), 30))
    order = balanced_order(given, seed)
    assert sorted(order) == list(range(300))
    assert worst_deviation(given[order], np.full(10, 0.1)) <= 1
    digits = load_digits().target
    assert worst_deviation(digits[balanced_order(digits, seed)], np.bincount(digits) / len(digits)) <= 1


def test_prefixes_of_classes_of_unequal_size():
    """Half an image from rounding, and half an image a class from which of them come first, times the class's share."""
    sizes = np.array([200, 5, 5, 5, 60])
    given = RNG.permutation(np.repeat(np.arange(5), sizes))
    shares = sizes / sizes.sum()
    assert worst_deviation(given[balanced_order(given, 0)], shares) <= 0.5 + 5 / 2 * shares.max()


def test_a_balanced_order_is_random():
    """Which image of a class comes first must not depend on its place in the file."""
    first = [balanced_order(labels(300, 10), seed)[0] for seed in range(20)]
    assert len(set(first)) > 15  # of 300; a chance of repeats like the birthday problem's


def test_subsets_are_nested_and_paired_by_seed():
    split = Split(images(60), labels(60))
    small, large = subset(split, 20, 3), subset(split, 45, 3)
    np.testing.assert_array_equal(small, large[:20])
    np.testing.assert_array_equal(small, subset(split, 20, 3))
    assert set(small) != set(subset(split, 20, 4))
    assert sorted(subset(split, None, 3)) == list(range(60))


@pytest.mark.parametrize("size", [0, -1, 61])
def test_subsets_that_cannot_be(size):
    with pytest.raises(UserError, match=f"wanted 1 to 60 .*got {size}"):
        subset(Split(images(60), labels(60)), size, 0)


def test_every_epoch_is_another_permutation():
    """23 images in batches of 5: four a epoch, three images left out."""
    indices = np.arange(100, 123)
    epochs = [np.concatenate([batch_indices(indices, 5, 4 * epoch + i, 7) for i in range(4)]) for epoch in range(3)]
    for epoch in epochs:
        assert len(set(epoch)) == 20
        assert set(epoch) <= set(indices)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert set().union(*map(set, epochs)) == set(indices)  # what one epoch left out another sees


def test_a_batch_depends_on_seed_and_step_alone():
    indices = np.arange(23)
    forward = [batch_indices(indices, 5, step, 7) for step in range(10)]
    resumed = [batch_indices(indices, 5, step, 7) for step in range(6, 10)]  # from the middle of the second epoch
    np.testing.assert_array_equal(forward[6:], resumed)
    assert not np.array_equal(forward, [batch_indices(indices, 5, step, 8) for step in range(10)])


def test_a_batch_larger_than_the_training_set_is_refused():
    assert len(batch_indices(np.arange(5), 5, 3, 0)) == 5
    with pytest.raises(UserError, match="batch_size 6 is larger than the training set of 5"):
        batch_indices(np.arange(5), 6, 0, 0)


def test_normalisation_is_that_of_numpy():
    pictures = images(3)
    mean, std = (0.5, 0.25, 0.1), (0.2, 0.3, 0.4)
    found = Pipeline(mean, std)(jnp.asarray(pictures))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, (pictures / 255.0 - mean) / std, rtol=1e-5, atol=1e-6)


def augmented(pictures, seed=0, **options):
    return np.asarray(Pipeline((0.0,), (1.0,), **options).augment(jnp.asarray(pictures), jax.random.key(seed)))


def windows(picture, pad):
    """By their bytes, all crops of the zero-padded image: (row, column), with 'flip' for the mirrored ones."""
    padded = np.pad(picture, ((pad, pad), (pad, pad), (0, 0)))
    h, w, _ = picture.shape
    places = [(i, j) for i in range(2 * pad + 1) for j in range(2 * pad + 1)]
    plain = {padded[i : i + h, j : j + w].tobytes(): (i, j) for i, j in places}
    return plain | {padded[i : i + h, j : j + w][:, ::-1].tobytes(): (i, j, "flip") for i, j in places}


def test_augmentation_crops_true_windows_and_mirrors_half():
    """800 copies of one image of distinct pixels: 25 windows, so 32 of each are expected, with a deviation of 5.5."""
    picture = np.arange(1, 4 * 6 * 2 + 1, dtype=np.uint8).reshape(4, 6, 2)
    known = windows(picture, 2)
    found = [known[image.tobytes()] for image in augmented(np.stack([picture] * 800), pad=2, flip=True)]
    counts = np.bincount([5 * place[0] + place[1] for place in found], minlength=25)
    assert counts.shape == (25,)
    assert np.abs(counts - 32).max() < 5 * 5.5
    assert abs(sum(len(place) == 3 for place in found) - 400) < 5 * 14.2  # sqrt(800 / 4)


@pytest.mark.parametrize(("options", "allowed"), [({"pad": 1}, 2), ({"flip": True}, 3)])
def test_each_augmentation_alone(options, allowed):
    """Crops without mirrors; mirrors of the whole image."""
    picture = np.arange(1, 13, dtype=np.uint8).reshape(3, 4, 1)
    pad = options.get("pad", 0)
    found = {windows(picture, pad)[image.tobytes()] for image in augmented(np.stack([picture] * 200), **options)}
    assert found == {place for place in windows(picture, pad).values() if pad == 0 or len(place) == allowed}


def test_no_augmentation_is_the_identity():
    pictures = images(5)
    np.testing.assert_array_equal(augmented(pictures), pictures)


def test_augmentation_is_a_function_of_the_key():
    pictures = images(20)
    first, again, other = (augmented(pictures, seed, pad=2, flip=True) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
