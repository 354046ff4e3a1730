"""Donors from elsewhere: what a file must hold, what is said when it does not, and the accuracy it states."""

import json
import os
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from agop_jax import data
from agop_jax.core import trees
from agop_jax.core.errors import UserError
from agop_jax.data import Pipeline
from agop_jax.experiments import donors
from agop_jax.experiments.settings import Config
from agop_jax.models import create
from agop_jax.models.normalisation import IMAGENET_MEAN, IMAGENET_STD
from agop_jax.models.pretrained import Pretrained, load_pretrained, save_pretrained
from agop_jax.models.torch_names import FAMILIES, LEAVES


def real(name: str) -> Path:
    """A file of real data, if there is any."""
    folder = os.environ.get("AGOP_JAX_DATA", "")
    if not (file := Path(folder) / name).is_file():
        pytest.skip(f"set AGOP_JAX_DATA to a folder with {name}")
    return file


def test_public_resnet20_has_its_stated_accuracy():
    """91.73 % is what its authors state (github.com/akamaster/pytorch_resnet_cifar10, ResNet20: 8.27 % error)."""
    donor = load_pretrained("resnet20", f"npz:{real('resnet20_cifar10.npz')}")
    with np.load(real("cifar10.npz")) as file:
        images, labels = file["test_images"], file["test_labels"]
    pipeline = Pipeline(donor.mean, donor.std)
    predict = jax.jit(lambda batch: donor.model.apply(donor.variables, pipeline(batch)).argmax(-1))
    batches = [slice(start, start + 500) for start in range(0, len(labels), 500)]
    hits = sum(int((predict(jnp.asarray(images[batch])) == labels[batch]).sum()) for batch in batches)
    assert abs(hits / len(labels) - 0.9173) < 0.001


def test_images_are_shown_as_the_donor_knows_them():
    """Not with the constants of the data set at hand."""
    dataset = data.load("digits", validation=0.2)
    donor = Pretrained(create("small_cnn", 10), {}, (0.25,), (0.5,))
    images = donors.donor_pipeline(Config(), dataset, donor)(jnp.full((1, 2, 2, 1), 255, jnp.uint8))
    np.testing.assert_allclose(images, (1 - 0.25) / 0.5)


@pytest.fixture(scope="module")
def small() -> tuple[dict[str, np.ndarray], Pretrained]:
    """A ResNet-20 of random weights as a PyTorch state dict, and the same here."""
    model = create("resnet20", 10, width=0.125)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    random = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: random.uniform(0.5, 1.5, leaf.shape).astype(np.float32), shapes)
    names, state = FAMILIES[type(model)].names(model), {}
    for path, leaf in trees.flatten(variables).items():
        layer, _, kind = path.partition("/")[2].rpartition("/")
        state[f"{names[layer]}.{LEAVES[kind]}"] = leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf.T
    return state, Pretrained(model, variables, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def refused(name: str, source: str, **options) -> str:
    with pytest.raises(UserError) as caught:
        load_pretrained(name, source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_state_dict_comes_back(small, tmp_path):
    state, network = small
    counted = {**state, "bn1.num_batches_tracked": np.array(7)}
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in counted.items()}, tmp_path / "a.safetensors")
    loaded = load_pretrained("resnet20", f"safetensors:{tmp_path}/a.safetensors", width=0.125, mean=(0.5,) * 3)
    assert (loaded.model, loaded.mean, loaded.std) == (network.model, (0.5,) * 3, IMAGENET_STD)
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded.variables, network.variables))


def test_an_experiments_donor_is_a_source(small, tmp_path):
    _, network = small
    save_pretrained(tmp_path / "donor", network, {"test_accuracy": 0.5})
    loaded = load_pretrained("resnet20", f"orbax:{tmp_path}/donor")
    assert (loaded.model, loaded.mean, loaded.std) == (network.model, network.mean, network.std)
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded.variables, network.variables))
    assert "holds a 'resnet20', wanted 'resnet32'" in refused("resnet32", f"orbax:{tmp_path}/donor")
    assert "metadata.json' is missing" in refused("resnet20", f"orbax:{tmp_path}")


