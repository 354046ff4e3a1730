"""Features on disk: what comes back, what is refused, and the export for users of the PyTorch project."""

import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

import agop_jax
from agop_jax import models
from agop_jax.core import arrays, files, tensors, trees
from agop_jax.core.errors import UserError
from agop_jax.features.layer import LayerFeatures

ARRAYS = ("kernel", "gradient_gram", "standard_error", "patch_agop", "bias")
ABOUT = {"model": {"name": "small_cnn", "features": [4, 8]}, "num_images": 7, "accuracy": 0.1 + 0.2}


def draw(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape, np.float32))


def gram(*shape):
    factor = draw(*shape)
    return jnp.matmul(factor, jnp.swapaxes(factor, -1, -2))


def layers():
    """One of each kind that `extract` makes; a network that is itself a Dense has the empty path."""
    return [
        LayerFeatures(draw(3, 2, 3, 4), gram(4, 4), 7, "Conv_0", bias=draw(4)),
        LayerFeatures(draw(3, 3, 2, 6), gram(2, 3, 3), 7, "block/Conv_0", groups=2),
        LayerFeatures(draw(5, 3, 3, 2, 4), gram(5, 4, 4), 7, "scan/Conv_0", stacked=1),
        LayerFeatures(draw(2, 2, 3, 4), gram(4, 4), 7, "probed", standard_error=jnp.float32(1e-42)),
        LayerFeatures(draw(3, 2), None, 7, "patches", patch_agop=gram(3, 3)),
        LayerFeatures(jnp.array([[-0.0, 1e-42], [3.4e38, 1 / 3]]), gram(2, 2), 7, ""),
    ]


def as_features(found):
    return {layer.path: layer for layer in found}


def contents(features):
    """Everything a layer holds, arrays as (shape, type, bytes)."""
    whole = lambda value: None if value is None else (value.shape, value.dtype, np.asarray(value).tobytes())
    static = lambda layer: (layer.count, layer.path, layer.groups, layer.stacked)
    return [(path, static(f), [whole(getattr(f, name)) for name in ARRAYS]) for path, f in features.items()]


def files_of(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "features"
    agop_jax.save_features(path, as_features(layers()), ABOUT)
    return path


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "features")


def test_features_come_back_bit_for_bit_and_in_order(saved):
    assert contents(agop_jax.load_features(saved)) == contents(as_features(layers()))


def files_layers():
    """Those, and one with companions, whose names have slashes."""
    companions = {"params/BatchNorm_0/scale": draw(4), "others/BatchNorm_0/mean": draw(4)}
    return [*layers(), LayerFeatures(draw(1, 1, 2, 4), gram(4, 4), 7, "normalised", companions=companions)]


def test_one_file_holds_the_same_bit_for_bit_and_in_order(tmp_path):
    features = as_features(files_layers())
    agop_jax.save_features(tmp_path / "new" / "a.safetensors", features, ABOUT)
    found = agop_jax.load_features(tmp_path / "new" / "a.safetensors")
    assert contents(found) == contents(features)
    for path, layer in features.items():
        assert found[path].companions.keys() == layer.companions.keys()
        assert all(np.array_equal(found[path].companions[name], value) for name, value in layer.companions.items())
    about = agop_jax.load_metadata(tmp_path / "new" / "a.safetensors")
    assert {name: about[name] for name in ABOUT} == ABOUT
    assert about["versions"]["jax"] == jax.__version__
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "a.safetensors"]


def test_a_file_names_its_arrays_for_other_programs(tmp_path):
    agop_jax.save_features(tmp_path / "a.safetensors", as_features(files_layers()[:2]))
    stored = load_file(tmp_path / "a.safetensors")
    assert sorted(stored) == [
        "Conv_0.bias",
        "Conv_0.gradient_gram",
        "Conv_0.kernel",
        "block/Conv_0.gradient_gram",
        "block/Conv_0.kernel",
    ]
    np.testing.assert_array_equal(stored["Conv_0.kernel"], layers()[0].kernel)


