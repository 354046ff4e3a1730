"""The faster decompositions against the plain ones and against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agop_jax.features.decompositions import SMALLEST, product_eigen, svd, svd_by_gram, thin_svd
from agop_jax.features.matrix import FeatureMatrix


def factor(k, m, seed=0, stack=(), smallest=0.1):
    """float32 with singular values from 1 down to `smallest`."""
    random = np.random.default_rng(seed)
    left, _, right = np.linalg.svd(random.normal(size=(*stack, k, m)), full_matrices=False)
    return np.float32(left * np.geomspace(1, smallest, min(k, m)) @ right)


@pytest.mark.parametrize("stack", [(), (3,), (2, 3)])
@pytest.mark.parametrize(("k", "m"), [(40, 8), (8, 40), (7, 7), (1, 1), (5, 1), (1, 5)])
def test_both_decompose_the_factor(k, m, stack):
    a = factor(k, m, stack=stack)
    wanted = np.linalg.svd(a.astype(np.float64), compute_uv=False)
    for decompose in (svd, svd_by_gram, thin_svd):
        left, singular, right = decompose(jnp.asarray(a))
        assert {part.dtype for part in (left, singular, right)} == {jnp.dtype("float32")}
        np.testing.assert_allclose(singular, wanted, rtol=2e-6)
        np.testing.assert_allclose((left * singular[..., None, :]) @ right, a, atol=2e-6)
        for vectors in (left, jnp.swapaxes(right, -1, -2)):
            product = jnp.swapaxes(vectors, -1, -2) @ vectors
            np.testing.assert_allclose(product, np.broadcast_to(np.eye(min(k, m)), product.shape), atol=2e-6)


def test_small_singular_values_are_nearer_than_those_of_float32():
    """Down to the smallest that it takes, where `svd` itself is within 1e-7 of the largest."""
    a = factor(60, 20, smallest=2 * SMALLEST)
    wanted = np.linalg.svd(a.astype(np.float64), compute_uv=False)
    left, singular, _ = svd_by_gram(jnp.asarray(a))
    np.testing.assert_allclose(singular, wanted, rtol=1e-6)
    np.testing.assert_allclose(left.T @ left, np.eye(20), atol=2e-6)
    assert np.abs(singular / wanted - 1).max() < np.abs(svd(jnp.asarray(a))[1] / wanted - 1).max()


@pytest.mark.parametrize("stack", [(), (2, 3)])
@pytest.mark.parametrize("rank", [5, 2])
def test_a_product_decomposes_as_by_its_definition(rank, stack):
    """W S W^T for S of full rank and of less, against float64 and against the plain way."""
    w = factor(12, 5, stack=stack, smallest=1e-2)
    root = factor(5, rank, seed=1, stack=stack)
    s = root @ np.swapaxes(root, -1, -2)
    wanted = w.astype(np.float64) @ s @ np.swapaxes(w, -1, -2)
    values, vectors = product_eigen(jnp.asarray(w), jnp.asarray(s))
    np.testing.assert_allclose(values, np.linalg.eigvalsh(wanted)[..., :-6:-1], atol=1e-7)
    eye = np.broadcast_to(np.eye(5), (*stack, 5, 5))
    np.testing.assert_allclose(jnp.swapaxes(vectors, -1, -2) @ vectors, eye, atol=2e-6)
    for found in (FeatureMatrix.from_product(jnp.asarray(w), jnp.asarray(s)), traced_product(w, s)):
        np.testing.assert_allclose(found.dense(), wanted, atol=1e-6)
        assert (found.values >= 0).all()


traced_product = jax.jit(FeatureMatrix.from_product)


@pytest.mark.parametrize("case", ["wide", "ill-conditioned", "dead filter", "nan", "nan in S", "float64"])
def test_products_that_go_the_plain_way(case, x64):
    """And what comes of them."""
    w, s = factor(12, 5, smallest=SMALLEST / 2 if case == "ill-conditioned" else 0.1), np.eye(5, dtype=np.float32)
    w = np.ascontiguousarray(w[:4]) if case == "wide" else w.astype(case if case == "float64" else np.float32)
    if case in ("dead filter", "nan"):
        w[:, 2] = {"dead filter": 0.0, "nan": np.nan}[case]
    if case == "nan in S":
        s[1, 1] = np.nan
    assert product_eigen(jnp.asarray(w), jnp.asarray(s)) is None
    found = FeatureMatrix.from_product(jnp.asarray(w), jnp.asarray(s)).dense()
    if "nan" in case:
        assert np.isnan(found).any()
    else:
        np.testing.assert_allclose(found, w @ s @ w.T, atol=1e-6)


@pytest.mark.parametrize("spoil", ["dead filter", "smaller than told", "nan", "inf"])
def test_what_the_product_does_not_tell_is_left_to_the_plain_one(spoil):
    a = factor(30, 6, smallest=SMALLEST / 2 if spoil == "smaller than told" else 0.1)
    if spoil != "smaller than told":
        a[:, 2] = {"dead filter": 0.0, "nan": np.nan, "inf": np.inf}[spoil]
    assert svd_by_gram(jnp.asarray(a)) is None
    np.testing.assert_array_equal(thin_svd(jnp.asarray(a))[1], svd(jnp.asarray(a))[1])
    if spoil == "dead filter":
        vectors = FeatureMatrix.from_factor(jnp.asarray(a)).vectors
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(6), atol=2e-6)


def test_only_what_is_known_and_in_float32_goes_the_faster_way(x64, monkeypatch):
    """Transformations and float64 take the plain definition, and so does what has no entries."""
    monkeypatch.setattr("agop_jax.features.decompositions.svd_by_gram", None)
    a = jnp.asarray(factor(5, 3))
    np.testing.assert_allclose(jax.jit(thin_svd)(a)[1], svd(a)[1], rtol=1e-6)
    np.testing.assert_allclose(thin_svd(a.astype(jnp.float64))[1], svd(a)[1], rtol=1e-6)
    assert [part.shape for part in thin_svd(jnp.zeros((5, 0), jnp.float32))] == [(5, 0), (0,), (0, 0)]