def without(state, name):
    return {tensor: array for tensor, array in state.items() if tensor != name}


# what is wrong -> the state dict with it, and what is said
DAMAGE = {
    "missing": (lambda s: without(s, "layer1.0.bn1.bias"), "lacks the tensor 'layer1.0.bn1.bias' of model 'resnet20'"),
    "no head": (lambda s: without(s, "fc.weight"), "lacks the tensor 'fc.weight'"),
    "extra": (lambda s: s | {"layer4.0.conv1.weight": np.ones(3)}, "holds the tensor 'layer4.0.conv1.weight', which"),
    "shape": (
        lambda s: s | {"layer2.0.conv1.weight": np.ones((4, 2, 5, 5))},
        r"tensor 'layer2.0.conv1.weight': model 'resnet20' wants (4, 2, 3, 3), got (4, 2, 5, 5)",
    ),
    "head's classes": (
        lambda s: s | {"fc.bias": np.ones(5)},
        "tensor 'fc.bias': model 'resnet20' wants (10,), got (5,)",
    ),
    "grey": (
        lambda s: s | {"conv1.weight": np.ones((2, 1, 3, 3))},
        "wanted a mean and std for each of its 1 channels, got 3 and 3",
    ),
    "nothing": (lambda s: {}, "lacks the tensor 'conv1.weight'"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_state_dict_that_does_not_fit(case, small, tmp_path):
    damage, said = DAMAGE[case]
    np.savez(tmp_path / "a.npz", **damage(small[0]))
    assert said in refused("resnet20", f"npz:{tmp_path}/a.npz", width=0.125)


def test_wrong_number_of_classes_and_unknown_sources(small, tmp_path):
    np.savez(tmp_path / "a.npz", **small[0])
    source = f"npz:{tmp_path}/a.npz"
    assert "has 10 classes, wanted 100" in refused("resnet20", source, width=0.125, num_classes=100)
    assert "model 'resnet20' wants (16," in refused("resnet20", source)
    assert "unknown model 'resnet21'" in refused("resnet21", source)
    assert "unknown field of model 'resnet20' 'depth'" in refused("resnet20", source, depth=32)
    assert "unknown donor source 'nzp'. Did you mean 'npz'?" in refused("resnet20", "nzp:a")
    assert "wanted npz:NAME" in refused("resnet20", "npz")


def test_unreadable_files(small, tmp_path):
    whole, cut = tmp_path / "a.safetensors", tmp_path / "cut.safetensors"
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in small[0].items()}, whole)
    for bytes_left in (-100, 100, 4, 0):
        cut.write_bytes(whole.read_bytes()[:bytes_left])
        assert f"{str(cut)!r} is no readable .safetensors file" in refused("resnet20", f"safetensors:{cut}")
        assert f"{str(cut)!r} is no readable .npz file" in refused("resnet20", f"npz:{cut}")
    assert "no file '/nowhere.npz'" in refused("resnet20", "npz:/nowhere.npz")
    assert "no file '/nowhere.safetensors'" in refused("resnet20", "safetensors:/nowhere.safetensors")
    np.savez(tmp_path / "pickled.npz", **{"conv1.weight": np.array([None])})
    assert "no readable .npz file" in refused("resnet20", f"npz:{tmp_path}/pickled.npz")


def hub(*modules: str):
    """Modules of huggingface_hub."""
    reason = "reads from the hub: pip install -e '.[hub]'"
    return [pytest.importorskip(f"huggingface_hub.{module}", reason=reason) for module in modules]