def test_names_that_would_be_one_are_refused(tmp_path):
    both = [
        LayerFeatures(draw(2, 3), gram(3, 3), 7, "a", companions={"bias": draw(3)}),
        LayerFeatures(draw(2, 3), gram(3, 3), 7, "a.companions", bias=draw(3)),
    ]
    with pytest.raises(UserError, match="two layers have one name"):
        agop_jax.save_features(tmp_path / "a.safetensors", as_features(both))
    assert not list(tmp_path.iterdir())


def test_damage_to_a_file_is_one_line_that_names_it(tmp_path):
    """Every cut, and a changed bit in every part of the file."""
    file = tmp_path / "a.safetensors"
    agop_jax.save_features(file, as_features(files_layers()), ABOUT)
    data, wanted = file.read_bytes(), contents(as_features(files_layers()))
    damaged = [data[:size] for size in (0, 4, 100, len(data) - 1)]
    damaged += [data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :] for at in range(0, len(data), 37)]
    for content in damaged:
        file.write_bytes(content)
        try:
            found = agop_jax.load_features(file)
        except UserError as error:
            assert str(file) in str(error)
            assert "\n" not in str(error)
            continue
        assert contents(found) == wanted
    file.unlink()
    with pytest.raises(UserError, match="no file"):
        agop_jax.load_features(file)
    save_file({"a": np.ones(3)}, file)
    with pytest.raises(UserError, match="was not written by agop_jax"):
        agop_jax.load_features(file)


def test_a_relative_path_and_a_missing_parent_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    features = as_features(layers()[:1])
    agop_jax.save_features("new/parent/features", features)
    assert contents(agop_jax.load_features("new/parent/features")) == contents(features)


def test_metadata_come_back_with_the_versions_that_wrote_them(saved):
    found = agop_jax.load_metadata(saved)
    assert found["versions"]["jax"] == jax.__version__
    assert {name: found[name] for name in ABOUT} == ABOUT


def test_what_is_loaded_is_not_bound_to_a_device(saved):
    """Arrays committed to a device would make every function compiled for fresh ones compile again."""
    found = agop_jax.load_features(saved)["Conv_0"]
    double = jax.jit(lambda x: 2 * x)
    double(draw(*found.kernel.shape))
    double(found.kernel)
    assert double._cache_size() == 1


@pytest.mark.parametrize("there", ["features", "file", "file.safetensors"])
def test_nothing_saved_is_overwritten(copy, tmp_path, there):
    for name in ("file", "file.safetensors"):
        (tmp_path / name).write_text("precious")
    before = files_of(tmp_path)
    with pytest.raises(UserError, match="exists already"):
        agop_jax.save_features(tmp_path / there, as_features(layers()[:1]))
    assert files_of(tmp_path) == before


def truncate(data):
    return data[:-1]


def empty(data):
    return b""


def flip(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("damage", [None, truncate, empty, flip], ids=["missing", "truncated", "emptied", "flipped"])
def test_damage_to_any_file_is_one_line_that_names_it(copy, damage):
    for name, data in files_of(copy).items():
        file = copy / name
        if damage is None:
            file.unlink()
        elif data:  # Orbax leaves an empty file or two, which have nothing to lose but themselves
            file.write_bytes(damage(data))
        else:
            file.write_bytes(b"\0")
        with pytest.raises(UserError) as caught:
            agop_jax.load_features(copy)
        assert str(file) in str(caught.value)
        assert "\n" not in str(caught.value)
        file.write_bytes(data)
    agop_jax.load_features(copy)


def test_any_flipped_bit_of_the_metadata_is_noticed_or_harmless(copy):
    file, wanted = copy / "metadata.json", contents(as_features(layers()))
    data = file.read_bytes()
    for place in range(0, len(data), 3):  # every bit of every character of the alphabet comes up
        file.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        try:
            found, about = agop_jax.load_features(copy), agop_jax.load_metadata(copy)
        except UserError as error:
            assert "\n" not in str(error)
            continue
        assert contents(found) == wanted
        assert {name: about[name] for name in ABOUT} == ABOUT


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"format": 99}', "{}"])
def test_metadata_of_something_else_is_refused(copy, content):
    (copy / "metadata.json").write_text(content)
    with pytest.raises(UserError, match=r"metadata\.json"):
        agop_jax.load_features(copy)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("0/kernel", [3, 2, 3, 5]),
        ("0/kernel", [3, 2, 3, 3]),
        ("0/kernel", [2, 3, 3, 4]),
        ("0/kernel", [72]),
        ("0/missing", [4]),
        ("1/gradient_gram", None),
    ],
)
def test_metadata_that_state_other_arrays_are_refused(copy, name, shape):
    described = json.loads((copy / "metadata.json").read_text())
    described.pop("checksum")
    if shape:
        described["shapes"][name] = [shape, "float32"]
    else:
        del described["shapes"][name]
    (copy / "metadata.json").write_text(arrays._sealed(described))
    with pytest.raises(UserError, match=rf"{copy}': wanted {name} of shape"):
        agop_jax.load_features(copy)


