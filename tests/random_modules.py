"""Random modules for the backend of torch.compile, each held against eager mode at orders 0 to 3 in float64.

python tests/random_modules.py 300              # derivatives run as programs, without a compiler
python tests/random_modules.py 20 --kernels     # by kernels
"""

from __future__ import annotations

import argparse
import functools
import linecache
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchad_ext import compiler
from torchad_ext._elementwise import Elementwise
from torchad_ext._fusion import fused_ops, graph_calls
from torchad_ext._native import fast_path
from torchad_ext._native.kernels import dtype_name
from torchad_ext._row_function import RowFunction
from torchad_ext._symbolic.cpp import lower
from torchad_ext._symbolic.evaluate import evaluate, evaluate_rows
from torchad_ext._torch_state import elementwise_strides

FULL, COLUMN, ROW = (4, 3), (4, 1), (3,)
# a is of any shape, f and g of the full one, r of a row. Each line makes or changes y, full where no shape is given.
LINES = {
    "y = torch.sin({a}) * {f}": FULL,
    "y = F.silu({f}) + {a}": FULL,
    "y = ({f} * {g}).tanh()": FULL,
    "y = {f} / (1 + {a} ** 2)": FULL,
    "y = torch.where({a} > {f}, {f}, {g})": FULL,
    "y = ({a} > 0).to({f}.dtype) * {f}": FULL,
    "y = {f}.masked_fill({g} < 0, 0.5)": FULL,
    "m = {f} > {a}; y = torch.where(m & ({g} < 1), {f}, {a} * {g}) + m.any()": FULL,
    "y = torch.exp(-{f} ** 2) * {a}": FULL,
    "y = torch.sigmoid(self.slope * {f}) * {f}": FULL,
    "y = {f} * self.weight + {a}": FULL,
    "y = self.linear({f})": FULL,
    "y = torch.addcmul({f}, {g}, {a}, value=0.5)": FULL,
    "y = torch.lerp({f}, {g}, 0.3) - {a}": FULL,
    "y = {f}.t().t() * 0.5": FULL,
    "y = {f}.reshape(3, 4).sin().reshape(4, 3)": FULL,
    "y = {f}.t().contiguous().t() + {a}": FULL,
    "y = torch.softmax({f}, -1) * {g}": FULL,
    "y = {f} * {g}.detach()": FULL,
    "y = torch.cat([{f}[:, :1].cos(), {g}[:, 1:]], -1)": FULL,
    "with torch.no_grad(): c = {f}.sin()\n        y = {g} * c": FULL,
    "y = torch.logaddexp({f}, torch.zeros_like({f}))": FULL,
    "y = {f} * {f}.shape[0] + self.number": FULL,
    "y = {f} + 0.5; y.mul_({g}); y = y * 1": FULL,
    "y = {f} * 2; z = y + {a}; y += {g}; y = y - z": FULL,
    "y = {f} - {g}; y[:, 0] = 0.5; y = y.cos()": FULL,
    "y = {f} * 3; v = y[:, :2]; v.add_(1); y = y + {a}": FULL,
    "y = F.elu({f} + {g}, inplace=True)": FULL,
    "y = {f} * 0.5; e = y.exp(); y.add_(1); y = y + e * 0.1": FULL,
    "y = {f}.mean(-1, keepdim=True)": COLUMN,
    "y = ({f} * {g}).sum(-1, keepdim=True).tanh()": COLUMN,
    "y = {f}[:, :1].sin()": COLUMN,
    "y = F.layer_norm({f}, (3,), self.weight, {r}) * {g}": FULL,
    "y = F.rms_norm({f} + {a}, (3,))": FULL,
    "y = F.log_softmax({f} * {g}.sin(), 1) - {a}": FULL,
    "y = torch.exp({f}.sin()).softmax(dim=-1)": FULL,
    "y = F.normalize({f} + 0.3, dim=1) + {a}": FULL,
    "y = {f} - {f}.mean(-1)[:, None]": FULL,
    "y = {f} / (({g} + 0.3).norm(dim=-1).unsqueeze(-1) + 1)": FULL,
    "y = {f} - torch.logsumexp({f} + {g}, 1)[..., None]": FULL,
    "d = ({f} * {g}).sum(-1); y = {f} * (d.cos() * d.sin()).unsqueeze(1)": FULL,
    "y = torch.where({f} > {f}.mean(-1, keepdim=True), ({f} + self.weight).std(-1, keepdim=True), {g})": FULL,
    "y = {f}.amax(-1, keepdim=True) - {f}": FULL,
    "s = {f}.softmax(-1); y = s.log() + {a}; s.mul_(2); y = y * s": FULL,
    "s = {f}.softmax(-1) * {g}; d = s.sum(-1); d += 1; y = s * d[:, None]": FULL,
    "d = torch.linalg.vector_norm({f} + 0.3, dim=1); e = d.unsqueeze(1); e.mul_(0.5); y = {g} * e + d[:, None]": FULL,
    "y = (({f} * {a}).unsqueeze(1) * {g}[:, None].cos()).squeeze(1)": FULL,
    "e = {f} * {g}; v = e[None]; y = (v * {a}.sin() - v)[0] + {r}": FULL,
    "v = ({f} * {r} + {a})[:, None, :]; v.mul_(0.5); y = (v * {g}.unsqueeze(dim=-2) + v).sum(1)": FULL,
    "e = {f} * {g}; v = torch.unsqueeze(e, 0); y = (v * {a})[0]; e.add_(1); y = y * e": FULL,
    "with torch.no_grad(): e = {f} * {g}\n        y = (e[None] * {a})[0]": FULL,
    "y = ({f}.unsqueeze(-1) * {g}.unsqueeze(-1).cos())[..., 0]; y = y * y.sum(-1)[:, None]": FULL,
    "y = ({f} * {a})[:, :, None].squeeze(-1); y = y.softmax(-1) * (y * {g}).mean(-1).unsqueeze(-1)": FULL,
    "b, c, d = ({f} * {g}).sin().unbind(-1); y = torch.stack([b * c, d.cos(), b], 1) + {a}": FULL,
    "b, c = ({f} + {a}).split([1, 2], -1); y = torch.cat([b * c, b.exp()], 1).tanh()": FULL,
    "y = ({f} * {r}).var(-1, unbiased=False, keepdim=True)": COLUMN,
    "y = F.cosine_similarity({f} + 0.3, {g} + 0.2, dim=-1).unsqueeze(-1)": COLUMN,
    "y = (torch.linalg.vecdot({f}, {f}) + 0.1).sqrt()[:, None]": COLUMN,
    "y = {f}.sum(0)": ROW,
    "y = self.weight.exp() * 0.2": ROW,
}


