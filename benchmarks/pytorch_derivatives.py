"""Where PyTorch's derivatives are wrong or missing, and whether this library's tools are right there.

Each function is run on samples in float64 as part of s(u) = w·sin(f(x(u))), x(u) moving all its inputs smoothly, and
differentiated along random directions v: s, ∇s·v, ∇(∇s·v)·v', ... Each order is held against central differences of the
order below, extrapolated to a step of 0. Samples at which those do not settle (kinks, steps) are left out.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from marks import replace_between
from torch import Tensor
from torch.autograd import grad
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

import torchad_ext as ad
from torchad_ext._forward.correction_mode import with_corrections

PAGE = Path(__file__).resolve().parents[1] / "docs" / "where_pytorch_is_wrong.md"
BEGIN, END = "<!-- python benchmarks/pytorch_derivatives.py -->", "<!-- end of the table -->"
D = torch.float64
ORDERS = (1, 2, 3)
WAYS = ("reverse", "forward over reverse", "batched")
SAMPLES, SIZE = 4, 125  # of a function, and the most numbers that one has
TOLERANCE = 2e-5  # what is below may be rounding errors


@dataclass
class Case:
    """A call whose floating-point arguments in ``places`` of its leaves are differentiated."""

    name: str
    call: Callable[..., Any]
    leaves: list[Any]
    structure: Any
    places: list[int]
    sizes: list[int] = field(init=False)
    u: Tensor = field(init=False)
    differentiable: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.sizes = [self.leaves[i].numel() * (2 if self.leaves[i].is_complex() else 1) for i in self.places]
        self.u = numbers(sum(self.sizes), 1)
        results = self.results(self.u.clone().requires_grad_())
        tensors = [(i, y) for i, y in enumerate(results) if isinstance(y, Tensor) and y.layout is torch.strided]
        self.differentiable = [i for i, y in tensors if y.requires_grad]

    def value(self, u: Tensor) -> Tensor:
        """f(x(u)), flat."""
        results = self.results(u)
        parts = [results[i] for i in self.differentiable]
        parts = [torch.view_as_real(y.resolve_conj()) if y.is_complex() else y for y in parts]
        return torch.cat([y.reshape(-1) for y in parts])

    def results(self, u: Tensor) -> list[Any]:
        torch.manual_seed(0)
        leaves = [x.detach().clone() if isinstance(x, Tensor) else x for x in self.leaves]
        for i, part in zip(self.places, (0.1 * (u.sin() - self.u.sin())).split(self.sizes), strict=True):
            x = leaves[i]
            moved = torch.view_as_complex(part.reshape(*x.shape, 2)) if x.is_complex() else part.reshape(x.shape)
            leaves[i] = x + moved
        args, kwargs = tree_unflatten(leaves, self.structure)
        return tree_leaves(self.call(*args, **kwargs))

    def s(self, u: Tensor) -> Tensor:
        y = self.value(u)
        w = torch.arange(y.numel(), dtype=D).add(0.3).cos()
        return (w * (0.7 * y).sin()).sum()


def numbers(count: int, seed: int) -> Tensor:
    return torch.randn(count, dtype=D, generator=torch.Generator().manual_seed(seed))


UNIT = torch.eye(3, dtype=D)
# What PyTorch's samples do not have. Each takes tensors of these shapes.
CASES: dict[str, tuple[Callable[..., Any], Sequence[tuple[int, ...]]]] = {
    "nn.functional.ctc_loss": (
        lambda x: F.ctc_loss(x.log_softmax(-1), torch.tensor([[1, 2]]), torch.tensor([4]), torch.tensor([2])),
        [(4, 1, 3)],
    ),
    "nn.functional.scaled_dot_product_attention": (F.scaled_dot_product_attention, [(1, 1, 3, 4)] * 3),
    "nn.functional.layer_norm": (lambda x, w, b: F.layer_norm(x, (4,), w, b), [(3, 4), (4,), (4,)]),
    "nn.functional.group_norm": (lambda x, w, b: F.group_norm(x, 2, w, b), [(2, 4, 3), (4,), (4,)]),
    "nn.utils.weight_norm": (torch._weight_norm, [(3, 2), (3, 1)]),
    "nn.LSTM": (lambda x, *w: torch.lstm(x, (x.new_zeros(1, 1, 2),) * 2, w, True, 1, 0.0, True, False, True), [
        (1, 3, 2), (8, 2), (8, 2), (8,), (8,)
    ]),
    "nn.GRU": (lambda x, *w: torch.gru(x, x.new_zeros(1, 1, 2), w, True, 1, 0.0, True, False, True), [
        (1, 3, 2), (6, 2), (6, 2), (6,), (6,)
    ]),
    "nn.functional.grid_sample": (lambda x, g: F.grid_sample(x, g.tanh(), align_corners=True), [
        (1, 1, 3, 3), (1, 2, 2, 2)
    ]),
    "linalg.solve": (torch.linalg.solve, [(3, 3), (3, 2)]),
    # At arguments where PyTorch's formulas fail. The first tensor is drawn from seed 7, the second one from seed 8.
    "pow (exponent 0)": (lambda b, p: b.exp() ** (p - numbers(2, 8)), [(2,), (2,)]),
    "ldexp (integers below 0)": (lambda x: torch.ldexp(x, torch.tensor([-1, -2])), [(2,)]),
    "polar (negative radius)": (lambda r, phase: torch.polar(-r.exp(), phase), [(2,), (2,)]),
    "vander": (torch.vander, [(3,)]),
    "cholesky_solve (of a full matrix)": (lambda B, L: torch.cholesky_solve(B, L + 3 * UNIT), [(3, 2), (3, 3)]),
    "cholesky_inverse (of a full matrix)": (lambda L: torch.cholesky_inverse(L + 3 * UNIT), [(3, 3)]),
    "sinc (at 0)": (lambda x: torch.sinc(x - numbers(2, 7)), [(2,)]),
    "special.log_ndtr (at -10000)": (lambda x: torch.special.log_ndtr(x - 1e4) - 1e4 * x + 5e7, [(2,)]),
    "special.erfcx (at 10000)": (lambda x: 1e8 * torch.special.erfcx(x + 1e4), [(2,)]),
    "logaddexp (900 apart)": (lambda x: torch.logaddexp(x + 900, -x) - 900, [(2,)]),
    "logaddexp2 (1500 apart)": (lambda x: torch.logaddexp2(x + 1500, -x) - 1500, [(2,)]),
    "nn.functional.mish (at 900)": (lambda x: F.mish(x + 900) - 900, [(2,)]),
    "nn.functional.gelu (tanh, at 40)": (lambda x: F.gelu(x + 40, approximate="tanh") - 40, [(2,)]),
    "nn.functional.gaussian_nll_loss (below eps)": (
        lambda x, v: F.gaussian_nll_loss(x, x.sin(), v.square(), eps=100.0), [(2,), (2,)]
    ),
}  # fmt: skip


def cases(some: Sequence[str] = (), most: int = SAMPLES) -> Iterator[Case]:
    """Those above, and ``most`` of PyTorch's own samples of every function that has a derivative; of those whose names
    contain one of ``some``, if any are given."""
    from torch.testing._internal.common_methods_invocations import op_db

    def wanted(name: str) -> bool:
        return not some or any(part in name for part in some)

    for name, (call, shapes) in CASES.items():
        if not wanted(name):
            continue
        leaves, structure = tree_flatten(
            (tuple(numbers(math.prod(s), 7 + i).reshape(s) for i, s in enumerate(shapes)), {})
        )
        yield Case(name, call, leaves, structure, list(range(len(leaves))))
    for info in op_db:
        title = info.name + (f" ({info.variant_test_name})" if info.variant_test_name else "")
        if (
            not wanted(title)
            or not info.supports_autograd
            or D not in info.supported_dtypes("cpu")
            or title.startswith("_")
            or title in NOT_FUNCTIONS
        ):
            continue
        count = 0
        for sample in info.sample_inputs("cpu", D, requires_grad=True):
            leaves, structure = tree_flatten(((sample.input, *sample.args), sample.kwargs))
            places = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.requires_grad]
            places = [i for i in places if leaves[i].layout is torch.strided]
            if not 2 <= sum(leaves[i].numel() for i in places) <= SIZE:
                continue

            def call(*args: Any, _info: Any = info, _sample: Any = sample, **kwargs: Any) -> Any:
                return _sample.output_process_fn_grad(_info.gradcheck_wrapper(_info.get_op(), *args, **kwargs))

            yield Case(title, call, leaves, structure, places)
            count += 1
            if count == most:
                break


# What is random, is not a function of its values, or writes to where it was not told to.
NOT_FUNCTIONS = {
    *("normal", "normal (number_mean)", "bfloat16", "half", "float", "cfloat", "chalf", "cdouble", "to"),
    *("nn.functional.max_unpool1d", "nn.functional.max_unpool2d", "nn.functional.max_unpool3d"),  # places used twice
    *("nn.functional.hinge_embedding_loss", "nn.functional.cosine_embedding_loss"),  # of targets that are equal to 1
    *("as_strided", "as_strided (partial_views)", "as_strided_scatter", "as_strided_copy"),  # of memory
    *("empty_like", "linalg.norm (subgradients_at_zero)"),
}


def derivative(s: Callable[[Tensor], Tensor], u: Tensor, directions: Sequence[Tensor]) -> Tensor:
    """That of s along each of the directions, by reverse mode over reverse mode."""
    u = u.detach().requires_grad_()
    y = s(u)
    for v in directions:
        if not y.requires_grad:
            return torch.zeros((), dtype=D)
        y = (grad(y, u, create_graph=True, materialize_grads=True)[0] * v).sum()
    return y


def along(f: Callable[[Tensor], Tensor], v: Tensor, u: Tensor) -> Tensor:
    """∇f(u)·v, by torch.func."""
    y: Tensor = (torch.func.grad(f)(u) * v).sum()
    return y


def difference(f: Callable[[float], float], step: float = 2e-2) -> tuple[float, float]:
    """f'(0) by central differences, extrapolated (Richardson), and how far the last two estimates are apart."""
    row = [(f(h) - f(-h)) / (2 * h) for h in (step / 2**k for k in range(4))]
    for j in (1, 2, 3):
        last, row = row, [(4**j * b - a) / (4**j - 1) for a, b in itertools.pairwise(row)]
    return row[0], abs(row[0] - last[-1])


