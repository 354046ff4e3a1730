"""Which parameters no layer holds, and why: said once, so that nobody takes silence for coverage."""

from typing import Any

import jax

from agop_jax.features.dataflow import Dataflow
from agop_jax.features.tapped import Tapped

REASONS = {
    "gather": "an embedding lookup",
    "add": "added to the data",
    "sub": "added to the data",
    "mul": "multiplied with the data entry by entry",
    "div": "multiplied with the data entry by entry",
    "concatenate": "joined to the data",
    "dot_general": "multiplied with other parameters or constants",
    "conv_general_dilated": "convolved in another way than inputs with a kernel",
}


def uncovered(tapped: Tapped, params: Any) -> str | None:
    """One sentence that names every parameter of two or more axes outside of layers; None if there is none."""
    flow, leaves = tapped.dataflow, jax.tree.leaves(params)
    known = set().union(*flow.kernels.values()) | {site.bias for site in tapped.sites.values()}
    missing = [n for n, leaf in enumerate(leaves) if leaf.ndim - flow.stacks.get(n, 0) >= 2 and n not in known]
    names = [f"{tapped.paths[n]} ({_reason(flow, n)})" for n in missing]
    names += [f"an array of shape {shape} that the function closes over" for shape in sorted(flow.closed_over)]
    return f"without features, since no layer holds them: {', '.join(names)}" if names else None


def _reason(flow: Dataflow, leaf: int) -> str:
    uses = flow.uses.get(leaf)
    if not uses:
        return "it meets no input"
    return "; ".join(
        sorted({REASONS.get(use, f"used in {use}, which is not a product or cannot be seen into") for use in uses})
    )
