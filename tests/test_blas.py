"""One thread for numpy's linear algebra, and afterwards as many as before."""

import numpy as np
from threadpoolctl import ThreadpoolController

from agop_jax.core.blas import LARGE, few_threads


def threads():
    np.linalg.eigh(np.eye(2))
    return {pool["num_threads"] for pool in ThreadpoolController().info() if pool["user_api"] == "blas"}


def test_the_limit_ends_with_its_last_user():
    """Recipients are trained in threads: the first that is done must not free, or keep, the threads of the others."""
    with ThreadpoolController().limit(limits=2, user_api="blas"):
        before = threads()
        one, other = few_threads(), few_threads(LARGE - 1)
        one.__enter__()
        other.__enter__()
        assert threads() == {1}
        one.__exit__(None, None, None)
        assert threads() == {1}
        other.__exit__(None, None, None)
        assert threads() == before
        with few_threads(LARGE):
            assert threads() == before