def verdict(given: float, expected: float, error: float) -> str:
    if math.isnan(given) and not math.isnan(expected):
        return "nan"
    off = abs(given - expected)
    if off <= TOLERANCE * max(1e-3, abs(expected)) + 100 * error:
        return "right"
    return f"wrong by {off / abs(expected):.0e}" if off < abs(expected) else "wrong"


def attempt(f: Callable[[], str]) -> str:
    """What f says, or that there is no such derivative."""
    try:
        return f()
    except (RuntimeError, NotImplementedError):
        return "missing"
    except ValueError:  # the Laplacian of batch_norm in training
        return "refused"


def by_pytorch(case: Case) -> tuple[dict[tuple[str, int], str], list[tuple[float, float]]]:
    """A verdict for each way and order, and the expected derivatives with their errors."""
    u, vs = case.u, [numbers(case.u.numel(), 2 + k) for k in ORDERS]
    found: dict[tuple[str, int], str] = {}
    expected: list[tuple[float, float]] = []
    reverse: list[float] = []
    for k in ORDERS:
        before = list(vs[: k - 1])
        ref, error = difference(lambda h, k=k, before=before: float(derivative(case.s, u + h * vs[k - 1], before)))  # type: ignore[misc]
        if not math.isfinite(ref) or error > 1e-3 * max(abs(ref), 1e-3):
            break
        expected.append((ref, error))

        def by_reverse(k: int = k, ref: float = ref, error: float = error) -> str:
            reverse.append(float(derivative(case.s, u, vs[:k])))
            return verdict(reverse[-1], ref, error)

        found["reverse", k] = attempt(by_reverse)
        if found["reverse", k] != "right":
            break
    for k, (ref, error) in enumerate(expected, 1):

        def by_forward(k: int = k, ref: float = ref, error: float = error) -> str:
            f = case.s
            for v in vs[: k - 1]:
                f = functools.partial(along, f, v)
            given = float(torch.func.jvp(f, (u,), (vs[k - 1],))[1])
            right = found.get(("reverse", k)) == "right"
            return verdict(given, reverse[k - 1] if right else ref, 0.0 if right else error)

        found["forward over reverse", k] = attempt(by_forward)
        if found.get(("reverse", k)) == "right":
            found["batched", k] = attempt(lambda k=k: by_rows(case, vs[: k - 1]))  # type: ignore[misc]
    return found, expected


