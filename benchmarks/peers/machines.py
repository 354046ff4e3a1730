"""The peer's recursive feature machines: xrfm, by its authors, with the options of ours."""

from typing import Any

import numpy as np
import torch
from xrfm.rfm_src.class_conversion import ClassificationConverter
from xrfm.rfm_src.recursive_feature_machine import RFM

Pair = tuple[np.ndarray, np.ndarray]  # inputs, and targets or labels


class Machine:
    """Laplace kernel, exact solver, float32; of its rounds it keeps the one that does best on validation data.

    Args:
      classes: number of classes; None for regression.
      options: bandwidth, ridge, iterations.
    """

    def __init__(self, classes: int | None, options: dict[str, Any]) -> None:
        self.classes = classes
        self.options = options
        metric = "mse" if classes is None else "accuracy"
        converter = None if classes is None else ClassificationConverter("zero_one", classes)
        fixed = {"device": "cpu", "verbose": False, "tuning_metric": metric, "class_converter": converter}
        fixed["solver"] = "cholesky"  # the faster of its exact solvers; LU is its default
        self.machine = RFM("l2", bandwidth=options["bandwidth"], **fixed)

    def fit(self, train: Pair, validation: Pair) -> "Machine":
        """All rounds: none is left out for being worse than the one before."""
        pairs = [(torch.tensor(inputs, dtype=torch.float32), self._targets(y)) for inputs, y in (train, validation)]
        iterations, ridge = self.options["iterations"], self.options["ridge"]
        self.machine.fit(*pairs, iters=iterations, method="lstsq", reg=ridge, early_stop_rfm=False, verbose=False)
        return self

    def error(self, test: Pair) -> float:
        """Mean squared error, or the share of wrong labels."""
        outputs = self.machine.predict(torch.tensor(test[0], dtype=torch.float32)).numpy()
        if self.classes is None:
            return float(((outputs[:, 0] - test[1]) ** 2).mean())
        labels = outputs.argmax(1) if self.classes > 2 else (outputs[:, 0] > 0.5).astype(int)
        return float((labels != test[1]).mean())

    def _targets(self, y: np.ndarray) -> torch.Tensor:
        if self.classes is not None and self.classes > 2:
            return torch.nn.functional.one_hot(torch.tensor(y), self.classes).float()
        return torch.tensor(y, dtype=torch.float32)[:, None]
