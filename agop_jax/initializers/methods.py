"""The table of methods: a source of filters, and what is done with it in a whole model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers as jinit

from agop_jax.core.errors import UserError
from agop_jax.core.types import Kernel, PRNGKey
from agop_jax.initializers.copies import Copy
from agop_jax.initializers.drawn import Drawn
from agop_jax.initializers.sources import Covariance, Plain, Spatial
from agop_jax.initializers.whitening import Whitened

KAIMING_NORMAL = Plain(jinit.variance_scaling(2.0, "fan_in", "normal"))


@dataclass(frozen=True)
class Method:
    """What a name stands for.

    Attributes:
      description: one line.
      source: of one layer's filters.
      lsuv: rescale each layer to unit output variance on a batch (Mishkin & Matas 2016; see `scaling.py`).
      standardised: rescale and shift each filter's output to variance 1 and mean 0 on a batch instead.
      first: only the first selected layer; the others start from `rest`.
      rest: a formula for those others.
      coupled: carry the donor's basis from layer to layer (see `coupling.py`).
      fit: of the basis when coupled: 'ridge' or 'procrustes' (Guth et al. 2024).
      shared: when coupled, layers that write into one residual stream share their mixing and their scale; else each has
        its own, as in a Rainbow network.
      mixed: m, the number of donor filters each new one mixes when coupled; None for all.
      noise: s, when coupled: each new filter is one of the donor's (or `mixed`) plus s times noise; None for mixtures.
      candidates: K, how many times the filters are drawn when coupled, of which the best are kept (`selection.py`).
      orthogonal: mix with orthogonal columns when coupled.
      shuffled: control: the fit of the basis with the recipient's channels in random order.
      untrained: control: the donor before its training.
      matched: control: the method whose filters' norms it has, layer by layer.
    """

    description: str
    source: Any
    lsuv: bool = False
    standardised: bool = False
    first: bool = False
    rest: Plain = KAIMING_NORMAL
    coupled: bool = False
    fit: str = "ridge"
    shared: bool = True
    mixed: int | None = None
    noise: float | None = None
    candidates: int = 1
    orthogonal: bool = False
    shuffled: bool = False
    untrained: bool = False
    matched: "Method | None" = None

    @property
    def needs_donor(self) -> bool:
        """Whether it draws on features at all."""
        return not isinstance(self.source, Plain | Whitened)

    @property
    def needs_network(self) -> bool:
        """Whether it, or what it is the control of, runs the donor."""
        return self.coupled or (self.matched is not None and self.matched.coupled)

    @property
    def uses_donor(self) -> bool:
        """Whether a donor has any influence on it, if only on its scale."""
        own = self.needs_network or (self.needs_donor and not isinstance(self.source, Drawn))
        return own or (self.matched is not None and self.matched.uses_donor)

    @property
    def needs_examples(self) -> bool:
        """Whether it looks at the inputs, unlabelled, and so draws one layer after another."""
        return self.lsuv or self.standardised or self.coupled or isinstance(self.source, Whitened)

    @property
    def layerwise(self) -> bool:
        """Whether one layer can be drawn without the others, as `kernel_init` does."""
        return not (self.needs_examples or self.first)


def _uniform(key: PRNGKey, shape: Sequence[int], dtype=jnp.float32) -> Kernel:
    return jax.random.uniform(key, shape, dtype, -0.005, 0.005)


def _delta_orthogonal(key: PRNGKey, shape: Sequence[int], dtype=jnp.float32) -> Kernel:
    if len(shape) == 2:  # a Dense layer has no centre to put the delta at
        return jinit.orthogonal(math.sqrt(2))(key, shape, dtype)
    if shape[-2] > shape[-1]:
        raise UserError(
            f"delta_orthogonal: wanted at least as many filters as input channels, got kernel {tuple(shape)}"
        )
    return jinit.delta_orthogonal(math.sqrt(2))(key, shape, dtype)


ORTHOGONAL = Plain(jinit.orthogonal(math.sqrt(2), column_axis=-1))


HE_NFM = Covariance("nfm", "he")
HE_AGOP = Covariance("agop", "he")
HE_SQRT_AGOP = Covariance("sqrt_agop", "he")

METHODS: dict[str, Method] = {
    "default": Method(
        "PyTorch's default for a convolution: uniform, |w_i| < 1 / sqrt(fan_in)",
        Plain(jinit.variance_scaling(1 / 3, "fan_in", "uniform")),
    ),
    "zeros": Method("all weights zero", Plain(jinit.zeros)),
    "normal": Method("Gaussian with standard deviation 0.01", Plain(jinit.normal(0.01))),
    "uniform": Method("uniform of total width 0.01", Plain(_uniform)),
    "xavier_normal": Method(
        "Glorot & Bengio 2010 with gain sqrt(2): Gaussian, variance 4 / (fan_in + fan_out)",
        Plain(jinit.variance_scaling(2.0, "fan_avg", "normal")),
    ),
    "kaiming_uniform": Method(
        "He et al. 2015: uniform, variance 2 / fan_in", Plain(jinit.variance_scaling(2.0, "fan_in", "uniform"))
    ),
    "kaiming_normal": Method("He et al. 2015: Gaussian, variance 2 / fan_in (E|w|^2 = 2)", KAIMING_NORMAL),
    "nfm": Method("reference: NFM with unit trace", Covariance("nfm", "unit_trace", reference=True)),
    "agop": Method("reference: AGOP^(1/2) with unit trace", Covariance("sqrt_agop", "unit_trace", reference=True)),
    "kaiming_nfm": Method(
        "reference: NFM * sqrt(2 / fan_in), a scale that differs by layer",
        Covariance("nfm", "reference_kaiming", reference=True),
    ),
    "kaiming_agop": Method(
        "reference: AGOP^(1/2) / 100 * sqrt(2 / fan_in)", Covariance("sqrt_agop", "reference_kaiming", reference=True)
    ),
    "he_nfm": Method("NFM at He scale (E|w|^2 = 2)", HE_NFM),
    "he_agop": Method("AGOP at He scale (E|w|^2 = 2)", HE_AGOP),
    "he_sqrt_agop": Method("AGOP^(1/2) at He scale (E|w|^2 = 2)", HE_SQRT_AGOP),
    "first_layer_nfm": Method("NFM at He scale in the first layer, He et al. in the others", HE_NFM, first=True),
    "spatial": Method(
        "the NFM's kh*kw x kh*kw marginal at He scale, channels independent (learned form of Trockman et al. 2023)",
        Spatial(),
    ),
    "orthogonal": Method("Saxe et al. 2014: orthogonal filters with gain sqrt(2)", ORTHOGONAL),
    "delta_orthogonal": Method(
        "Xiao et al. 2018: an orthogonal matrix at the kernel's centre, gain sqrt(2)", Plain(_delta_orthogonal)
    ),
    "lsuv": Method(
        "Mishkin & Matas 2016: orthogonal filters, each layer's output variance 1 on a batch", ORTHOGONAL, lsuv=True
    ),
    "whitened": Method(
        "each layer whitens the patches that it sees, in pairs of a filter and its negative, lsuv; no donor",
        Whitened(),
        lsuv=True,
    ),
    "whitened_first": Method(
        "the first layer whitens patches (Jordan 2024), the others orthogonal, lsuv; no donor",
        Whitened(),
        lsuv=True,
        first=True,
        rest=ORTHOGONAL,
    ),
    "convrfm": Method(
        "N(0, M), M the AGOP of a deep convolutional recursive feature machine on its images; no donor", Drawn()
    ),
    "coupled_nfm": Method("NFM, the donor's basis carried from layer to layer, lsuv", HE_NFM, lsuv=True, coupled=True),
    "coupled_agop": Method(
        "AGOP, the donor's basis carried from layer to layer, lsuv", HE_AGOP, lsuv=True, coupled=True
    ),
    "coupled_sqrt_agop": Method(
        "AGOP^(1/2), the donor's basis carried from layer to layer, lsuv", HE_SQRT_AGOP, lsuv=True, coupled=True
    ),
    "selected": Method(
        "donor's filters plus noise, of K times as many those that explain the donor's activations best, standardised",
        HE_NFM,
        standardised=True,
        coupled=True,
        noise=0.5,
        candidates=4,
    ),
    "rainbow": Method(
        "Guth et al. 2024: NFM, the donor's basis carried along by Procrustes, standardised",
        HE_NFM,
        standardised=True,
        coupled=True,
        fit="procrustes",
        shared=False,
    ),
    "copy": Method("the donor's filters and biases", Copy()),
    "copy_ranked": Method(
        "channels of the largest diagonal of the next layer's AGOP, or norm (weight subcloning), lsuv",
        Copy("ranked"),
        lsuv=True,
    ),
    "copy_dct": Method(
        "lowest frequencies of the channel axes' DCT (FRONT), for any width, lsuv", Copy("dct"), lsuv=True
    ),
    "copy_spaced": Method(
        "uniformly spaced channels of the donor (Xu et al. 2024), for narrower recipients", Copy("spaced")
    ),
    "copy_tiled": Method(
        "the donor's channels repeated (Net2WiderNet, Chen et al. 2016), for wider ones", Copy("tiled")
    ),
}
