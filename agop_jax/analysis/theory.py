"""Two cases in which NFM and AGOP are tied by a proof, to check the machinery and to learn from.

Deep linear networks. f(x) = x W_1 ... W_L is trained by gradient flow from a balanced start, W_l^T W_l = W_{l+1}
W_{l+1}^T, which the flow keeps (Arora, Cohen & Hazan 2018, arXiv 1802.06509). Then W_1 ... W_L (W_1 ... W_L)^T =
(W_1 W_1^T)^L, and the left side is the AGOP: NFM = AGOP^(1/L), the ansatz with a power that depends on depth (see also
Radhakrishnan, Belkin & Drusvyatskiy 2024, arXiv 2401.04553).

FACT (Boix-Adsera, Mallinar, Simon & Belkin 2025, arXiv 2507.05644). Where training with L2 weight decay lambda has
converged, dL/dW + lambda W = 0 for a layer with inputs x_i and outputs x_i W, L the mean over n examples of the losses
l_i and dL/dW = (1/n) sum_i x_i delta_i^T with delta_i = dl_i / d(x_i W). Multiplied by W^T from the right, with the
gradient at the layer's input dl_i/dx_i = W delta_i,

    W W^T = -(1 / (lambda n)) sum_i x_i (dl_i/dx_i)^T .

The same holds for a convolution with patches in place of inputs and the sum over positions as well.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from agop_jax.core.devices import on_purpose
from agop_jax.core.errors import UserError
from agop_jax.core.networks import Cache, open_network
from agop_jax.core.types import Array, Float, Images, Labels, PRNGKey, Variables
from agop_jax.features.matrix import HIGHEST
from agop_jax.features.patches import kernel_to_matrix
from agop_jax.features.taps import tap

Loss = Callable[[Float[Array, "n classes"], Any], Float[Array, "n"]]
CROSS_ENTROPY: Loss = optax.softmax_cross_entropy_with_integer_labels
_RUNS = Cache()


class DeepLinear(nn.Module):
    """x W_1 ... W_L of flattened images: Dense layers without bias or nonlinearity, `widths` those of their outputs."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Images) -> Float[Array, "n outputs"]:
        """The product."""
        x = x.reshape(len(x), -1)
        for width in self.widths:
            x = nn.Dense(width, use_bias=False, precision=HIGHEST)(x)
        return x


def balanced_start(key: PRNGKey, size: int, widths: Sequence[int], scale: float) -> Variables:
    """Variables of `DeepLinear` that are balanced (Arora, Cohen, Golowich & Hu 2019, arXiv 1810.02281, procedure 1).

    A Gaussian product matrix U D V^T is split into U D^(1/L) Q_1^T, Q_1 D^(1/L) Q_2^T, ..., Q_(L-1) D^(1/L) V^T with
    random orthonormal columns Q_l.

    Args:
      size: number of inputs.
      widths: of the layers' outputs; none smaller than the last.
      scale: the largest singular value of each W_l.
    """
    rank = min(size, widths[-1])
    if min(widths) < rank:
        raise UserError(f"balanced_start: wanted no width below {rank}, got {tuple(widths)}")
    product_key, *keys = jax.random.split(key, len(widths))
    left, singular, right = jnp.linalg.svd(jax.random.normal(product_key, (size, widths[-1])), full_matrices=False)
    root = scale * (singular / singular[0]) ** (1 / len(widths))
    between = [jnp.linalg.qr(jax.random.normal(k, (w, rank)))[0] for k, w in zip(keys, widths[:-1], strict=True)]
    sides = [left, *between, right.T]
    kernels = [(a * root) @ b.T for a, b in itertools.pairwise(sides)]
    return {"params": {f"Dense_{i}": {"kernel": kernel} for i, kernel in enumerate(kernels)}}


def squared(outputs: Float[Array, "n m"], targets: Float[Array, "n m"]) -> Float[Array, "n"]:
    """Half the squared distance, one an example."""
    return 0.5 * ((outputs - targets) ** 2).sum(-1)


