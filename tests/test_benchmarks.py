"""The peers of the benchmarks do what ours does, and every suite runs at toy sizes. Nothing here is about time."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import agop_jax
from agop_jax.core.errors import UserError
from agop_jax.core.networks import open_network
from agop_jax.data import Pipeline, Split
from agop_jax.features import grams
from agop_jax.features.layer import LayerFeatures
from agop_jax.features.taps import tap
from agop_jax.training import Settings, Trainer
from benchmarks import costs, features, limits, networks, run, tables, timing
from benchmarks.tables import Headline, Row, Table
from benchmarks.timing import Spread
from benchmarks.truth import Truth

torch = pytest.importorskip("torch", reason="the peers need the extra 'bench'")
pytest.importorskip("pandas", reason="the peers need the extra 'bench'")
pytest.importorskip("pyarrow", reason="the peers need the extra 'bench'")

from benchmarks.peers import extraction, storage, training  # noqa: E402
from benchmarks.peers import networks as torch_networks  # noqa: E402

NARROW = {"vgg11": {"width": 0.0625}, "small_cnn": {"features": (3, 5, 4)}}
RESIDUAL = {"resnet20": {"width": 0.25}}
SIZE = 32


@pytest.mark.parametrize("name", NARROW | RESIDUAL)
def test_peer_is_the_same_function(name):
    model, variables = networks.create(name, SIZE, 3, **(NARROW | RESIDUAL)[name])
    images = networks.smooth_images(2, SIZE)
    theirs = torch_networks.convert(model, variables).eval()(torch_networks.images(images)).detach().numpy()
    np.testing.assert_allclose(theirs, model.apply(variables, jnp.asarray(images)), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NARROW)
def test_patch_jacobians_give_our_agop(name, x64):
    """In float64, so that nothing but rounding of the last digits is left."""
    double = lambda array: jnp.asarray(array, jnp.float64)
    model, variables = networks.create(name, SIZE, 3, **NARROW[name])
    variables, images = jax.tree.map(double, variables), networks.smooth_images(2, SIZE).astype(np.float64)
    ours = agop_jax.extract(model, variables, images, batch_size=2, progress=False)
    theirs = extraction.all_agops(torch_networks.convert(model, variables), torch_networks.images(images))
    assert len(theirs) == sum(path.startswith("Conv_") for path in ours)
    for index, matrix in enumerate(theirs):
        layer = ours[f"Conv_{index}"]
        order = torch_networks.patch_order(layer.kernel.shape)
        wanted = np.asarray(layer.agop.dense())[np.ix_(order, order)]
        np.testing.assert_allclose(matrix, wanted, atol=1e-12 * np.abs(wanted).max())


def test_square_root_by_full_svd(x64):
    factor = np.random.default_rng(0).normal(size=(12, 5))
    theirs = extraction.square_root(torch.tensor(factor @ factor.T)).numpy()
    ours = agop_jax.FeatureMatrix.from_factor(jnp.asarray(factor)).power(0.5).dense()
    np.testing.assert_allclose(theirs, ours, atol=1e-7)  # the root of rounding in the null space
    np.testing.assert_allclose(theirs @ theirs, factor @ factor.T, atol=1e-12)


@pytest.mark.parametrize("writer", storage.WRITERS)
def test_csv_keeps_float32(writer, tmp_path):
    matrix = np.random.default_rng(0).normal(size=(7, 7)).astype(np.float32)
    storage.WRITERS[writer](tmp_path / "m.csv", matrix)
    np.testing.assert_array_equal(storage.read(tmp_path / "m.csv"), matrix)


@pytest.mark.parametrize("draw", storage.DRAWS)
def test_peer_draws_from_the_covariance(draw):
    """The mean of w w^T over 20,000 draws: entries have a standard error of at most sqrt(2 / 20,000) times 0.46."""
    layer = features.vgg11(features.QUICK)["Conv_0"]
    wanted = features.covariance(layer)
    torch.manual_seed(0)
    filters = storage.DRAWS[draw](wanted, 20_000).numpy()
    np.testing.assert_allclose(filters.T @ filters / len(filters), wanted, atol=5 * np.sqrt(2 / 20_000) * wanted.max())


@pytest.mark.parametrize("layout", training.LAYOUTS)
def test_two_steps_lose_the_same(layout):
    """Trainer, bare step and peer from the same weights on the same images: losses of two steps, and weights after."""
    model, variables = networks.create("small_cnn", 8, **NARROW["small_cnn"])
    pixels, labels = networks.uint8_images(6, 8)
    mean, std, rate = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), 0.1
    settings = Settings(2, 6, momentum=training.MOMENTUM, weight_decay=training.WEIGHT_DECAY, schedule="constant")
    pipeline = Pipeline(mean, std)
    trainer, data = Trainer(model, pipeline, settings), Split(jnp.asarray(pixels), jnp.asarray(labels))
    state = trainer.start(variables)
    for _ in range(2):
        state = trainer.step(state, data, np.arange(6), rate, 0)

    images = np.asarray(pipeline(jnp.asarray(pixels)))
    network = torch_networks.convert(model, variables)
    peer = training.Trainer(network, rate, layout)
    theirs = [float(peer.step(torch_networks.images(images), torch.tensor(labels))) for _ in range(2)]
    assert theirs[0] != theirs[1]

    step = limits.training_step(model, rate, training.MOMENTUM, training.WEIGHT_DECAY)
    bare, bare_losses = limits.training_start(variables), []
    for _ in range(2):
        bare, loss = step(bare, jnp.asarray(images), jnp.asarray(labels))
        bare_losses.append(float(loss))

    np.testing.assert_allclose(bare_losses, theirs, rtol=1e-5)
    assert float(state.loss_sum) == pytest.approx(sum(theirs), rel=1e-5)
    kernel = network[0].weight.detach().numpy().transpose(2, 3, 1, 0)
    for params in (state.variables["params"], bare[0]):
        np.testing.assert_allclose(params["Conv_0"]["kernel"], kernel, atol=1e-5)


@pytest.mark.slow
def test_step_with_batch_statistics_is_the_peers(x64):
    """In float64, since rounding grows through twenty normalised layers: loss, first kernel and mean after a step."""
    model, variables = networks.create("resnet20", 8, **RESIDUAL["resnet20"])
    variables = jax.tree.map(lambda array: jnp.asarray(array, jnp.float64), variables)
    images, labels = networks.smooth_images(6, 8).astype(np.float64), np.arange(6)
    network = torch_networks.convert(model, variables)
    theirs = training.Trainer(network, 0.1).step(torch_networks.images(images), torch.tensor(labels))
    step = limits.training_step(model, 0.1, training.MOMENTUM, training.WEIGHT_DECAY)
    (params, _, others), loss = step(limits.training_start(variables), jnp.asarray(images), jnp.asarray(labels))
    assert float(loss) == pytest.approx(float(theirs), rel=1e-12)
    kernel = network[0].weight.detach().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_allclose(params["Conv_0"]["kernel"], kernel, atol=1e-10)
    np.testing.assert_allclose(others["batch_stats"]["BatchNorm_0"]["mean"], network[1].running_mean, atol=1e-12)


def test_host_and_device_resize_show_the_same_images():
    """Up to one grey level, to which Pillow rounds."""
    pixels, labels = networks.uint8_images(3, 32)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    ours = np.asarray(Pipeline(mean, std, resize=50)(jnp.asarray(pixels)))
    dataset = training.Resized(pixels, labels, torch.tensor(mean), torch.tensor(std), 50)
    theirs = np.stack([np.moveaxis(dataset[index][0].numpy(), 0, -1) for index in range(3)])
    np.testing.assert_allclose(theirs, ours, atol=1.01 / 255 / 0.2)
    assert [dataset[index][1] for index in range(3)] == list(labels)


@pytest.mark.slow
def test_forms_of_the_limit_do_the_same_passes():
    model, variables = networks.create("small_cnn", 8, 3, **NARROW["small_cnn"])
    images = networks.smooth_images(2, 8)
    wanted = jax.vmap(jax.jacrev(lambda image: model.apply(variables, image[None])[0]))(images).sum((0, 2, 3, 4))
    for form in limits.FORMS:
        np.testing.assert_allclose(limits.reverse_passes(model, variables, images, 3, form)(), wanted, atol=1e-5)


def test_interleaving():
    calls = []
    sides = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    times = timing.interleave(sides, 3)
    assert "".join(calls) == "abababab"
    assert {name: len(taken) for name, taken in times.items()} == {"a": 3, "b": 3}


@pytest.mark.slow
def test_peak_memory_is_that_of_the_call():
    """Half a gigabyte is touched; the parent's own memory does not count."""
    if timing.peak("benchmarks.timing", "held", 0) is None:
        pytest.skip("no /proc here")
    assert timing.peak("benchmarks.timing", "held", 500) == pytest.approx(500, abs=50)


