"""How features come about: NFM and AGOP of every layer at chosen steps of one training run."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from agop_jax.core import trees
from agop_jax.core.errors import UserError
from agop_jax.core.files import Row
from agop_jax.features.extraction import Extractor
from agop_jax.features.layer import LayerFeatures
from agop_jax.features.matrix import FeatureMatrix


class FeatureEvolution:
    """A callback that extracts features while a network is trained: `train(..., on_step=evolution)`.

    Args:
      model, variables: the network before its training, whose features are those of step 0.
      images: (n, h, w, c), normalised; the same at every step.
      steps: after which numbers of steps to extract, besides 0.
      layers: regular expression on layer paths.
      **extraction: further arguments of `Extractor`, which is compiled once.

    Attributes:
      features: {step: {layer path: LayerFeatures}}.
    """

    def __init__(
        self,
        model: Any,
        variables: Any,
        images: Any,
        steps: Iterable[int],
        layers: str = ".*",
        **extraction: Any,
    ) -> None:
        self.steps = frozenset(steps)
        self._extractor = Extractor(model, variables, images, **extraction)
        self._layers = trees.select(self._extractor.layers, layers)
        self.features: dict[int, dict[str, LayerFeatures]] = {}
        self._extract(variables, 0)

    def __call__(self, run: Any, step: int) -> None:
        """Extracts if this step is one of those asked for."""
        if step in self.steps:
            self._extract(run.state.variables, step)

    def _extract(self, variables: Any, step: int) -> None:
        features = self._extractor(variables)
        self.features[step] = {path: features[path] for path in self._layers}

    def rows(self) -> list[Row]:
        """For each step, layer and matrix ('nfm', 'agop'): Pearson and cosine with the last step's, effective rank."""
        if not self.steps & self.features.keys():
            raise UserError(
                f"evolution: none of the steps {sorted(self.steps)} was reached; pass it as on_step to train"
            )
        last = self.features[max(self.features)]
        rows = []
        for step, features in sorted(self.features.items()):
            for path, layer in features.items():
                for name in ("nfm", "agop"):
                    matrix, final = getattr(layer, name), getattr(last[path], name)
                    correlation = matrix.correlate(final)._asdict()
                    means = {key: float(np.mean(value)) for key, value in correlation.items()}
                    place = {"step": step, "layer": path, "matrix": name}
                    rows.append({**place, **means, "effective_rank": effective_rank(matrix)})
        return rows


def effective_rank(matrix: FeatureMatrix) -> float:
    """exp of the entropy of the eigenvalues' shares of the trace (Roy & Vetterli 2007): 1 to k; the mean over a stack.

    0 for a matrix that is zero.
    """
    values = np.asarray(matrix.values, np.float64)
    total = values.sum(-1, keepdims=True)
    shares = np.where(total > 0, values / np.where(total > 0, total, 1), 0)
    entropy = -(shares * np.log(np.where(shares > 0, shares, 1))).sum(-1)
    return float(np.mean(np.where(total[..., 0] > 0, np.exp(entropy), 0)))