def by_rows(case: Case, directions: Sequence[Tensor]) -> str:
    """Pullbacks of the value (of a derivative's gradient) in a batch, against one by one."""
    u = case.u.detach().requires_grad_()
    if directions:
        y = grad(derivative_at(case.s, u, directions[1:]), u, create_graph=True, materialize_grads=True)[0]
    else:
        y = case.value(u)
    if not y.requires_grad:
        return "right"
    seeds = numbers(3 * y.numel(), 9).reshape(3, -1)
    one_by_one = torch.stack([grad(y, u, c, retain_graph=True, materialize_grads=True)[0] for c in seeds])
    (rows,) = grad(y, u, seeds, retain_graph=True, is_grads_batched=True, materialize_grads=True)
    off, size = float((rows - one_by_one).abs().max()), float(one_by_one.abs().max())
    return "right" if off <= 1e-9 * max(size, 1e-3) else f"wrong by {off / size:.0e}"


def derivative_at(s: Callable[[Tensor], Tensor], u: Tensor, directions: Sequence[Tensor]) -> Tensor:
    y = s(u)
    for v in directions:
        y = (grad(y, u, create_graph=True, materialize_grads=True)[0] * v).sum()
    return y


def by_tools(case: Case, expected: Sequence[tuple[float, float]]) -> dict[str, str]:
    """A verdict for each tool of this library, at the orders that are known."""
    u, vs = case.u, [numbers(case.u.numel(), 2 + k) for k in ORDERS]
    s, mixed = case.s, (torch.outer(vs[0], vs[1]) + torch.outer(vs[1], vs[0])) / 2
    derivatives = [
        ("jacobian", 1, lambda: ad.jacobian(s, u) @ vs[0]),
        ("jacobian, forward", 1, lambda: ad.jacobian(s, u, strategy="forward") @ vs[0]),
        ("hvp", 2, lambda: ad.hvp(s, u, vs[0]) @ vs[1]),
        ("hessian", 2, lambda: vs[0] @ ad.hessian(s, u) @ vs[1]),
        ("hessian, forward over reverse", 2, lambda: vs[0] @ ad.hessian(s, u, strategy="forward-over-reverse") @ vs[1]),
        ("laplacian", 2, lambda: ad.laplacian(s, u, mixed)),
        ("gradient of laplacian", 3, lambda: derivative(lambda u: ad.laplacian(s, u, mixed), u, vs[2:])),
        ("gradient of hvp", 3, lambda: derivative(lambda u: ad.hvp(s, u, vs[0]) @ vs[1], u, vs[2:])),
    ]
    return {
        name: attempt(lambda k=k, f=f: verdict(float(f()), *expected[k - 1]))  # type: ignore[misc]
        for name, k, f in derivatives
        if k <= len(expected)
    }