def test_a_directory_that_is_not_there_or_not_ours(tmp_path):
    with pytest.raises(UserError, match="nothing was saved there"):
        agop_jax.load_features(tmp_path / "none")
    with pytest.raises(UserError, match="nothing was saved there"):
        agop_jax.load_features(tmp_path)


def test_other_arrays_are_no_features(tmp_path):
    arrays.save_arrays(tmp_path / "donor", {"params": {"kernel": draw(2, 3)}}, {"step": 3})
    found, about = arrays.load_arrays(tmp_path / "donor")
    np.testing.assert_array_equal(found["params"]["kernel"], draw(2, 3))
    assert about == {"step": 3}
    with pytest.raises(UserError, match="no features"):
        agop_jax.load_features(tmp_path / "donor")


def fail(*_, **__):
    raise OSError("disk full")


@pytest.mark.parametrize(
    ("save", "owner", "part"),
    [
        (agop_jax.save_features, ocp.StandardCheckpointer, "save"),
        (agop_jax.save_features, arrays, "_checksums"),  # with all arrays written
        (agop_jax.save_matrices, np, "savetxt"),
        (agop_jax.save_matrices, np, "savez"),  # with all CSV files written
    ],
)
def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch, save, owner, part):
    monkeypatch.setattr(owner, part, fail)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path / "new", as_features(layers()[:1]))
    assert list(tmp_path.iterdir()) == []


