"""AGOP of every convolution by its definition: the Jacobian of the outputs with respect to explicit patches.

AGOP = (1/n) sum_images sum_positions sum_outputs (d f_c / d patch)(d f_c / d patch)^T, each patch an input of its own
(Radhakrishnan et al. 2024, eq. 3; Beaglehole et al. 2023, eq. 4): one network of patches for each layer.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


def all_agops(network: nn.Sequential, images: Tensor) -> list[Tensor]:
    """The k x k AGOP of every convolution, first to last, with patches in PyTorch's order (cin, kh, kw)."""
    places = [place for place, layer in enumerate(network) if isinstance(layer, nn.Conv2d)]
    return [layer_agop(network, place, images) for place in places]


def layer_agop(network: nn.Sequential, place: int, images: Tensor) -> Tensor:
    """Of the convolution at this place: the network up to it, its patches, and their Jacobians through the rest."""
    convolution, rest = network[place], network[place + 1 :]
    with torch.no_grad():
        inputs = network[:place](images)
        patches = functional.unfold(inputs, convolution.kernel_size, padding=convolution.padding).mT.contiguous()
        weight, bias = convolution.weight.flatten(1), convolution.bias
    height, width = inputs.shape[2:]  # of the output too: stride 1, padded to the same size

    def outputs(patches: Tensor) -> Tensor:
        maps = (patches @ weight.mT + bias).mT.reshape(1, len(weight), height, width)
        return rest(maps)[0]

    with torch.no_grad():
        jacobian = torch.func.vmap(torch.func.jacrev(outputs))(patches)  # images, outputs, positions, k
        return torch.einsum("ncpi,ncpj->ij", jacobian, jacobian) / len(images)


def square_root(matrix: Tensor) -> Tensor:
    """Of a symmetric positive semidefinite matrix, by its full singular value decomposition."""
    left, values, right = torch.linalg.svd(matrix)
    return left @ (values.sqrt()[:, None] * right)
