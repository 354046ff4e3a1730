"""Feature matrices as k x k CSV files, and filters drawn from them by a Cholesky factor."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from pyarrow import csv as arrow_csv
from torch import Tensor
from torch.distributions import MultivariateNormal

RIDGE = 1e-6  # added to the diagonal: a Cholesky factor needs full rank, a feature matrix has that of its filters


def write_pandas(path: Path, matrix: np.ndarray) -> None:
    """Without header and index."""
    pd.DataFrame(matrix).to_csv(path, header=False, index=False)


def write_arrow(path: Path, matrix: np.ndarray) -> None:
    """The same file by pyarrow, the fastest writer that is at hand: several times pandas'."""
    table = pa.table({str(column): matrix[:, column] for column in range(matrix.shape[1])})
    arrow_csv.write_csv(table, path, arrow_csv.WriteOptions(include_header=False))


def read(path: Path) -> np.ndarray:
    """By pandas' C engine, which for so many columns is faster than its pyarrow engine."""
    return pd.read_csv(path, header=None, engine="c", dtype=np.float32).to_numpy()


WRITERS: dict[str, Callable[[Path, np.ndarray], None]] = {"pandas": write_pandas, "pyarrow": write_arrow}


def draw_distribution(matrix: np.ndarray, filters: int) -> Tensor:
    """Filters (filters, k) from N(0, M + RIDGE I), by PyTorch's own distribution."""
    return MultivariateNormal(torch.zeros(len(matrix)), _full_rank(matrix)).sample((filters,))


def draw_product(matrix: np.ndarray, filters: int) -> Tensor:
    """The same by one matrix product; `MultivariateNormal` took 60 times as long for 256 filters of k = 2304."""
    return torch.randn(filters, len(matrix)) @ torch.linalg.cholesky(_full_rank(matrix)).mT


def _full_rank(matrix: np.ndarray) -> Tensor:
    return torch.tensor(matrix) + RIDGE * torch.eye(len(matrix))


DRAWS: dict[str, Callable[[np.ndarray, int], Tensor]] = {
    "MultivariateNormal": draw_distribution,
    "one product": draw_product,
}