@on_purpose
def descend(
    model: Any,
    variables: Any,
    inputs: Any,
    targets: Any,
    *,
    loss: Loss = CROSS_ENTROPY,
    steps: int,
    rate: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> tuple[Any, Float[Array, "steps"]]:
    """Gradient descent on all examples at once, compiled as a whole; small rates without momentum follow the flow.

    Minimises the mean loss plus weight_decay / 2 times the sum of squares of all parameters.

    Args:
      model, variables, inputs: as for `extract`.
      targets: second argument of `loss`.

    Returns:
      The variables after the last step, as `initialize` returns them, and the mean loss before each step.
    """
    network = open_network(model, variables)
    rule = optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(rate, momentum=momentum or None))
    settings = (loss, steps, rate, momentum, weight_decay)
    run = _RUNS.get(network, settings, lambda: jax.jit(partial(_descend, network.apply, rule, loss, steps)))
    params, losses = run(network.params, network.others, inputs, targets)
    return network.rebuild(params, network.others), losses


def _descend(apply: Any, rule: Any, loss: Loss, steps: int, params: Any, others: Any, inputs: Any, targets: Any) -> Any:
    objective = lambda params: loss(apply(params, others, inputs), targets).mean()

    def step(carry, _):
        params, state = carry
        value, gradient = jax.value_and_grad(objective)(params)
        updates, state = rule.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    (params, _), losses = jax.lax.scan(step, (params, rule.init(params)), None, steps)
    return params, losses


class Fact(NamedTuple):
    """Both sides of the identity of FACT for one layer, as factors.

    Attributes:
      matrix: W.
      gradient: dL/dW = (1/n) sum x delta^T, without weight decay.
      weight_decay: lambda.
    """

    matrix: Float[Array, "k f"]
    gradient: Float[Array, "k f"]
    weight_decay: float

    @property
    def dense(self) -> Float[Array, "k k"]:
        """-(1 / (lambda n)) sum x (dl/dx)^T = -(1 / lambda) dL/dW W^T."""
        return -jnp.matmul(self.gradient, self.matrix.T, precision=HIGHEST) / self.weight_decay

    @property
    def relative_error(self) -> Float[Array, ""]:
        """|W W^T - FACT| / |W W^T| in the Frobenius norm; from factors, the difference is (W + dL/dW / lambda) W^T."""
        gap = self.matrix + self.gradient / self.weight_decay
        gram = lambda a: jnp.matmul(a.T, a, precision=HIGHEST)
        own = gram(self.matrix)
        return jnp.sqrt((gram(gap) * own).sum() / (own * own).sum())


@on_purpose
def fact(
    model: Any,
    variables: Any,
    inputs: Any,
    labels: Labels | Float[Array, "n m"],
    weight_decay: float,
    loss: Loss = CROSS_ENTROPY,
) -> dict[str, Fact]:
    """FACT of every layer of one matrix, on the training set: no groups, heads or scans.

    Args:
      model, variables, inputs: as for `extract`; a network that was trained with L2 weight decay on `loss`, and all of
        its training data.
      labels: second argument of `loss`.
      weight_decay: lambda, of the objective mean loss + lambda / 2 |W|^2; above 0.

    Raises:
      UserError: a kernel that is computed from its parameters, whose decay is not that of W.
    """
    if weight_decay <= 0:
        raise UserError(f"fact: needed a weight decay above 0, got {weight_decay}")
    network = open_network(model, variables)
    params, others = network.params, network.others
    tapped = tap(network, inputs)
    objective = lambda params: loss(network.apply(params, others, inputs), labels).mean()
    kernels = tapped.kernels(params, others)
    tapped.with_kernels(params, others, kernels)  # refuses those to which a gradient cannot be carried over
    gradients = tapped.kernels(jax.jit(jax.grad(objective))(params), others)
    matrices = [path for path in tapped.layers if tapped.first(path).groups == 1 and not tapped.first(path).stacked]
    return {
        path: Fact(kernel_to_matrix(kernels[path]), kernel_to_matrix(gradients[path]), weight_decay)
        for path in matrices
    }
