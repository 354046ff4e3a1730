"""Matrices from CSV, as users of the older PyTorch project have them, and what may be done with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import agop_jax
from agop_jax import models
from agop_jax.core.errors import UserError
from agop_jax.features.layer import LayerFeatures


@pytest.fixture(scope="module")
def network():
    """Convolutions of 9 x 4 and 36 x 3: of the second, the NFM is singular."""
    model = models.create("small_cnn", 2, features=(4, 3))
    images = jax.random.normal(jax.random.key(0), (16, 8, 8, 1))
    return model, jax.jit(model.init)(jax.random.key(1), images), images


@pytest.fixture(scope="module")
def written(network, tmp_path_factory):
    features = agop_jax.extract(*network, progress=False)
    path = tmp_path_factory.mktemp("csv") / "matrices"
    agop_jax.save_matrices(path, features)
    return path, features


def test_matrices_come_back_in_our_convention(network, written):
    """Each k x k matrix to float32's rounding; that of the AGOP went through a root, which leaves 3e-4."""
    path, features = written
    found = agop_jax.load_matrices(*network, nfm=path / "nfm", agop=path / "agop")
    assert list(found) == ["Conv_0", "Conv_1"]
    for name, layer in found.items():
        for matrix, tolerance in (("nfm", 1e-5), ("agop", 1e-3)):
            wanted = np.asarray(getattr(features[name], matrix).dense())
            read = np.asarray(getattr(layer, matrix).dense())
            np.testing.assert_allclose(read, wanted, atol=tolerance * np.abs(wanted).max())
    assert [layer.kernel.shape for layer in found.values()] == [(3, 3, 1, 4), (3, 3, 4, 3)]  # their ranks


@pytest.mark.parametrize("method", ["he_nfm", "he_agop", "nfm", "agop", "spatial", "matched_isotropic:he_agop"])
def test_methods_that_need_only_the_matrix_draw_from_it(method, network, written):
    path, features = written
    found = agop_jax.load_matrices(*network, nfm=path / "nfm", agop=path / "agop")
    if method != "spatial":
        wanted, read = (np.asarray(agop_jax.covariance(f["Conv_1"], method).dense()) for f in (features, found))
        # a root turns float32's rounding of 33 zero eigenvalues, 1e-7 of the largest, into 3e-4 each
        np.testing.assert_allclose(read, wanted, atol=5e-3 * np.abs(wanted).max())
    model, variables, images = network
    drawn = agop_jax.initialize(model, variables, images, found, method, key=0, layers="Conv_.*")
    assert np.isfinite(drawn["params"]["Conv_1"]["kernel"]).all()
    assert not np.array_equal(drawn["params"]["Conv_1"]["kernel"], variables["params"]["Conv_1"]["kernel"])


@pytest.mark.parametrize("method", ["copy", "copy_ranked", "coupled_nfm", "rainbow"])
def test_methods_that_need_the_filters_are_refused(method, network, written):
    model, variables, images = network
    found = agop_jax.load_matrices(*network, nfm=written[0] / "nfm")
    donor = agop_jax.Donor(*network)
    with pytest.raises(UserError, match="needed the donor's filters, but its features were read from .* NFM alone"):
        agop_jax.initialize(model, variables, images, found, method, key=0, layers="Conv_.*", donor=donor)
    if method == "copy":
        with pytest.raises(UserError, match="needed the donor's filters"):
            agop_jax.kernel_init(found["Conv_0"], method)(jax.random.key(0), (3, 3, 1, 4))


def test_one_of_the_two_will_do_and_the_other_is_refused(network, written):
    nfm, agop = (agop_jax.load_matrices(*network, **{name: written[0] / name})["Conv_0"] for name in ("nfm", "agop"))
    assert np.isfinite(nfm.nfm.dense()).all()
    assert np.isfinite(agop.agop.dense()).all()
    with pytest.raises(UserError, match="needed its AGOP, but its features were read from a file with the NFM alone"):
        _ = nfm.agop
    for use in (lambda: agop.nfm, lambda: agop_jax.kernel_init(agop, "spatial")(jax.random.key(0), (3, 3, 1, 4))):
        with pytest.raises(UserError, match="needed its NFM, .* with the AGOP alone: use a method that draws from the"):
            use()


@pytest.mark.parametrize("path", ["features", "features.safetensors"])
def test_they_can_be_stored(path, network, written, tmp_path):
    found = agop_jax.load_matrices(*network, agop=written[0] / "agop")
    agop_jax.save_features(tmp_path / path, found)
    again = agop_jax.load_features(tmp_path / path)["Conv_1"]
    assert again.matrices == ("agop",)
    np.testing.assert_array_equal(again.agop.dense(), found["Conv_1"].agop.dense())


def symmetric(size, *values):
    return np.diag([*values, *(size - len(values)) * [1.0]])


SPOILT = {
    "missing": (None, r"layer 'Conv_0': no file '.*layer_0.csv'"),
    "header": ("a,b\n1,2\n", "wanted numbers parted by commas, without a header"),
    "another size": (symmetric(4), r"layer 'Conv_0' wants 9 x 9 \(1 channels x 3 x 3\), got 4 x 4"),
    "one line": (np.ones((1, 9)), "got 1 x 9"),
    "not square": (np.ones((9, 8)), "got 9 x 8"),
    "not finite": (symmetric(9, np.nan), "wanted finite numbers"),
    "not symmetric": (np.tri(9), "wanted a symmetric matrix"),
    "negative": (symmetric(9, -1.0), "wanted no negative eigenvalues, got -1 beside 1"),
    "empty": ("", "wants 9 x 9"),
}


@pytest.mark.filterwarnings("ignore:loadtxt")
@pytest.mark.parametrize("kind", ["nfm", "agop"])
@pytest.mark.parametrize("case", SPOILT)
def test_what_cannot_be_a_matrix_of_the_layer_is_one_line(case, kind, network, tmp_path):
    content, said = SPOILT[case]
    if isinstance(content, str):
        (tmp_path / "layer_0.csv").write_text(content)
    elif content is not None:
        np.savetxt(tmp_path / "layer_0.csv", content, delimiter=",")
    with pytest.raises(UserError, match=said) as caught:
        agop_jax.load_matrices(*network, **{kind: tmp_path})
    assert "\n" not in str(caught.value)


def test_no_folder_and_no_convolution(network, tmp_path):
    with pytest.raises(UserError, match=r"needed a folder of layer_0.csv, ... as nfm= or agop=, got none"):
        agop_jax.load_matrices(*network)
    dense = lambda params, inputs: inputs @ params["w"]
    with pytest.raises(UserError, match="wanted a model of 2-D convolutions without groups"):
        agop_jax.load_matrices(dense, {"w": jnp.ones((3, 2))}, jnp.ones((4, 3)), nfm=tmp_path)


def test_a_matrix_of_zeros_is_read_and_not_drawn_from(network, tmp_path):
    for index, size in enumerate((9, 36)):
        np.savetxt(tmp_path / f"layer_{index}.csv", np.zeros((size, size)), delimiter=",")
    layer = agop_jax.load_matrices(*network, nfm=tmp_path)["Conv_0"]
    assert isinstance(layer, LayerFeatures)
    with pytest.raises(UserError, match="its nfm is zero"):
        agop_jax.kernel_init(layer, "he_nfm")(jax.random.key(0), (3, 3, 1, 4))
