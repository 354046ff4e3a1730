"""Donors from elsewhere: what a file must hold, what is said when it does not, and the accuracy it states."""

import os
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
from agop_jax.models.pretrained import IMAGENET_STD, Pretrained, load_pretrained, save_pretrained
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
    assert "'small_cnn' has no PyTorch names" in refused("small_cnn", source)
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


def test_hub_reads_the_cache_and_the_normalisation(small, tmp_path, monkeypatch):
    """A cache as huggingface_hub lays it out; nothing is asked of the network."""
    (constants,) = hub("constants")
    snapshot = tmp_path / "models--timm--small" / "snapshots" / ("0" * 40)
    (tmp_path / "models--timm--small" / "refs").mkdir(parents=True)
    (tmp_path / "models--timm--small" / "refs" / "main").write_text("0" * 40)
    snapshot.mkdir(parents=True)
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in small[0].items()}
    save_file(tensors, snapshot / "model.safetensors")
    (snapshot / "config.json").write_text('{"pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}}')
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    loaded = load_pretrained("resnet20", "hub:timm/small", width=0.125)
    assert (loaded.mean, loaded.std) == ((0.5,) * 3, (0.25,) * 3)
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded.variables, small[1].variables))