def worst(verdicts: Sequence[str]) -> str:
    """Wrong before nan before missing before right."""
    return max(verdicts, key=lambda v: (v.startswith("wrong"), v == "nan", v == "missing", v), default="")


@dataclass
class Row:
    """What was found of a function: the worst verdict of its samples for each way and order, and for each tool."""

    pytorch: dict[tuple[str, int], str] = field(default_factory=dict)
    tools: dict[str, str] = field(default_factory=dict)


def measured(some: Sequence[str] = (), most: int = SAMPLES) -> dict[str, Row]:
    """The rows of :func:`cases`."""
    rows: dict[str, Row] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in cases(some, most):
            if not case.differentiable:
                continue
            row = rows.setdefault(case.name, Row())
            found, expected = by_pytorch(case)
            for key, text in found.items():
                row.pytorch[key] = worst([text, row.pytorch.get(key, "right")])
            if any(text != "right" for text in found.values()):
                for tool, text in by_tools(case, completed(case, expected)).items():
                    row.tools[tool] = worst([text, row.tools.get(tool, "right")])
    return rows


def completed(case: Case, expected: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """With the orders above those of PyTorch's that are right, by differences of this library's derivatives."""
    u, vs = case.u, [numbers(case.u.numel(), 2 + k) for k in ORDERS]
    lower: dict[int, Callable[[Tensor], Tensor]] = {
        2: lambda u: derivative(with_corrections(case.s), u, vs[:1]),
        3: lambda u: ad.hvp(case.s, u, vs[0]) @ vs[1],
    }
    for k in range(len(expected) + 1, 4):
        try:
            ref, error = difference(lambda h, k=k: float(lower[k](u + h * vs[k - 1])))  # type: ignore[misc]
        except (RuntimeError, NotImplementedError, KeyError):
            break
        if not math.isfinite(ref) or error > 1e-3 * max(abs(ref), 1e-3):
            break
        expected = [*expected, (ref, error)]
    return expected


def cell(verdicts: dict[int, str]) -> str:
    """ "right", or the lowest orders at which it is something else."""
    bad = {k: text for k, text in sorted(verdicts.items()) if text != "right"}
    if not bad:
        return "right" if verdicts else ""
    order, text = next(iter(bad.items()))
    return f"order {order}: {text}"


def table(rows: dict[str, Row]) -> str:
    faulty = {name: row for name, row in rows.items() if any(text != "right" for text in row.pytorch.values())}
    lines = [
        f"With PyTorch {torch.__version__.partition('+')[0]} on a CPU: of {len(rows)} functions, these "
        f"{len(faulty)} have a derivative up to the third that is wrong, nan or missing.",
        "",
        f"| function | {' | '.join(WAYS)} | this library |",
        f"|{' --- |' * (len(WAYS) + 2)}",
    ]
    for name, row in sorted(faulty.items()):
        ways = [cell({k: row.pytorch[way, k] for k in ORDERS if (way, k) in row.pytorch}) for way in WAYS]
        bad = [f"{tool}: {text}" for tool, text in row.tools.items() if text != "right"]
        lines.append(f"| `{name}` | {' | '.join(ways)} | {'; '.join(bad) or 'right'} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares PyTorch's derivatives with differences.")
    parser.add_argument("some", nargs="*", help="only functions whose names contain one of these; nothing is kept then")
    some = parser.parse_args().some
    text = table(measured(some))
    print(text)
    if not some:
        replace_between(PAGE, BEGIN, END, text)


if __name__ == "__main__":
    main()