def test_table(tmp_path):
    rows = [
        Row("ours", {"s": Spread((3.0, 1.0, 2.0)), "MiB": None}),
        Row("peer", {"s": Spread((1234.5,)), "MiB": 0.123456}),
    ]
    table = Table("extract", "title", rows, ["A note."], tables.environment())
    text = tables.write(table, tmp_path)
    assert "| ours | 2 (1 to 3) | not measured |" in text
    assert "| peer | 1 230 (once) | 0.123 |" in text
    found = json.loads((tmp_path / "extract.json").read_text())
    assert found["rows"][0]["s"] == [3.0, 1.0, 2.0]
    assert not list(tmp_path.glob("*.tmp"))


def test_pages(tmp_path):
    """Both pages keep what stands around the marks; the README has headlines only, in the order of the suites."""
    root, out, marks = (
        tmp_path / "root",
        tmp_path / "out",
        "before\n<!-- benchmarks -->\nold\n<!-- /benchmarks -->\nafter\n",
    )
    (root / "docs").mkdir(parents=True)
    for page in (tables.README, tables.PAGE):
        (root / page).write_text(marks)
    with pytest.raises(UserError, match="run the suites first"):
        tables.write_pages(root, out)
    rows = [
        Row("ours", {"s": Spread((1.0, 2.0, 6.0)), "x the peer": Spread((3.0, 5.0, 4.0))}),
        Row("PyTorch peer", {"s": Spread((8.0,)), "x the peer": "1"}),
    ]
    for suite, headline in (("store", None), ("init", Headline.of("drawing", "s", rows)), ("extract", None)):
        table = Table(suite, "title", rows, [], tables.environment(), "x.png", headline=headline)
        tables.write(table, out)
    run.main(["--tables-only", f"--out={out}", f"--pages={root}"])
    page, readme = (root / tables.PAGE).read_text(), (root / tables.README).read_text()
    between = lambda text: re.fullmatch(r"before\n<!-- benchmarks -->\n((?:.|\n)*)<!-- /benchmarks -->\nafter\n", text)[
        1
    ]
    assert re.match(r"\*\*extract\*\*(.|\n)*\*\*init\*\*(.|\n)*\*\*store\*\*", between(page))
    assert "old" not in page
    assert ".png" not in page
    assert between(readme).splitlines()[2:] == ["| drawing | 2 s | 8 s | 4 |"]
    (root / tables.README).write_text("no marks")
    with pytest.raises(UserError, match="needed one <!-- benchmarks -->"):
        tables.write_pages(root, out)


