"""What is measured of Hessians, their diagonals and Laplacians: an entry for each row."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from cases import Case, Inputs, Op, Randn, Results, value
from torch import Tensor
from torch.autograd import grad

import torchad_ext as ad


def sine_network(sine: Op, *parameters: Tensor) -> Op:
    """Weights and biases in turn, a sine between layers: ``[..., d]`` to ``[...]``."""
    *hidden, weight, bias = parameters

    def network(x: Tensor) -> Tensor:
        for W, b in zip(hidden[::2], hidden[1::2], strict=True):
            x = sine(F.linear(x, W, b))
        return F.linear(x, weight, bias).squeeze(-1)

    return network


def parameters(randn: Randn, *sizes: int) -> Inputs:
    """Weights and biases of linear layers."""
    pairs = ((randn(b, a) / a**0.5, randn(b)) for a, b in itertools.pairwise(sizes))
    return tuple(itertools.chain.from_iterable(pairs))


def energy(A: Tensor) -> tuple[Op, Op]:
    """x^T A x + sum sin(x) exp(x), in plain PyTorch and in our ops."""
    return (
        lambda x: x @ A @ x + (x.sin() * x.exp()).sum(),
        lambda x: ad.quadratic_form(x, A) + (ad.sin(x) * ad.exp(x)).sum(),
    )


def chain(x: Tensor) -> Tensor:
    return (x[:-1].sin() * x[1:].exp()).sum()


def pairs(x: Tensor) -> Tensor:
    """The Lennard-Jones energy of all pairs of atoms ``[atoms, 3]``."""
    d = x.unsqueeze(1) - x
    inverse = (d.square().sum(-1) + torch.eye(len(x)).to(x)).pow(-3)
    return (inverse.square() - inverse).triu(1).sum()


def attention(x: Tensor) -> Tensor:
    weights = torch.einsum("ik,jk->ij", x, x).softmax(-1)
    return torch.einsum("ij,jk->ik", weights, x).square().sum()


functional = torch.autograd.functional.hessian
HESSIANS: dict[str, Callable[[Op, Tensor], Tensor]] = {
    "torch.func.hessian": lambda f, x: torch.func.hessian(f)(x),
    "jacrev(jacrev)": lambda f, x: torch.func.jacrev(torch.func.jacrev(f))(x),
    "functional.hessian": lambda f, x: functional(f, x),
    "functional.hessian, vectorized": lambda f, x: functional(f, x, vectorize=True),
}


def large_sums() -> Iterator[Case]:
    """Hessians of sums whose intermediates are much larger than x; ``memory.py`` measures what these take."""

    def atoms(randn: Randn) -> Inputs:
        lattice = torch.cartesian_prod(*[torch.arange(5.0)] * 3)[:100]
        return (1.1 * lattice + 0.02 * randn(100, 3),)

    def tokens(randn: Randn) -> Inputs:
        return (randn(64, 4),)

    def regression(randn: Randn) -> Inputs:
        return randn(50) / 10, randn(100_000, 50), randn(100_000).sign()

    energies: tuple[tuple[str, str, Callable[[Randn], Inputs], Callable[..., Tensor]], ...] = (
        ("hessian of the energy of all pairs", "100 × 3", atoms, pairs),
        ("hessian of attention", "64 × 4", tokens, attention),
        ("hessian of a logistic regression", "1e5 × 50", regression, lambda w, X, y: F.softplus(-y * (X @ w)).sum()),
    )
    for name, size, inputs, f in energies:

        def of(take: Callable[[Op, Tensor], Tensor], f: Callable[..., Tensor] = f) -> Op:
            return lambda x, *data: take(lambda x: f(x, *data), x)

        natives: dict[str, Op] = {way: of(take) for way, take in HESSIANS.items()}
        yield Case(name, size, value, inputs, natives, of(ad.hessian), 1 / 1.5, equal=f is not pairs, least=3)


def diagonals() -> Iterator[Case]:
    """hessian_diagonal(batched=True) against a product for each coordinate."""

    def products(f: Op, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (slope,) = grad(f(x).sum(), x, create_graph=True)
        rows = [grad(s.sum(), x, retain_graph=True)[0][:, i] for i, s in enumerate(slope.unbind(1))]
        return torch.stack(rows, 1)

    def hard(f: Op) -> Op:
        # Near 1 in the middle: the product of 50 coordinates is no denormal number, whose arithmetic is slow.
        return lambda x: (4 * x * (1 - x)).prod(-1) * f(x)

    kinds: dict[str, Callable[[tuple[Tensor, ...]], Op]] = {
        "a tanh network": lambda parameters: sine_network(torch.tanh, *parameters),
        "a sine network in our ops": lambda parameters: sine_network(ad.sin, *parameters),
        "a hard constraint": lambda parameters: hard(sine_network(torch.tanh, *parameters)),
    }
    networks = {d: parameters(torch.randn, d, 64, 64, 1) for d in (1, 3, 10, 50)}
    for (kind, make), (d, network) in itertools.product(kinds.items(), networks.items()):
        f = make(network)
        for batch in (64, 1024):

            def inputs(randn: Randn, batch: int = batch, d: int = d) -> Inputs:
                return (randn(batch, d).div(3).sigmoid(),)

            natives: dict[str, Op] = {f"{d} products": functools.partial(products, f)}
            ours = functools.partial(ad.hessian_diagonal, f, batched=True)
            yield Case(f"hessian_diagonal of {kind}", f"{batch} × {d}", value, inputs, natives, ours, 1 / 1.1)


def derivatives() -> Iterator[Case]:
    """Hessians and their diagonals. These rows are in float64 but for the diagonal."""
    ways = HESSIANS

    def of(take: Callable[[Op, Tensor], Tensor], which: int = 0) -> Op:
        return lambda x, A: take(energy(A)[which], x)

    for n, floor in ((64, 1.0), (512, 2.0)):

        def inputs(randn: Randn, n: int = n) -> Inputs:
            return randn(n, dtype=torch.float64), randn(n, n, dtype=torch.float64)

        natives: dict[str, Op] = {name: of(take) for name, take in ways.items()}
        name = "hessian of xᵀAx + Σ sin(x) exp(x)"
        yield Case(f"{name}, in plain PyTorch", str(n), value, inputs, natives, of(ad.hessian), floor)
        yield Case(f"{name}, in our ops", str(n), value, inputs, natives, of(ad.hessian, 1), floor)

    def points(randn: Randn) -> Inputs:
        return (randn(4096, dtype=torch.float64),)

    # The loop without vectorize takes minutes.
    dense = {name: functools.partial(take, chain) for name, take in ways.items() if name != "functional.hessian"}
    ours = functools.partial(ad.hessian, chain, sparsity="auto")
    yield Case("hessian of Σ sin(xᵢ) exp(xᵢ₊₁)", "4096", value, points, dense, ours, 50.0, least=3, attempts=2)
    sparse = functools.partial(ad.hessian, chain, sparsity="auto", layout=torch.sparse_coo)
    name = "hessian of Σ sin(xᵢ) exp(xᵢ₊₁), sparse"
    yield Case(name, "4096", value, points, dense, sparse, 50.0, equal=False, least=3, attempts=2)

    def batch(randn: Randn) -> Inputs:
        return randn(256, 64), *parameters(randn, 64, 128, 128, 1)

    def by_vmap(x: Tensor, *parameters: Tensor) -> Tensor:
        hessians: Tensor = torch.func.vmap(torch.func.hessian(sine_network(torch.sin, *parameters)))(x)
        return hessians.diagonal(dim1=1, dim2=2)

    def diagonal(x: Tensor, *parameters: Tensor) -> Tensor:
        result: Tensor = ad.hessian_diagonal(sine_network(ad.sin, *parameters), x, batched=True)
        return result

    vmapped: dict[str, Op] = {"vmap(hessian), diagonal": by_vmap}
    yield Case("hessian_diagonal of a sine network, 2 × 128", "256 × 64", value, batch, vmapped, diagonal, 3.0)


def arrow(x: Tensor) -> Tensor:
    return x[0] * x.sum() + x.pow(3).sum()


def lennard_jones(x: Tensor) -> Tensor:
    """The energy of atoms whose coordinates are x, of pairs up to a distance of 2.5."""
    squares = (x.view(-1, 1, 3) - x.view(1, -1, 3)).square().sum(-1)
    pairs = (squares < 6.25).triu(1)
    inverse = torch.where(pairs, squares, 1.0) ** -3
    return torch.where(pairs, 4 * (inverse * inverse - inverse), 0.0).sum()


def mismatches(x: Tensor) -> Tensor:
    """The squared mismatches of the flows along the edges of a ring of nodes with 600 chords."""
    n = len(x)
    each = torch.arange(n, device=x.device)
    chords = torch.arange(600, device=x.device)
    start, end = torch.cat([each, chords * 7 % n]), torch.cat([(each + 1) % n, (chords * 11 + 3) % n])
    flow = (x[start] - x[end]).sin()
    mismatch = torch.zeros_like(x).index_add(0, start, flow).index_add(0, end, -flow)
    return (mismatch - 1).square().sum()


def stencil(x: Tensor) -> Tensor:
    side = round(len(x) ** 0.5)
    kernel = torch.linspace(0.5, 1.5, 9, dtype=x.dtype, device=x.device).view(1, 1, 3, 3)
    return F.conv2d(x.view(1, 1, side, side), kernel, padding=1).tanh().sum()


def sparse_hessians() -> Iterator[Case]:
    """Hessians of functions of arrowheads, atoms, grids and stencils, in float64."""
    ways: dict[str, Callable[[Op, Tensor], Tensor]] = {
        "torch.func.hessian": lambda f, x: torch.func.hessian(f)(x),
        "functional.hessian": lambda f, x: torch.autograd.functional.hessian(f, x),
    }

    def lattice(n: int, randn: Randn) -> Inputs:
        side = torch.arange(8, dtype=torch.float64)
        places = torch.cartesian_prod(side, side, side)[: n // 3]
        noise = 0.05 * randn(n, dtype=torch.float64)
        return (1.1 * places.flatten().to(noise.device) + noise,)

    def of(n: int, randn: Randn) -> Inputs:
        return (randn(n, dtype=torch.float64),)

    for name, f, n, inputs in (
        ("an arrowhead", arrow, 3000, of),
        ("500 atoms, Lennard-Jones", lennard_jones, 1500, lattice),
        ("a power flow", mismatches, 1500, of),
        ("a 3 × 3 convolution", stencil, 1600, of),
    ):
        native: dict[str, Op] = {way: functools.partial(take, f) for way, take in ways.items()}
        if f is lennard_jones:
            del native["torch.func.hessian"]  # of 9 GB
        ours = functools.partial(ad.hessian, f, sparsity="auto")
        made = functools.partial(inputs, n)
        yield Case(f"hessian of {name}", str(n), value, made, native, ours, 5.0, least=3, attempts=2)


def nested_laplacian(f: Op, x: Tensor, record: bool) -> Tensor:
    (slope,) = grad(f(x).sum(), x, create_graph=True)
    rows = (grad(s.sum(), x, create_graph=record, retain_graph=True)[0] for s in slope.unbind(-1))
    return torch.stack([row[:, i] for i, row in enumerate(rows)]).sum(0)


def laplacian() -> Iterator[Case]:
    """Of a sine network of 4 layers of 128 at 4096 points."""

    def of(d: int, record: bool) -> Callable[[Randn], Inputs]:
        def inputs(randn: Randn) -> Inputs:
            network = parameters(randn, d, 128, 128, 128, 128, 1)
            return randn(4096, d).requires_grad_(), *(p.requires_grad_(record) for p in network)

        return inputs

    def step(op: Op, x: Tensor, *parameters: Tensor) -> Results:
        loss = op(sine_network(torch.sin, *parameters), x, True).square().mean()
        return grad(loss, parameters[:-1])

    def evaluate(op: Op, x: Tensor, *parameters: Tensor) -> Results:
        return op(sine_network(torch.sin, *parameters), x, False).detach()

    def ours(f: Op, x: Tensor, record: bool) -> Tensor:
        with torch.set_grad_enabled(record):
            return ad.laplacian(f, x.detach(), chunk_size=None if record else 512)

    ways: dict[str, Op] = {"nested autograd": nested_laplacian}
    for d, floor in ((3, 2.5), (10, None)):
        yield Case("laplacian: training step", f"4096 × {d}", step, of(d, True), ways, ours, floor)
    for d, floor in ((3, None), (10, 3.0)):
        yield Case("laplacian: evaluation", f"4096 × {d}", evaluate, of(d, False), ways, ours, floor)


CASES = (*derivatives(), *large_sums(), *diagonals(), *sparse_hessians(), *laplacian())