def reference_convention(layer):
    """NFM and (sum over 11 images of the AGOP)^(1/2), with torch's (cout, cin, kh, kw) filters, in float64."""
    filters = np.asarray(layer.kernel, np.float64).transpose(3, 2, 0, 1).reshape(layer.kernel.shape[-1], -1)
    values, vectors = np.linalg.eigh(11 * filters.T @ np.asarray(layer.gradient_gram, np.float64) @ filters)
    return filters.T @ filters, (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Two convolutions among layers that have no place in the older project's files."""
    second = LayerFeatures(draw(1, 2, 4, 3), gram(3, 3), 7, "Conv_1")
    path = tmp_path_factory.mktemp("exported") / "dense"
    agop_jax.save_matrices(path, as_features([*layers()[:3], second, *layers()[4:]]))
    return path, [layers()[0], second]


@pytest.mark.parametrize("index", [0, 1])
def test_export_is_in_the_older_project_s_convention(exported, index):
    path, convolutions = exported
    for name, wanted in zip(("nfm", "agop"), reference_convention(convolutions[index]), strict=True):
        found = np.loadtxt(path / name / f"layer_{index}.csv", delimiter=",")
        # the root turns float32's rounding of the zero eigenvalues, 1e-7, into 3e-4
        np.testing.assert_allclose(found, wanted, atol=(1e-6 if name == "nfm" else 1e-3) * np.abs(wanted).max())


@pytest.mark.parametrize("index", [0, 1])
def test_export_has_our_convention_beside_it(exported, index):
    path, convolutions = exported
    layer = convolutions[index]
    weights, gradient_gram = np.reshape(layer.kernel, (-1, layer.kernel.shape[-1])), np.asarray(layer.gradient_gram)
    with np.load(path / "dense.npz") as dense:
        assert dense["paths"].tolist() == ["Conv_0", "Conv_1"]
        np.testing.assert_allclose(dense[f"nfm_{index}"], weights @ weights.T, atol=1e-5)
        np.testing.assert_allclose(dense[f"agop_{index}"], weights @ gradient_gram @ weights.T, atol=1e-4)


def test_export_writes_no_other_layers(exported):
    names = {str(name) for name in files_of(exported[0])}
    assert names == {"dense.npz", *(f"{matrix}/layer_{i}.csv" for matrix in ("nfm", "agop") for i in (0, 1))}


def test_export_refuses_what_is_there_and_what_has_no_place(copy, tmp_path):
    before = files_of(tmp_path)
    with pytest.raises(UserError, match="exists already"):
        agop_jax.save_matrices(copy, as_features(layers()))
    with pytest.raises(UserError, match="wanted 2-D convolutions without groups, got block/Conv_0, scan/Conv_0"):
        agop_jax.save_matrices(tmp_path / "new", as_features(layers()[1:3]))
    assert files_of(tmp_path) == before


def test_vgg11_is_twelve_times_smaller_than_dense_matrices(tmp_path):
    """Random numbers, which no compression makes smaller than trained weights."""
    model, images = models.create("vgg11", 10), jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images)["params"])
    convolutions = {path: leaf.shape for path, leaf in trees.flatten(shapes).items() if leaf.ndim == 4}
    features = [
        LayerFeatures(draw(*shape), draw(shape[-1], shape[-1]), 1, path) for path, shape in convolutions.items()
    ]
    agop_jax.save_features(tmp_path / "vgg11", as_features(features))
    # k = 9 cin of the eight layers; NFM and AGOP, four bytes an entry: 608 MB
    dense = sum(2 * 4 * (9 * cin) ** 2 for cin in (3, 64, 128, 256, 256, 512, 512, 512))
    assert len(convolutions) == 8
    assert 12 * sum(map(len, files_of(tmp_path).values())) < dense


def test_features_written_by_the_first_version_are_read():
    """Written by commit 9f7a291, with the same numbers beside them in a plain archive."""
    stored = pathlib.Path(__file__).parent / "fixtures" / "features_version_1"
    features, numbers = agop_jax.load_features(stored), np.load(f"{stored}.npz")
    assert [(layer.path, layer.groups, layer.count) for layer in features.values()] == [
        ("Conv_0", 1, 2),
        ("Conv_1", 2, 2),
        ("Dense_0", 1, 2),
    ]
    for path, layer in features.items():
        for name in ("kernel", "gradient_gram", "bias"):
            np.testing.assert_array_equal(getattr(layer, name), numbers[f"{path}|{name}"])
    assert agop_jax.load_metadata(stored)["written_by"] == "9f7a291"


ELSEWHERE = """
import sys
import jax, jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from agop_jax.core import arrays

mesh = Mesh(jax.devices(), "x")
places = {
    "replicated": NamedSharding(mesh, PartitionSpec()),
    "spread": NamedSharding(mesh, PartitionSpec("x")),
    "fifth": jax.devices()[5],
}
for name, place in places.items():
    tree = {"params": {"kernel": jax.device_put(jnp.arange(48.0).reshape(16, 3), place)}}
    arrays.save_arrays(f"{sys.argv[1]}/{name}", tree, {"on": name})
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Arrays that a process with eight devices wrote; this one has a single device."""
    path = tmp_path_factory.mktemp("elsewhere")
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", ELSEWHERE, path], env=environment, check=True, capture_output=True)
    return path


def rename_device(directory, name):
    """As if the arrays had been written on a device of this name."""
    file = directory / "arrays" / "_sharding"
    assert "cpu:5" in file.read_text()
    file.write_text(file.read_text().replace("cpu:5", name))
    described = json.loads((directory / "metadata.json").read_text())
    described.pop("checksum")
    described["files"] = {k: v for k, v in arrays._checksums(directory).items() if k != "metadata.json"}
    (directory / "metadata.json").write_text(arrays._sealed(described))


