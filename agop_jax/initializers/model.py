"""A donor's features + a method -> initial parameters of a whole model."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from absl import logging

from agop_jax.core import devices, trees
from agop_jax.core.errors import UserError
from agop_jax.core.networks import Network, open_network
from agop_jax.core.types import PRNGKey
from agop_jax.features.batches import warn_of_bytes
from agop_jax.features.layer import LayerFeatures
from agop_jax.features.tapped import Tapped
from agop_jax.features.taps import tap
from agop_jax.initializers import arguments
from agop_jax.initializers.copies import Copy
from agop_jax.initializers.coupling import POOR_FIT
from agop_jax.initializers.methods import Method
from agop_jax.initializers.passes import Donor, Passes
from agop_jax.initializers.recipient import Recipient
from agop_jax.initializers.state import State


class Initialization(NamedTuple):
    """Initial variables of a model, and for coupled methods how well each layer's basis was fitted (R^2)."""

    variables: Any
    explained_variance: dict[str, float]


def initialize(
    model: Any,
    variables: Any,
    inputs: Any,
    features: Mapping[str, LayerFeatures] | None,
    method: str | Method,
    *,
    key: PRNGKey | int,
    layers: str = ".*",
    donor: Donor | None = None,
    apply_kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """The model with the kernels of the selected layers drawn anew: parameters in, parameters out.

    By default these are all layers, the head included. `layers=` leaves the head out: 'Conv_.*' draws convolutions
    alone, '(?!head).*' all layers whose names do not start with 'head'.

    Everything else stays as it is, so that recipients of the same variables and key differ in the selected layers
    alone, and methods can be compared in pairs. Copies also take over what works on the channels of the selected
    layers: biases, and scale, bias and statistics of normalisations.

    Args:
      model, variables, apply_kwargs: as for `extract`, of any width that the method allows.
      inputs: a batch as the model expects it. Of most methods only its shape matters; methods with 'lsuv' and coupled
        ones look at its examples, some 256 without labels.
      features: of the donor, by layer path; may be None for methods without a donor.
      method: a name in `INITIALIZERS`, with options if need be, or a `Method`.
      key: of the draws, or the seed of one.
      layers: regular expression for the whole path of a layer; by default all of them, the head included.
      donor: the donor as a network, with the same examples as it expects them: for coupled methods.

    Returns:
      What `variables` are: such a dictionary of a Linen model, such a pytree of a function's parameters, a new module
      of the same class for NNX and Equinox.

    Raises:
      UserError: unknown method, a pattern that matches no layer, a layer that the donor lacks or whose shape does not
        fit, a kernel that is computed from its parameters, a donor missing where it is needed.
    """
    name, _ = arguments.method_of(method)
    done = initialization(
        model, variables, inputs, features, method, key=key, layers=layers, donor=donor, apply_kwargs=apply_kwargs
    )
    for path, explained in done.explained_variance.items():
        if explained < POOR_FIT:
            logging.warning(
                "init %r: only %.0f %% of the donor's input to %r is explained", name, 100 * explained, path
            )
    return done.variables


@devices.on_purpose
def initialization(
    model: Any,
    variables: Any,
    inputs: Any,
    features: Mapping[str, LayerFeatures] | None,
    method: str | Method,
    *,
    key: PRNGKey | int,
    layers: str = ".*",
    donor: Donor | None = None,
    apply_kwargs: Mapping[str, Any] | None = None,
) -> Initialization:
    """`initialize`, with the quality of the fits."""
    name, method = arguments.method_of(method)
    arguments.require_donor(name, method, features, donor, inputs)
    key = arguments.key_of(key)
    if method.needs_examples:
        warn_of_bytes(inputs)
    network = open_network(model, variables, apply_kwargs=apply_kwargs)

    def draw(method: Method) -> Recipient:
        own = donor if method.coupled else None
        passes = _passes(model, variables, inputs, own, apply_kwargs) if method.needs_examples else None
        if passes is None or isinstance(method.source, Copy):  # which takes over statistics that training does not use
            tapped = _tapped(network, inputs)
        else:
            tapped = passes.walks[0].tapped
        state, chosen = State(tapped, network.params, network.others), tuple(trees.select(tapped.layers, layers))
        return Recipient(state, chosen, key, features or {}, method, passes).drawn()

    recipient = draw(method)
    if method.matched is not None:
        recipient.match(draw(method.matched).kernels())
    return Initialization(network.rebuild(*recipient.state.variables), recipient.explained_variance)


def _tapped(network: Network, inputs: Any) -> Tapped:
    """One example is enough; where the model cannot be called on it, the error is that of all inputs' shape."""
    try:
        return tap(network, jax.tree.map(lambda leaf: leaf[:1], inputs))
    except UserError:
        return tap(network, inputs)


def _passes(model: Any, variables: Any, inputs: Any, donor: Donor | None, apply_kwargs: Any) -> Passes:
    """The recipient as it will be trained, and its donor as it was: with statistics of the batch, and with its own."""
    training = open_network(model, variables, training=True, apply_kwargs=apply_kwargs)
    if donor is None:
        return Passes(training, inputs)
    own = open_network(donor.model, donor.variables, apply_kwargs=donor.apply_kwargs)
    return Passes(training, inputs, own, donor.inputs)