def source(seed: int) -> str:
    """The class of a random module."""
    draw = random.Random(seed)
    names: dict[str, tuple[int, ...]] = {"x": FULL}
    body = []
    for i in range(draw.randint(3, 9)):
        line, shape = draw.choice(list(LINES.items()))
        full = [name for name, of in names.items() if of == FULL]
        chosen = {"f": draw.choice(full[-3:]), "g": draw.choice(full), "a": draw.choice(list(names))}
        chosen["r"] = draw.choice([name for name, of in names.items() if of == ROW] or ["self.weight"])
        body.append(line.format(**chosen))
        body.append(f"v{i} = y")
        names[f"v{i}"] = shape
    results = draw.sample(list(names)[1:], min(2, len(names) - 1))
    text = "\n        ".join([*body, f"return {', '.join(dict.fromkeys([*results, f'v{i}']))},"])
    return f"""
class Module(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.number = nn.Linear(3, 3), 0.5
        self.slope, self.weight = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.tensor([0.5, -1.0, 2.0]))

    def forward(self, x):
        {text}
"""


def layer_norm(x: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Its formula: the third derivative of F.layer_norm is wrong."""
    centred = x - x.mean(-1, keepdim=True)
    y = centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + 1e-5)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def module(seed: int, reference: bool = False) -> nn.Module:
    text = source(seed)
    text = text.replace("F.layer_norm", "layer_norm") if reference else text
    name = f"<random module {seed}>"
    linecache.cache[name] = len(text), None, text.splitlines(True), name
    scope: dict[str, Any] = {"torch": torch, "nn": nn, "F": F, "layer_norm": layer_norm, "__name__": __name__}
    exec(compile(text, name, "exec"), scope)
    torch.manual_seed(seed)
    made: nn.Module = scope["Module"]().double()
    return made


def orders(f: Callable[[Tensor], Any], parameters: list[Tensor], x: Tensor, highest: int = 3) -> Iterator[Tensor]:
    """The results of f, and its derivatives in x and all parameters, each of a weighted sum of the one before."""
    x = x.clone().requires_grad_()
    results = f(x)
    yield from (y.detach() for y in results)
    weights = torch.Generator().manual_seed(1)

    def summed(values: Any) -> Tensor:
        drawn = [torch.rand(y.shape, dtype=y.dtype, generator=weights) for y in values]
        return sum(((y * w).sum() for y, w in zip(values, drawn, strict=True)), x.new_zeros(()))

    total = summed(results)
    for _ in range(highest):
        if not total.requires_grad:
            return
        gradients = torch.autograd.grad(total, [x, *parameters], create_graph=True, materialize_grads=True)
        yield from (g.detach() for g in gradients)
        total = summed(gradients)


def check(seed: int) -> int | None:
    """Compares a module with its compiled form; the number of its clusters, None if eager mode cannot differentiate."""
    model = module(seed)
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    parameters = list(model.parameters())
    reference = module(seed, reference=True)
    try:
        expected = list(orders(reference, list(reference.parameters()), x))
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        return None
    torch._dynamo.reset()
    explanation = compiler.Explanation()
    fused = functools.partial(compiler._fused, explanation=explanation)
    compiled = torch.compile(model, backend=lambda graph, _: fused(graph))
    results = list(orders(compiled, parameters, x))
    if "layer_norm" in {name for _, name, _ in explanation.left}:  # its own third derivative is wrong
        results, expected = results[: -1 - len(parameters)], expected[: -1 - len(parameters)]
    for ours, native in zip(results, expected, strict=True):
        torch.testing.assert_close(ours, native, rtol=1e-9, atol=1e-9)
    assert [y.requires_grad for y in compiled(x)] == [y.requires_grad for y in model(x)]
    assert [y.stride() for y in compiled(x)] == [y.stride() for y in model(x)]
    return len(explanation.clusters)


class Interpreted:
    """The program of an Elementwise or a RowFunction in the place of its kernel."""

    def __init__(self, function: Elementwise, dtype: torch.dtype) -> None:
        program = function.program
        is_lowered = not isinstance(function, RowFunction)
        self.program = replace(program, outputs=lower(program, dtype_name(dtype))) if is_lowered else program

    def __call__(self, xs: Any, scalars: Any, *shape: Any, out: Any = ()) -> list[Tensor]:
        dtype = xs[0].dtype
        wide = [x.to(torch.promote_types(dtype, torch.float32)) for x in xs]
        with torch.no_grad():
            given = (self.program, *shape, *wide, *scalars)
            results = evaluate_rows(*given) if shape else evaluate(*given)
        results = [y.to(dtype) for y in ([results] if isinstance(results, Tensor) else results)]
        if shape:
            return [y.clone(memory_format=torch.contiguous_format) for y in results]
        for to, y in zip(out, results, strict=False):  # the sum along each dimension in which it has stride 0
            once = to.as_strided([n if step else 1 for n, step in zip(to.shape, to.stride(), strict=True)], to.stride())
            once.copy_(y.expand(to.shape).sum_to_size(once.shape))
        strides = elementwise_strides(*xs)
        return [torch.empty_strided(y.shape, strides, dtype=dtype).copy_(y) for y in results]


def interpret(set_attribute: Callable[[Any, str, Any], object]) -> None:
    """Runs derivatives as programs of PyTorch's calls: a kernel takes a third of a second of a compiler each."""

    def interpreted(self: Elementwise, device: str, dtype: torch.dtype, *variant: bool) -> Interpreted | None:
        return Interpreted(self, dtype) if self.keeps(dtype) else None

    # In place of the method that keeps kernels: functions of the library outlive a test.
    for function in (Elementwise, RowFunction):
        set_attribute(function, "kernel", interpreted)
        set_attribute(function, "apply_in_cpp", lambda self, *args: NotImplemented)  # by what other tests made in C++
    set_attribute(compiler, "compile_kernels", lambda work: None)
    set_attribute(fast_path, "module", lambda: None)
    set_attribute(graph_calls, "SMALLEST", 0)
    set_attribute(fused_ops, "_ops", {})  # those of other tests have kernels


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=300)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--kernels", action="store_true")
    given = parser.parse_args()
    graph_calls.SMALLEST = 0
    if not given.kernels:
        interpret(setattr)
    compared = clusters = 0
    seed = given.start
    while compared < given.count:
        try:
            found = check(seed)
        except Exception:
            print(f"seed {seed}:\n{source(seed)}")
            raise
        compared, clusters = compared + (found is not None), clusters + (found or 0)
        seed += 1
    print(
        f"{compared} modules with {clusters} clusters agree with eager mode at orders 0 to 3 (seeds up to {seed - 1})"
    )