def test_hub_offline_ends_at_once(monkeypatch):
    constants, utils = hub("constants", "utils")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    asked = []
    monkeypatch.setattr(utils, "get_session", _counted(utils.get_session, asked))
    assert "not cached and http://127.0.0.1:9 cannot be reached" in refused("vgg11", "hub:nobody/nothing")
    assert len(asked) == 1  # no retries
    assert "wanted OWNER/NAME" in refused("vgg11", "hub:a/b/c")


def _counted(function, calls):
    def counted():
        calls.append(1)
        return function()

    return counted


@pytest.fixture
def hub_cache(small, tmp_path, monkeypatch):
    """A cache as huggingface_hub lays it out; nothing is asked of the network. Writes config.json, loads the donor."""
    (constants,) = hub("constants")
    snapshot = tmp_path / "models--timm--small" / "snapshots" / ("0" * 40)
    (tmp_path / "models--timm--small" / "refs").mkdir(parents=True)
    (tmp_path / "models--timm--small" / "refs" / "main").write_text("0" * 40)
    snapshot.mkdir(parents=True)
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in small[0].items()}
    save_file(tensors, snapshot / "model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def write(content):
        text = content if isinstance(content, str) else json.dumps(content)
        (snapshot / "config.json").write_text(text)
        return "hub:timm/small"

    return write


def test_hub_reads_the_cache_and_the_normalisation(small, hub_cache):
    source = hub_cache('{"pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}}')
    loaded = load_pretrained("resnet20", source, width=0.125)
    assert (loaded.mean, loaded.std) == ((0.5,) * 3, (0.25,) * 3)
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded.variables, small[1].variables))


A, B = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
STATED = {
    "timm": ({"pretrained_cfg": {"mean": A, "std": B}}, A, B),
    "timm, older": ({"architecture": "resnet20", "mean": A, "std": B}, A, B),
    "default_cfg": ({"default_cfg": {"mean": A, "std": B}}, A, B),
    "empty section": ({"pretrained_cfg": {}, "mean": A, "std": B}, A, B),
    "null section": ({"pretrained_cfg": None, "image_mean": A, "image_std": B}, A, B),
    "transformers": ({"image_mean": A, "image_std": B}, A, B),
    "transformers inside": ({"pretrained_cfg": {"image_mean": A, "image_std": B, "mean": None}}, A, B),
    "one number": ({"mean": 0.5, "std": 1}, [0.5] * 3, [1.0] * 3),
    "mixed": ({"mean": 0, "std": [1 / 255] * 3}, [0.0] * 3, [1 / 255] * 3),
    "nothing": ({"architecture": "resnet20"}, IMAGENET_MEAN, IMAGENET_STD),
    "nulls": ({"pretrained_cfg": {"mean": None, "std": None}}, IMAGENET_MEAN, IMAGENET_STD),
}


@pytest.mark.parametrize(("content", "mean", "std"), STATED.values(), ids=STATED)
def test_the_constants_are_those_that_a_hub_file_states(content, mean, std, hub_cache):
    loaded = load_pretrained("resnet20", hub_cache(content), width=0.125)
    assert (loaded.mean, loaded.std) == (tuple(mean), tuple(std))


