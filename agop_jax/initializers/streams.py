"""Which layers write into one residual stream, read off the computation itself.

A value carries the channels of the layers that made it until the next convolution or matrix product. Where two such
values are added, their layers share a stream.
"""

from agop_jax.features.tapped import Tapped


def residual_streams(tapped: Tapped) -> dict[str, str]:
    """{layer: the first layer of its stream}. A layer that is added to nothing has a stream of its own."""
    order = {layer: number for number, layer in enumerate(tapped.layers)}
    first = {layer: layer for layer in order}
    for places in tapped.dataflow.sums:
        roots = {first[tapped.sites[place].layer] for place in places}
        earliest = min(roots, key=order.__getitem__)
        first = {layer: earliest if root in roots else root for layer, root in first.items()}
    return first
