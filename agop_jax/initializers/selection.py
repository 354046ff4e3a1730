"""Which of many candidate filters a layer keeps: those whose activations explain the donor's best.

Orthogonal matching pursuit (Pati, Rezaiifar & Krishnaprasad 1993; for several targets at once Tropp et al. 2006): one
candidate after another is kept, each time the one that lowers the residual of the least-squares fit to the donor's
activations most. Everything is computed from second moments ("Gram space"), in float64, so that the number of positions
costs nothing.
"""

import numpy as np

ROWS = 6000  # positions that enter a choice; more did not change what the pilot kept
DEGENERATE = 1e-4  # share of a candidate's variance that those kept leave: below, it adds nothing


def pursuit(candidates: np.ndarray, targets: np.ndarray, number: int) -> np.ndarray:
    """Indices of the candidates kept, in the order of the choice.

    Args:
      candidates: (rows, many) activations.
      targets: (rows, channels) activations to explain, with an intercept.
      number: of candidates to keep, at most `many`.
    """
    columns = candidates - candidates.mean(0)
    norms = np.sqrt((columns**2).sum(0))
    columns = columns / np.where(norms > 0, norms, 1)
    residual = columns.T @ (targets - targets.mean(0))  # of the fit, seen by each candidate
    gram = columns.T @ columns
    left = np.diag(gram).copy()  # of each candidate's variance
    basis, kept = np.zeros((len(gram), 0)), []
    for _ in range(number):
        gain = np.where(left > DEGENERATE, (residual**2).sum(1) / np.maximum(left, DEGENERATE), -1.0)
        gain[kept] = -2  # a candidate that adds nothing still comes before one that is kept already
        best = int(gain.argmax())
        kept.append(best)
        if left[best] <= DEGENERATE:
            continue
        root = np.sqrt(left[best])
        direction = (gram[:, best] - basis @ basis[best]) / root
        residual = residual - np.outer(direction, residual[best] / root)
        left = left - direction**2
        basis = np.concatenate([basis, direction[:, None]], axis=1)
    return np.array(kept)