UNCLEAR = {
    "mean alone": ({"pretrained_cfg": {"mean": A}}, "states a mean and no std: set config.donor.std"),
    "std alone": ({"image_std": B, "image_mean": None}, "states a std and no mean: set config.donor.mean"),
    "list at the top": ([{"mean": A, "std": B}], "wanted config.json to hold a JSON object, got list"),
    "list in its place": ({"pretrained_cfg": [A, B]}, "wanted pretrained_cfg of config.json to be an object, got list"),
    "text at the top": ('"mean"', "wanted config.json to hold a JSON object, got str"),
    "null at the top": ("null", "wanted config.json to hold a JSON object, got NoneType"),
    "no JSON": ("{", "is no readable JSON file"),
    "text": ({"mean": "imagenet", "std": B}, "wanted numbers as its mean, got 'imagenet': set config.donor.mean"),
    "texts": ({"mean": A, "std": ["a", "b", "c"]}, "wanted numbers as its std, got ['a', 'b', 'c']"),
    "truth": ({"mean": True, "std": B}, "wanted numbers as its mean, got True"),
    "nested": ({"mean": {"red": 0.5}, "std": B}, "wanted numbers as its mean, got {'red': 0.5}"),
    "null inside": ({"mean": [0.5, None, 0.5], "std": B}, "wanted numbers as its mean, got [0.5, None, 0.5]"),
    "too few": ({"mean": A[:2], "std": B}, "wanted a mean and std for each of its 3 channels, got 2 and 3"),
    "grey levels": (
        {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]},
        "wanted its mean in units of pixel / 255 (0 to 1), got 123.675, 116.28, 103.53: divide by 255",
    ),
    "not a number": (
        '{"mean": NaN, "std": 0.5}',
        "wanted its mean in units of pixel / 255 (0 to 1), got nan, nan, nan",
    ),
}


@pytest.mark.parametrize(("content", "said"), UNCLEAR.values(), ids=UNCLEAR)
def test_a_hub_file_that_states_something_else_is_one_line(content, said, hub_cache):
    source = hub_cache(content)
    assert said in refused("resnet20", source, width=0.125)
    if "JSON" not in said and "config.json" not in said:  # what a user states comes first
        loaded = load_pretrained("resnet20", source, width=0.125, mean=A, std=B)
        assert (loaded.mean, loaded.std) == (tuple(A), tuple(B))


UNITS = {
    "mean of grey levels": ({"mean": (123.7, 116.3, 103.5)}, "mean in units of pixel / 255 (0 to 1), got 123.7, 116.3"),
    "std of grey levels": ({"std": (58.4, 57.1, 57.4)}, "std in units of pixel / 255 (above 0, up to 1), got 58.4, 57"),
    "one of three": ({"mean": (0.5, 0.5, 127.0)}, "got 0.5, 0.5, 127: divide by 255"),
    "zero": ({"std": (0.2, 0.0, 0.2)}, "std in units of pixel / 255 (above 0, up to 1), got 0.2, 0, 0.2: set"),
    "negative": ({"mean": (-0.5, 0.5, 0.5)}, "mean in units of pixel / 255 (0 to 1), got -0.5, 0.5, 0.5: set"),
    "infinite": ({"std": (0.2, float("inf"), 0.2)}, "got 0.2, inf, 0.2: set config.donor.std"),
    "integers": ({"mean": (124, 116, 104)}, "got 124, 116, 104: divide by 255"),
}


@pytest.mark.parametrize(("constants", "said"), UNITS.values(), ids=UNITS)
def test_constants_in_other_units_are_refused(constants, said, small, tmp_path):
    np.savez(tmp_path / "a.npz", **small[0])
    assert said in refused("resnet20", f"npz:{tmp_path}/a.npz", width=0.125, **constants)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "_orig_mod.module.", "net.backbone."])
def test_a_prefix_that_all_tensors_share_is_left_out(prefix, small, tmp_path):
    state = {**small[0], "bn1.num_batches_tracked": np.array(7)}
    prefixed = {prefix + name: tensor for name, tensor in state.items()}
    np.savez(tmp_path / "a.npz", **prefixed, n_averaged=np.array(3))  # as AveragedModel counts, beside 'module.'
    loaded = load_pretrained("resnet20", f"npz:{tmp_path}/a.npz", width=0.125)
    assert loaded.model == small[1].model
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded.variables, small[1].variables))


