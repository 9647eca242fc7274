"""Row ops against PyTorch's own: value, gradients and double backward, and models that are trained on derivatives."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from cases import Case, Inputs, Op, Randn, Results, value
from torch import Tensor
from torch.autograd import grad
from torch.nn.attention import SDPBackend, sdpa_kernel

import torchad_ext as ad


class Normalization(NamedTuple):
    """A row op, PyTorch's, how many weights both take, and the floors of f, f + b and f + b + bb for some shapes."""

    ours: Op
    native: Mapping[str, Op]
    weights: int
    floors: Mapping[tuple[int, int], tuple[float, float, float]]


WIDE, MANY, VECTORS = (4096, 256), (65536, 64), (1_000_000, 3)
COMMON = {VECTORS: (4.0, 6.0, 12.0)}
OPS = {
    "layer_norm": Normalization(
        lambda x, *weights: ad.layer_norm(x, x.shape[-1:], *weights),
        {"F.layer_norm": lambda x, *weights: F.layer_norm(x, x.shape[-1:], *weights)},
        2,
        {WIDE: (1.1, 1.5, 8.0), MANY: (1.1, 1.5, 10.0), **COMMON},
    ),
    "rms_norm": Normalization(
        lambda x, weight: ad.rms_norm(x, x.shape[-1:], weight),
        {"F.rms_norm": lambda x, weight: F.rms_norm(x, x.shape[-1:], weight)},
        1,
        dict.fromkeys((WIDE, MANY), (1.3, 5.0, 8.0)),
    ),
    "softmax": Normalization(
        lambda x: ad.softmax(x, -1),
        {"F.softmax": lambda x: F.softmax(x, -1)},
        0,
        {WIDE: (1.3, 1.3, 5.0), MANY: (1.3, 1.3, 5.0), **COMMON},
    ),
    "log_softmax": Normalization(
        lambda x: ad.log_softmax(x, -1),
        {"F.log_softmax": lambda x: F.log_softmax(x, -1)},
        0,
        dict.fromkeys((WIDE, MANY), (1.3, 1.3, 5.0)),
    ),
    "vector_norm": Normalization(
        lambda x: ad.vector_norm(x, dim=-1),
        {"linalg.vector_norm": lambda x: torch.linalg.vector_norm(x, dim=-1)},
        0,
        dict.fromkeys((WIDE, MANY), (1.1, 6.0, 10.0)),
    ),
    "normalize": Normalization(
        lambda x: ad.normalize(x, dim=-1),
        {"F.normalize": lambda x: F.normalize(x, dim=-1)},
        0,
        {WIDE: (1.1, 6.0, 10.0), MANY: (1.1, 6.0, 10.0), **COMMON},
    ),
}


def pullback(op: Op, cotangent: Tensor, *given: Tensor) -> Results:
    inputs = given[: len(given) // 2]
    return grad(op(*inputs), inputs, cotangent)


def second_pullback(op: Op, cotangent: Tensor, *given: Tensor) -> Results:
    inputs, seeds = given[: len(given) // 2], given[len(given) // 2 :]
    gradients = grad(op(*inputs), inputs, cotangent, create_graph=True)
    return grad(gradients, (*inputs, cotangent), seeds, materialize_grads=True)


COMPUTATIONS: dict[str, Callable[..., Results]] = {"f": value, "f + b": pullback, "f + b + bb": second_pullback}


def normalizations() -> Iterator[Case]:
    for (name, op), (what, run) in itertools.product(OPS.items(), COMPUTATIONS.items()):
        for (rows, length), floors in op.floors.items():

            def inputs(
                randn: Randn, run: Any = run, op: Normalization = op, rows: int = rows, length: int = length
            ) -> Inputs:
                shapes = (rows, length), *[(length,)] * op.weights
                xs = tuple(randn(*shape) for shape in shapes)
                if run is value:
                    return xs
                cotangent = randn(*op.ours(*xs).shape).requires_grad_()
                return cotangent, *(x.requires_grad_() for x in xs), *(randn(*shape) for shape in shapes)

            floor = floors[list(COMPUTATIONS).index(what)]
            yield Case(f"{name}: {what}", f"{rows} × {length}", run, inputs, op.native, op.ours, floor)


WIDTH, LAYERS = 128, 4


def hessian_product_training(normalize: Op, x: Tensor, v: Tensor, *parameters: Tensor) -> Results:
    """The gradient in the parameters of |Hv|², H the Hessian of a network with normalisation in its inputs."""
    h = x
    for matrix, weight, bias in zip(parameters[::3], parameters[1::3], parameters[2::3], strict=True):
        h = h + torch.tanh(normalize(h, weight, bias) @ matrix)
    (slope,) = grad(h.square().mean(), x, create_graph=True)
    (product,) = grad((slope * v).sum(), x, create_graph=True)
    return grad(product.square().sum(), parameters)


def network(randn: Randn) -> Inputs:
    layers = [(randn(WIDTH, WIDTH) / WIDTH**0.5, 1 + randn(WIDTH) / 10, randn(WIDTH) / 10) for _ in range(LAYERS)]
    parameters = (x.requires_grad_() for layer in layers for x in layer)
    return randn(4096, WIDTH).requires_grad_(), randn(4096, WIDTH), *parameters


@ad.rowwise
def attention_weights(scores, mask, scale=1.0):  # type: ignore[no-untyped-def]
    """Scale, mask and softmax in one pass."""
    return torch.softmax(scores * scale + mask, -1)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Two products, and a row op between them."""
    weights: Tensor = attention_weights(q @ k.mT, mask, q.shape[-1] ** -0.5)
    return weights @ v


def native_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """PyTorch's, by the kernel that has a double backward."""
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v, mask)


def force_training(attend: Callable[..., Tensor], mask: Tensor, *inputs: Tensor) -> Results:
    """The gradients of a loss on the gradient of an energy of attention, 4 heads of 32, 256 tokens, a batch of 4."""
    forces = grad(attend(*inputs, mask).square().sum(), inputs, create_graph=True)
    return grad(torch.stack([f.square().sum() for f in forces]).sum(), inputs)


def tokens(randn: Randn) -> Inputs:
    mask = torch.full_like(randn(256, 256), float("-inf")).triu(1)  # causal
    return mask, *(randn(4, 4, 256, 32).requires_grad_() for _ in range(3))


def models() -> Iterator[Case]:
    layer_norm = OPS["layer_norm"]
    name = "Hessian-vector product of a network with layer_norm: training step"
    native, ours = layer_norm.native, layer_norm.ours  # PyTorch's third derivative of it is wrong
    yield Case(name, f"4096 × {WIDTH}", hessian_product_training, network, native, ours, 1.5, equal=False)
    natives: dict[str, Op] = {"scaled_dot_product_attention": native_attention}
    yield Case(
        "forces of attention: training step", "4 × 4 × 256 × 32", force_training, tokens, natives, attention, 1.3
    )


CASES = (*normalizations(), *models())