@pytest.mark.parametrize("name", ["replicated", "spread", "fifth", "cuda:0", "TPU_3(process=1,(0,1,0,0))"])
def test_arrays_of_other_devices_load_on_this_one(elsewhere, tmp_path, name):
    stored = name if name in ("replicated", "spread") else "fifth"
    shutil.copytree(elsewhere / stored, tmp_path / "donor")
    if name not in ("replicated", "spread", "fifth"):
        rename_device(tmp_path / "donor", name)
    tree, about = arrays.load_arrays(tmp_path / "donor")
    kernel = tree["params"]["kernel"]
    np.testing.assert_array_equal(kernel, np.arange(48.0).reshape(16, 3))
    assert (kernel.devices(), about) == ({jax.devices()[0]}, {"on": stored})


@pytest.mark.parametrize(
    "name", ["run[1]", "a[!b]{c,d}", "s*r", "what?", "two words", "größe", "%20", "back\\slash", "a'b\"c", "[", "$HOME"]
)
def test_every_path_will_do(tmp_path, name):
    """Brackets and the like are characters of a name, and no pattern."""
    features = as_features(layers()[:2])
    (tmp_path / "run1").mkdir()
    agop_jax.save_features(tmp_path / name / "features", features, ABOUT)
    assert contents(agop_jax.load_features(tmp_path / name / "features")) == contents(features)
    assert not list((tmp_path / "run1").iterdir())


def test_whole_files_are_never_called_damaged(copy, monkeypatch):
    """What fails for another reason than damage is told, and nobody is told to delete anything."""
    with monkeypatch.context() as patch:
        patch.setattr(ocp.StandardCheckpointer, "restore", fail)
        with pytest.raises(UserError, match=r"cannot be read here \(disk full\), though its files are whole") as caught:
            agop_jax.load_features(copy)
        assert "delete" not in str(caught.value)
        assert f"jax {jax.__version__}" in str(caught.value)
    with monkeypatch.context() as patch:
        patch.setattr(arrays.Path, "read_bytes", refuse)
        with pytest.raises(UserError, match="cannot be read .*Permission denied.*: make it readable") as caught:
            agop_jax.load_metadata(copy)
        assert "delete" not in str(caught.value)
    (copy / "metadata.json").write_text('{"format": 2}')
    with pytest.raises(UserError, match="wanted format 1, got 2: read it with the version of agop_jax") as caught:
        agop_jax.load_features(copy)
    assert "delete" not in str(caught.value)
    with pytest.raises(UserError, match="exists already: choose another path, or move it away"):
        agop_jax.save_features(copy, as_features(layers()[:1]))


def refuse(*_, **__):
    raise PermissionError(errno.EACCES, "Permission denied")


def test_a_full_disk_leaves_no_thread_behind(tmp_path, monkeypatch):
    """Threads that waited for Orbax's directory would keep the process from ending."""
    make, before = os.mkdir, set(threading.enumerate())

    def full(path, *arguments, **options):
        if "orbax" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        make(path, *arguments, **options)

    monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(UserError, match="cannot be written, its disk or your quota is full: make room there"):
        agop_jax.save_features(tmp_path / "features", as_features(layers()[:1]))
    assert set(threading.enumerate()) <= before
    assert not os.listdir(tmp_path)


def save_tensors(path, rows):
    tensors.write_tensors(path, {"a": np.ones(2, np.float32)}, {"metadata": rows, "versions": {}})


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("write", [files.write_rows, save_tensors], ids=["rows", "tensors"])
def test_a_file_that_has_no_space(write, number, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(number, os.strerror(number))

    files.write_rows(tmp_path / "kept.csv", [{"a": 1}])
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, full)
    with pytest.raises(UserError, match="cannot be written, its disk or your quota is full"):
        write(tmp_path / "file", [{"a": 2}])
    assert os.listdir(tmp_path) == ["kept.csv"]


def test_an_error_that_is_no_full_disk_stays_what_it_is(tmp_path):
    with pytest.raises(ZeroDivisionError), files.writing_to(tmp_path):
        raise ZeroDivisionError("no space")