def test_messages_name_tensors_as_the_file_does(small, tmp_path):
    state = {f"module.{name}": tensor for name, tensor in small[0].items()}
    np.savez(tmp_path / "a.npz", **state | {"module.extra": np.ones(3)})
    said = "holds the tensor 'module.extra', which model 'resnet20' does not have"
    assert said in refused("resnet20", f"npz:{tmp_path}/a.npz", width=0.125)
    np.savez(tmp_path / "b.npz", **small[0], **{"linear.bias": np.ones(10)})
    assert "holds 'fc.bias' and 'linear.bias', which are one" in refused(
        "resnet20", f"npz:{tmp_path}/b.npz", width=0.125
    )
    np.savez(tmp_path / "c.npz", **{"conv1.weight": small[0]["conv1.weight"]})
    assert "lacks the tensor 'fc.weight'" in refused("resnet20", f"npz:{tmp_path}/c.npz", width=0.125)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "bool", "complex64"])
@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_quantised_weights_are_refused(dtype, kind, small, tmp_path):
    name = "layer1.0.conv1.weight"
    state = {**small[0], name: np.ones_like(small[0][name]).astype(dtype), "layer1.0.conv1.scale": np.ones(2)}
    file = tmp_path / f"a.{kind}"
    if kind == "npz":
        np.savez(file, **state)
    else:
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in state.items()}, file)
    said = f"tensor {name!r} is of type {dtype}, wanted floating point of 16 bits or more: store its unquantised values"
    assert said in refused("resnet20", f"{kind}:{file}", width=0.125)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_floating_point_of_other_widths_is_read(dtype, kind, small, tmp_path):
    state = {name: np.ascontiguousarray(tensor).astype(jnp.dtype(dtype)) for name, tensor in small[0].items()}
    file = tmp_path / f"a.{kind}"
    if kind == "npz":
        np.savez(file, **state)
    else:
        write_safetensors(file, {"bfloat16": "BF16", "float16": "F16", "float64": "F64"}[dtype], state)
    loaded = load_pretrained("resnet20", f"{kind}:{file}", width=0.125)
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(dtype)).astype(np.float32), small[1].variables)
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded.variables, rounded))
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.variables)} == {jnp.dtype("float32")}


def write_safetensors(file, dtype, state):
    """The format by hand: the length of a JSON header, the header, the tensors."""
    header, start = {}, 0
    for name, tensor in state.items():
        header[name] = {"dtype": dtype, "shape": tensor.shape, "data_offsets": [start, start + tensor.nbytes]}
        start += tensor.nbytes
    encoded = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(encoded)) + encoded + b"".join(t.tobytes() for t in state.values()))


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0"])
def test_types_of_8_bits_are_one_line(dtype, small, tmp_path):
    file = tmp_path / "a.safetensors"
    write_safetensors(file, dtype, {name: tensor.astype(np.int8) for name, tensor in small[0].items()})
    said = refused("resnet20", f"safetensors:{file}", width=0.125)
    assert f"is of type {dtype}, wanted floating point of 16 bits or more" in said
    np.savez(tmp_path / "a.npz", **{n: t.astype(jnp.dtype("float8_e4m3fn")) for n, t in small[0].items()})
    assert "is of type |V1, wanted floating point" in refused("resnet20", f"npz:{tmp_path}/a.npz", width=0.125)


def test_no_message_passes_on_advice_to_unpickle(tmp_path):
    np.savez(tmp_path / "pickled.npz", **{"conv1.weight": np.array([None])})
    assert "allow_pickle" not in refused("resnet20", f"npz:{tmp_path}/pickled.npz")


@pytest.mark.parametrize("name", ["run[1]", "a{b}*?", "two words", "größe"])
def test_every_path_of_a_donor_will_do(name, small, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    save_pretrained(folder / "donor", small[1], {})
    np.savez(folder / "a.npz", **small[0])
    save_file({tensor: np.ascontiguousarray(array) for tensor, array in small[0].items()}, folder / "a.safetensors")
    for source in (f"orbax:{folder}/donor", f"npz:{folder}/a.npz", f"safetensors:{folder}/a.safetensors"):
        loaded = load_pretrained("resnet20", source, width=0.125)
        assert jax.tree.all(jax.tree.map(np.array_equal, loaded.variables, small[1].variables))