@pytest.mark.parametrize("wrong", ["--references=12", "--references=8", "--images=7"])
def test_sizes_that_cannot_be(wrong, tmp_path):
    with pytest.raises(UserError, match=wrong.partition("=")[0]):
        run.main(["--suite=probe", f"--out={tmp_path}", wrong])


LONGER = [pytest.param(suite, marks=pytest.mark.long) for suite in ("extract", "probe", "start", "growth")]


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["train", "store", "init", "rfm", *LONGER])
def test_suite_at_toy_size(suite, tmp_path):
    run.main([f"--suite={suite}", "--quick", f"--out={tmp_path}"])
    found = json.loads((tmp_path / f"{suite}.json").read_text())
    assert found["suite"] == suite
    assert found["environment"]["jax"] == jax.__version__
    assert found["headline"] is None or found["headline"]["ratio"] > 0
    assert (found["headline"] is not None) == (suite in ("extract", "init", "train"))
    assert (tmp_path / f"{suite}.md").read_text().startswith(f"**{suite}**")


def test_distance_from_the_truth_is_that_of_dense_matrices():
    """Two runs of known S: norms, own error and spread from k x k matrices, written out."""
    random = np.random.default_rng(0)
    kernel = jnp.asarray(random.normal(size=(3, 3, 2, 4)), jnp.float32)
    grams = [(lambda g: jnp.asarray(g @ g.T, jnp.float32))(random.normal(size=(4, 6))) for _ in range(3)]
    layer = lambda gram: LayerFeatures(
        kernel=kernel, gradient_gram=gram, count=5, path="Conv_0", standard_error=jnp.array(0.5)
    )
    found = Truth([{"Conv_0": layer(gram)} for gram in grams[:2]])
    dense = lambda gram: np.asarray(layer(gram).matrix @ gram @ layer(gram).matrix.T)
    mean = dense((grams[0] + grams[1]) / 2)
    norm = np.linalg.norm(mean)
    own = 0.5 / norm / np.sqrt(2)
    assert found.own_error()["Conv_0"] == pytest.approx(own, rel=1e-4)
    apart = np.linalg.norm(dense(grams[2]) - mean) / norm
    errors = found.errors({"Conv_0": np.asarray(grams[2], np.float64)})
    assert errors["Conv_0"] == pytest.approx(np.sqrt(apart**2 - own**2), rel=1e-4)
    spread = np.sqrt(sum(np.linalg.norm(dense(gram) - mean) ** 2 for gram in grams[:2])) / norm
    assert found.spread(80).measured["Conv_0"] == pytest.approx(spread, rel=1e-4)


@pytest.mark.parametrize(("name", "size", "fields"), [("vgg11", 128, {"width": 1 / 8}), ("resnet20", 32, {})])
def test_operations_are_those_that_xla_counts(name, size, fields):
    """Forwards and for one cotangent. XLA counts bias, ReLU and pooling too, and leaves out products with padding."""
    model, variables = networks.create(name, size, **fields)
    images = jnp.zeros((1, size, size, 3))
    counted = costs.count(model, size)
    xla = lambda function: jax.jit(function).lower(variables, images).cost_analysis()["flops"]
    forward = lambda variables, images: model.apply(variables, images)
    assert counted.forward == pytest.approx(xla(forward), rel=0.15)
    network = open_network(model, variables)
    tapped = tap(network, images)

    def one_cotangent(variables, images):
        labels, cotangents = jnp.zeros(1, int), jnp.ones((1, 1, 10))
        pair = (variables["params"], network.others)
        return grams.gradient_grams(tapped, grams.output_function("logits"), pair, images, labels, cotangents)

    assert counted.extraction(1, 1) == pytest.approx(xla(one_cotangent), rel=0.15)
