"""Training steps of models that name no op: eager mode against ``torch.compile`` with the backends of both libraries.

    python benchmarks/compile_backend.py --calls     # what a call costs beside one of Dynamo's backend "eager"
    python benchmarks/compile_backend.py [--seconds 8] [--threads 2] [--without-inductor] [--check] [NAME ...]

One process; the ways run in turn, from the same parameters on the same data, and medians are compared. Gradients have
to agree first. Inductor is shown as refused where it does not differentiate twice. A run of all models with
Inductor rewrites results/compile-backend.md and the table of docs/speed-up-a-model.md.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from marks import replace_between
from run import HERE, RESULTS, machine
from timing import alternate, quartiles
from torch import Tensor, nn
from torch.autograd import grad

import torchad_ext.compiler  # noqa: F401, registers the backend where no installed package does

Model = Callable[..., Tensor]
PAGE = HERE.parent / "docs" / "speed-up-a-model.md"
BEGIN, END = "<!-- benchmarks/compile_backend.py -->", "<!-- end -->"
HEADER = "| a step | eager, ms | torchad_ext, ms | gain | floor | Inductor, ms |\n|---|---:|---:|---:|---:|---:|"


@dataclass(frozen=True)
class Case:
    """``loss(model, *data)`` is differentiated in the parameters of ``network()``; ``floor`` is the ratio to reach."""

    network: Callable[[], nn.Module]
    data: Callable[[], tuple[Any, ...]]
    loss: Callable[..., Tensor]
    floor: float


class GatedPerceptron(nn.Module):
    """A modified MLP (Wang et al., 2021, arXiv:2001.04536): each layer mixes two encodings of the input."""

    def __init__(self, width: int = 128, depth: int = 4) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, width), nn.Linear(2, width)
        self.layers = nn.ModuleList([nn.Linear(2 if i == 0 else width, width) for i in range(depth)])
        self.last = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        u, v = torch.tanh(self.first(x)), torch.tanh(self.second(x))
        h = x
        for layer in self.layers:
            z = torch.tanh(layer(h))
            h = (1 - z) * u + z * v
        y: Tensor = self.last(h)
        return y


class Sines(nn.Module):
    """A SIREN as users write it: the frequency is a factor in front of the layer."""

    def __init__(self, width: int = 256, depth: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3 if i == 0 else width, width) for i in range(depth)])
        self.last = nn.Linear(width, 1)
        for i, parameters in enumerate(self.layers.parameters()):
            bound = 1 / 3 if i < 2 else math.sqrt(6 / width) / 30  # the first layer has two
            nn.init.uniform_(parameters, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(30.0 * layer(x))
        y: Tensor = self.last(x)
        return y


class Two(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, activation: Callable[[Tensor], Tensor], a: int, b: int, c: int) -> None:
        super().__init__()
        self.activation, self.first, self.second = activation, nn.Linear(a, b), nn.Linear(b, c)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.activation(self.first(x)))
        return y


def shifted_softplus(x: Tensor) -> Tensor:
    return F.softplus(x) - math.log(2.0)


def distances(positions: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    vectors = positions[pairs[0]] - positions[pairs[1]]
    return vectors, vectors.norm(dim=-1, keepdim=True)


def cosine_cutoff(r: Tensor, cutoff: float = 5.0) -> Tensor:
    return 0.5 * (torch.cos(r * (math.pi / cutoff)) + 1.0) * (r < cutoff).to(r.dtype)


class SchNet(nn.Module):
    """Continuous-filter convolutions (Schütt et al., 2017, arXiv:1706.08566)."""

    centers: Tensor

    def __init__(self, width: int = 64, basis: int = 25, depth: int = 2) -> None:
        super().__init__()
        self.register_buffer("centers", torch.linspace(0, 5, basis))
        self.embedding = nn.Embedding(10, width)
        self.filters = nn.ModuleList([Two(shifted_softplus, basis, width, width) for _ in range(depth)])
        self.before = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])
        self.after = nn.ModuleList([Two(shifted_softplus, width, width, width) for _ in range(depth)])
        self.last = Two(shifted_softplus, width, width // 2, 1)

    def forward(self, kinds: Tensor, positions: Tensor, pairs: Tensor) -> Tensor:
        _, r = distances(positions, pairs)
        basis = torch.exp(-2.0 * (r - self.centers) ** 2)
        h = self.embedding(kinds)
        for filters, before, after in zip(self.filters, self.before, self.after, strict=True):
            messages = before(h)[pairs[1]] * (filters(basis) * cosine_cutoff(r))
            h = h + after(torch.zeros_like(h).index_add(0, pairs[0], messages))
        energy: Tensor = self.last(h).sum()
        return energy


class PaiNN(nn.Module):
    """Scalars and vectors that exchange messages (Schütt et al., 2021, arXiv:2102.03150)."""

    def __init__(self, width: int = 64, basis: int = 20, depth: int = 2) -> None:
        super().__init__()
        self.basis, self.embedding = basis, nn.Embedding(10, width)
        self.filters = nn.ModuleList([nn.Linear(basis, 3 * width) for _ in range(depth)])
        self.inner = nn.ModuleList([Two(F.silu, width, width, 3 * width) for _ in range(depth)])
        self.mix = nn.ModuleList([nn.Linear(width, 2 * width, bias=False) for _ in range(depth)])
        self.update = nn.ModuleList([Two(F.silu, 2 * width, width, 3 * width) for _ in range(depth)])
        self.last = Two(F.silu, width, width // 2, 1)

    def forward(self, kinds: Tensor, positions: Tensor, pairs: Tensor) -> Tensor:
        vectors, r = distances(positions, pairs)
        direction = vectors / r
        n = torch.arange(1, self.basis + 1, dtype=r.dtype)
        basis = torch.sin(r * n * (math.pi / 5.0)) / r
        q = self.embedding(kinds).unsqueeze(1)
        mu = q.new_zeros(q.shape[0], 3, q.shape[2])
        for filters, inner, mix, update in zip(self.filters, self.inner, self.mix, self.update, strict=True):
            w = (filters(basis) * cosine_cutoff(r)).unsqueeze(1)
            dq, along, over = (w * inner(q)[pairs[1]]).chunk(3, -1)
            dmu = along * direction.unsqueeze(-1) + over * mu[pairs[1]]
            q = q + torch.zeros_like(q).index_add(0, pairs[0], dq)
            mu = mu + torch.zeros_like(mu).index_add(0, pairs[0], dmu)
            mu_v, mu_w = mix(mu).chunk(2, -1)
            norm = torch.sqrt((mu_v**2).sum(1, keepdim=True) + 1e-8)
            a, b, c = update(torch.cat([q, norm], -1)).chunk(3, -1)
            q = q + a + c * (mu_v * mu_w).sum(1, keepdim=True)
            mu = mu + b * mu_w
        energy: Tensor = self.last(q).sum()
        return energy


class RadialNetwork(nn.Module):
    """Weights of edges from distances, as MACE has them (Batatia et al., 2022, arXiv:2206.07697), with an energy."""

    def __init__(self, width: int = 64, basis: int = 8) -> None:
        super().__init__()
        self.basis = basis
        sizes = [basis, width, width, width, 128]
        self.layers = nn.ModuleList([nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(sizes)])

    def forward(self, kinds: Tensor, positions: Tensor, pairs: Tensor) -> Tensor:
        _, r = distances(positions, pairs)
        n = torch.arange(1, self.basis + 1, dtype=r.dtype)
        u = r / 5.0
        envelope = (1.0 - 28.0 * u**6 + 48.0 * u**7 - 21.0 * u**8) * (r < 5.0)
        x = math.sqrt(2 / 5.0) * torch.sin(r * n * (math.pi / 5.0)) / r * envelope
        for layer in self.layers[:-1]:
            x = F.silu(layer(x)) * 1.679  # normalised activations, as e3nn has them
        energy: Tensor = (self.layers[-1](x) ** 2).sum()
        return energy


class Normalized(nn.Module):
    """Residual layers with normalisation before a tanh, and a softmax over experts."""

    def __init__(self, width: int = 64, depth: int = 3) -> None:
        super().__init__()
        self.first, self.last, self.gate = nn.Linear(8, width), nn.Linear(width, width), nn.Linear(width, width)
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + layer(torch.tanh(norm(x)))
        y: Tensor = (torch.softmax(self.gate(x), -1) * self.last(x)).sum(-1)
        return y


def points(count: int, dims: int) -> tuple[Tensor]:
    return (torch.rand(count, dims).mul(2).sub(1).requires_grad_(),)


def molecule(atoms: int) -> tuple[Tensor, Tensor, Tensor]:
    """Kinds, positions and pairs of atoms within 5 of each other, at random."""
    positions = torch.rand(atoms, 3) * (atoms / 0.08) ** (1 / 3)
    near = (torch.cdist(positions, positions) < 5) & ~torch.eye(atoms, dtype=torch.bool)
    return torch.randint(0, 10, (atoms,)), positions.requires_grad_(), near.nonzero().T.contiguous()


def laplacian_loss(model: Model, x: Tensor) -> Tensor:
    (slope,) = grad(model(x).sum(), x, create_graph=True)
    second = [grad(slope[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(x.shape[-1])]
    return (torch.stack(second).sum(0) + x.sin().prod(-1)).square().mean()


def eikonal_loss(model: Model, x: Tensor) -> Tensor:
    y = model(x)
    (slope,) = grad(y.sum(), x, create_graph=True)
    loss: Tensor = (slope.norm(dim=-1) - 1).square().mean() + torch.exp(-100 * y.abs()).mean()
    return loss


def penalty_loss(model: Model, x: Tensor) -> Tensor:
    y = model(x)
    (slope,) = grad(y.sum(), x, create_graph=True)
    loss: Tensor = (slope.norm(dim=-1) - 1).square().mean() + y.square().mean()
    return loss


def force_loss(model: Model, kinds: Tensor, positions: Tensor, pairs: Tensor) -> Tensor:
    energy = model(kinds, positions, pairs)
    (slope,) = grad(energy, positions, create_graph=True)
    loss: Tensor = slope.square().mean() + 1e-3 * energy.square()
    return loss


CASES = {
    "gated network, Laplacian": Case(GatedPerceptron, functools.partial(points, 2048, 2), laplacian_loss, 1.8),
    "SIREN, eikonal": Case(Sines, functools.partial(points, 2048, 3), eikonal_loss, 1.5),
    "SchNet, energy and forces": Case(SchNet, functools.partial(molecule, 100), force_loss, 1.35),
    "PaiNN, energy and forces": Case(PaiNN, functools.partial(molecule, 60), force_loss, 1.3),
    "normalized network, gradient penalty": Case(Normalized, functools.partial(points, 4096, 8), penalty_loss, 1.3),
    "radial network, forces": Case(RadialNetwork, functools.partial(molecule, 200), force_loss, 1.2),
}


def step(case: Case, network: nn.Module, backend: str | None, data: tuple[Any, ...]) -> Callable[[], list[Tensor]]:
    model = torch.compile(network, backend=backend) if backend else network

    def gradients() -> list[Tensor]:
        return list(grad(case.loss(model, *data), list(network.parameters()), materialize_grads=True))

    return gradients


def measure(case: Case, seconds: float, backends: Sequence[str]) -> dict[str, float]:
    """Median milliseconds of eager mode and of each backend; nan where it is refused."""
    torch.manual_seed(0)
    network, data = case.network(), case.data()
    eager = step(case, network, None, data)
    ways, expected, result = {"eager": eager}, eager(), {}
    for name in backends:
        run = step(case, copy.deepcopy(network), name, data)
        try:
            found = run()
        except RuntimeError as error:
            if "double backward" not in str(error):
                raise
            result[name] = math.nan
            continue
        for ours, native in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, native, rtol=1e-3, atol=1e-4 * float(native.abs().max()))
        ways[name] = run
    samples = alternate(ways, seconds, lambda: None, least=5, warm=2, lead=3)
    return result | {name: quartiles(times).median * 1e3 for name, times in samples.items()}


SMALL: dict[str, Model] = {
    "elements": lambda x: torch.sigmoid(x) * torch.sin(x) + x,
    "elements and rows": lambda x: torch.softmax(torch.sin(x) * x, -1) - x.norm(dim=-1, keepdim=True),
}


def print_calls(seconds: float) -> None:
    """Microseconds of a call with few elements on one thread: nearly all of it is not their computation."""
    torch.set_num_threads(1)
    print("| a call, [4, 8] | backend eager, µs | torchad_ext, µs | more, µs |\n|---|---:|---:|---:|")
    for name, function in SMALL.items():
        torch._dynamo.reset()
        x = torch.randn(4, 8, requires_grad=True)
        ways = {}
        for backend in ("eager", "torchad_ext"):
            model = torch.compile(function, backend=backend)
            ways[backend] = functools.partial(lambda model, x: [model(x) for _ in range(100)], model, x)
        samples = alternate(ways, seconds, lambda: None, least=5, warm=2, lead=3)
        eager, ours = (quartiles(samples[backend]).median * 1e4 for backend in ways)
        print(f"| {name} | {eager:.1f} | {ours:.1f} | {ours - eager:+.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of the names of cases")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--without-inductor", action="store_true", help="whose first call takes minutes")
    parser.add_argument("--calls", action="store_true", help="time calls with few elements alone")
    parser.add_argument("--check", action="store_true", help="fail where a floor is missed")
    given = parser.parse_args()
    os.environ["TORCHAD_EXT_EAGER"] = "wait"  # its compiler would disturb what is measured
    torch.set_num_threads(given.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    if given.calls:
        return print_calls(min(given.seconds, 4.0))
    print(HEADER)
    missed, lines = [], [HEADER]
    for name, case in CASES.items():
        if given.names and not any(part in name for part in given.names):
            continue
        times = measure(case, given.seconds, ["torchad_ext", "inductor"][: 1 if given.without_inductor else 2])
        gain = times["eager"] / times["torchad_ext"]
        inductor = "not run" if given.without_inductor else f"{times['inductor']:.1f}".replace("nan", "refused")
        row = f"{times['eager']:.1f} | {times['torchad_ext']:.1f} | {gain:.2f} | {case.floor} | {inductor}"
        lines.append(f"| {name} | {row} |")
        print(lines[-1], flush=True)
        missed += [name] * (gain < case.floor)
    if not (given.names or given.without_inductor):
        facts = "; ".join(f"{key} {value}" for key, value in machine("cpu").items() if value)
        text = "\n".join([*lines, "", facts, ""])
        (RESULTS / "compile-backend.md").write_text(text)
        replace_between(PAGE, BEGIN, END, text)
    if given.check and missed:
        raise SystemExit(f"below the floor: {', '.join(missed)}")


if __name__ == "__main__":
    main()
