"""Every op on arguments that nobody ought to give: what its definition gives, or an exception that says why."""

from __future__ import annotations

import contextlib
import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_arguments import FLOATS, OTHERS, Argument, Counted, Outcome, arguments, outcome, shapes
from builds import with_operators
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import torchad_ext as ad
from torchad_ext._formula import FormulaError, parse
from torchad_ext._rowwise import Rowwise
from torchad_ext._verification.rounding_errors import MoreRounding
from torchad_ext.ops import CATALOGUE
from torchad_ext.rows import ROW_CATALOGUE

FEW = settings(
    max_examples=500, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
MANY = settings(FEW, max_examples=20_000, derandomize=False)


@ad.pointwise
def sums(x, y, a=2.0):
    return a * x + y.sin(), x * y


@ad.rowwise
def share(x, weight, a=1.0):
    return x * weight / (a + x.square().sum(-1, keepdim=True)), x.amax(-1)


OPS: dict[str, Any] = {
    **CATALOGUE,
    **ROW_CATALOGUE,
    "sums": sums,
    "share": share,
    "quadratic_form": ad.quadratic_form,
    "siren.derivative('omega')": ad.siren.derivative("omega"),
}
EMPTY = inspect.Parameter.empty
PARAMETERS = {name: {p.name: p.default for p in inspect.signature(op).parameters.values()} for name, op in OPS.items()}


@dataclass(frozen=True)
class Call:
    """An op, its arguments, and how often its result is differentiated."""

    op: str
    positional: tuple[Argument, ...]
    named: tuple[tuple[str, Argument], ...]
    order: int

    @property
    def given(self) -> dict[str, Argument]:
        """The arguments by name."""
        return dict(zip(PARAMETERS[self.op], self.positional, strict=False)) | dict(self.named)

    def results_of(
        self, function: Callable[..., Any], wide: bool = False, rounding: MoreRounding | None = None
    ) -> list[tuple[Any, int]]:
        """The results and their gradients, each with how often it was differentiated."""
        args = [argument.make(wide) for argument in self.positional]
        kwargs = {name: argument.make(wide) for name, argument in self.named}
        with rounding or contextlib.nullcontext():
            return self._derivatives(function, args, kwargs)

    def _derivatives(
        self, function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]
    ) -> list[tuple[Any, int]]:
        leaves = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor) and x.requires_grad]
        result = function(*args, **kwargs)
        values = list(result) if isinstance(result, (tuple, list)) else [result]
        known = [(y, 0) for y in values]
        wanted = [y for y in values if isinstance(y, torch.Tensor) and y.requires_grad]
        for order in range(1, self.order + 1):
            if not leaves or not wanted:
                break
            weights = [of_some_size(y.detach() * 0.25 + 0.5) for y in wanted]
            grads = torch.autograd.grad(wanted, leaves, weights, create_graph=True, allow_unused=True)
            known += [(g, order) for g in grads]
            wanted = [g for g in grads if g is not None and g.requires_grad]
        return known


def of_some_size(y: torch.Tensor) -> torch.Tensor:
    """Cotangents whose products do not overflow in whatever order, if they are finite."""
    if y.layout is not torch.strided or y.is_nested or y.is_complex():
        return y
    return torch.where(y.isfinite(), y.clamp(-100, 100), y)


@st.composite
def calls(draw: st.DrawFn, names: Sequence[str] = tuple(OPS)) -> Call:
    name = draw(st.sampled_from(list(names)))
    shape, dtype = draw(shapes), draw(st.sampled_from(FLOATS))
    positional: list[Argument] = []
    named: list[tuple[str, Argument]] = []
    for parameter, default in PARAMETERS[name].items():
        if default is not EMPTY and draw(st.integers(0, 3)):
            continue
        of = (*shape, *shape[-1:]) if parameter == "A" else shape
        argument = draw(arguments(of, dtype))
        if default is not EMPTY and draw(st.booleans()):
            argument = Argument(other=draw(st.sampled_from(list(OTHERS))))
        if default is EMPTY and not named and draw(st.integers(0, 7)):
            positional.append(argument)
        else:
            named.append((parameter, argument))
    if draw(st.integers(0, 30)) == 0:
        named.append(("wrong", draw(arguments(shape, dtype))))
    return Call(name, tuple(positional), tuple(named), draw(st.integers(0, 2)))


def of_no_number(gradient: Any, value: Any) -> Any:
    """Where is a gradient nan at an infinite value or a nan? The cotangent is none either, and PyTorch masks some."""
    both = [y for y in (gradient, value) if isinstance(y, torch.Tensor) and y.layout is torch.strided]
    if len(both) < 2 or any(y.is_meta or y.is_nested for y in both) or gradient.shape != value.shape:
        return False
    return gradient.isnan() & ~value.isfinite()


def alike(ours: Any, theirs: Any, is_derivative: bool) -> Any:
    """Which elements of two results are equal? False for tensors that differ in more than their elements.

    Half of the digits: wrong elements, not rounding errors, are looked for here.
    """
    if not isinstance(theirs, torch.Tensor):  # no gradient may be one of zeros
        return ours is theirs or ours == theirs or (theirs is None and is_derivative and not ours.any())
    if not isinstance(ours, torch.Tensor) or ours.layout != theirs.layout or ours.is_nested != theirs.is_nested:
        return False
    if theirs.is_nested:
        pairs = zip(ours.unbind(), theirs.unbind(), strict=True)
        return torch.tensor([bool(torch.as_tensor(alike(a, b, is_derivative)).all()) for a, b in pairs])
    if ours.shape != theirs.shape or ours.device != theirs.device:
        return False
    if theirs.is_meta:
        return True
    ours, theirs = (y.detach().to_dense() if y.layout is not torch.strided else y.detach() for y in (ours, theirs))
    ours, theirs = (y.dequantize() if y.is_quantized else y for y in (ours, theirs))
    wide = torch.complex128 if theirs.is_complex() else torch.float64
    eps = torch.finfo(ours.dtype).eps if ours.is_floating_point() or ours.is_complex() else 0.0
    ours, theirs = ours.to(wide), theirs.to(ours.dtype).to(wide)
    scale = theirs.abs().nan_to_num(0, 0, 0).sum().item()  # of which the digits of a small sum may be left
    close = torch.isclose(ours, theirs, rtol=eps**0.5, atol=8 * eps * (1 + scale), equal_nan=True)
    return close | theirs.isnan() if is_derivative else close  # where the definition has none


# Of arguments that are wrong.
KINDS_OF_ERRORS = (TypeError, ValueError, RuntimeError, IndexError, AttributeError, OverflowError)


def definition(op: Any) -> Callable[..., Any]:
    """The definition, with arguments by place that the op may have been given by name."""
    return op.definition if op is ad.quadratic_form else lambda *args, **kwargs: op.define(op.bound(args, kwargs))


def check(call: Call) -> None:
    given = (*call.positional, *(argument for _, argument in call.named))
    if call.op in ROW_CATALOGUE and any(argument.kind == "jagged" for argument in given):
        return  # PyTorch's own handler of jagged tensors takes a function for the one of PyTorch that has its name
    ours = outcome(lambda: call.results_of(OPS[call.op]))
    of = definition(OPS[call.op])
    theirs = outcome(lambda: call.results_of(of))
    if ours.error is not None:
        assert_explained(ours, theirs, OPS[call.op])
    else:
        assert_same(ours, theirs, call)


def assert_explained(ours: Outcome, theirs: Outcome, op: Any) -> None:
    """Compares an exception with that of the definition, if there is one; else it has to name the op."""
    if type(ours.error) is type(theirs.error):
        return
    both = f"{ours} in place of {theirs}"
    assert isinstance(ours.error, KINDS_OF_ERRORS) and not isinstance(ours.error, RecursionError), both
    names = ("torchad_ext.", f"{op.__module__}.{op.__name__} ", "Inference tensors cannot be saved for backward")
    is_explained = isinstance(ours.error, ad.TraceError) or any(name in str(ours.error) for name in names)
    assert theirs.error is not None or is_explained, both


def assert_same(ours: Outcome, theirs: Outcome, call: Call) -> None:
    """Compares with the definition in the dtype, and where that rounds away the digits, in float64 and with what other
    roundings make of it."""
    both = f"{ours} in place of {theirs}"
    if isinstance(theirs.error, OverflowError):
        return  # a number to the op is a float, to PyTorch an integer of 64 bits
    is_softplus_of_no_beta = call.op == "softplus" and call.given.get("beta") == Argument(other="0.0")
    if is_softplus_of_no_beta or (call.op == "celu" and "alpha cannot be 0" in str(theirs.error)):
        return  # docs/limits.md
    if "Inference tensors cannot be saved" in str(theirs.error) and any(
        isinstance(y, torch.Tensor) and y.dtype in (torch.float16, torch.bfloat16) for y, _ in ours.values
    ):
        return  # rows of half types whose definition runs are copied to float32, and copies may be saved
    assert theirs.error is None, both
    missing = ours.values[len(theirs.values) :]  # of a derivative that is constant to PyTorch
    assert len(ours.values) >= len(theirs.values) and not any(y is not None and y.any() for y, _ in missing), both
    pairs = list(zip(ours.values, theirs.values, strict=False))
    dtypes = [[y.dtype if isinstance(y, torch.Tensor) else None for y, _ in each] for each in zip(*pairs, strict=True)]
    assert dtypes[0] == dtypes[1] or None in dtypes[1], both
    same = [torch.as_tensor(alike(a, b, order > 0)) for (a, order), (b, _) in pairs]
    of_nothing = [order > 0 and of_no_number(a, ours.values[0][0]) for a, order in ours.values]
    same = [each | nothing for each, nothing in zip(same, of_nothing, strict=False)]
    if all(each.all() for each in same):
        return
    if call.order > 1 and is_wrong_in_pytorch(call):
        return
    of, overflows = definition(OPS[call.op]), overflows_midway(call)
    exact = outcome(lambda: call.results_of(of, wide=True))
    rounded = [
        outcome(lambda n=n: call.results_of(of, rounding=MoreRounding(n, moves_summands=True))) for n in range(8)
    ]
    assert exact.error is None and not any(each.error for each in rounded), both
    for i, ((a, order), (b, _)) in enumerate(pairs):
        if not same[i].all():
            allowed = same[i] | torch.as_tensor(alike(a, exact.values[i][0], order > 0))
            if allowed.shape == b.shape and b.layout is torch.strided:
                moved = torch.stack([(each.values[i][0] - b).detach().abs() for each in rounded]).amax(0)
                allowed = allowed | ((a - b).abs() <= 8 * moved)
                if order > 1:  # at infinity products with a zero differ
                    allowed = allowed | (a.isnan() & b.isinf())
            if overflows and (order or call.op == "quadratic_form"):
                allowed = allowed | ~a.isfinite()
            assert allowed.all(), f"{both}; {exact}"


def is_wrong_in_pytorch(call: Call) -> bool:
    """Is a second derivative 0 that is not? That of a power in its exponent where it is 0, of softplus with a nan."""
    if call.op == "softplus" and "threshold" in call.given:
        return call.given["threshold"].other == "nan"
    exponent = call.given["exponent"].make() if call.op == "pow" else None
    return isinstance(exponent, torch.Tensor) and bool((exponent == 0).any())


def overflows_midway(call: Call) -> bool:
    """May a sum of products over a row overflow before it is multiplied by what is small? (docs/limits.md)"""
    if call.op != "quadratic_form" and not isinstance(OPS[call.op], Rowwise):
        return False
    args = [argument.make() for argument in (*call.positional, *(argument for _, argument in call.named))]
    floats = [x.detach().double() for x in args if isinstance(x, torch.Tensor) and x.is_floating_point()]
    largest = max((x.abs().nan_to_num(0.0, torch.inf).max().item() for x in floats if x.numel()), default=0.0)
    widest = (
        torch.float64 if any(isinstance(x, torch.Tensor) and x.dtype == torch.float64 for x in args) else torch.float32
    )
    return bool(largest > torch.finfo(widest).max ** (1 / 3))


class TestOps:
    @FEW
    @given(calls())
    def test_definition(self, call: Call) -> None:
        check(call)

    @pytest.mark.long
    @MANY
    @given(calls())
    def test_definition_many(self, call: Call) -> None:
        check(call)


X = torch.tensor([[0.5, -1.0, 2.0], [0.1, 0.2, -0.3]])


class TestFound:
    """What these tests found, once each."""

    @pytest.mark.parametrize("name", ["elu", "celu", "softplus"])
    def test_a_tensor_that_pytorch_reads_as_a_number(self, name: str) -> None:
        native = getattr(torch.nn.functional, name)
        torch.testing.assert_close(OPS[name](X, torch.tensor(0.5)), native(X, torch.tensor(0.5)))
        with pytest.raises(TypeError, match="must be Number, not Tensor"):
            OPS[name](X, torch.tensor(0.5, requires_grad=True))

    def test_the_declaration_says_that_a_number_is_expected(self) -> None:
        with pytest.raises(ad.TraceError, match=r"argument 'alpha' .* must be Number, not Tensor"):
            ad.pointwise(lambda x, alpha: torch.celu(x, alpha))

    def test_rows_of_an_output_that_does_not_read_the_largest_operand(self) -> None:
        weight = torch.rand(2, 1, 3)
        for y, expected in zip(share(X[0], weight), share.definition(X[0], weight), strict=True):
            assert y.shape == expected.shape
            torch.testing.assert_close(y, expected)

    def test_no_eps_where_there_is_no_default(self) -> None:
        with pytest.raises(TypeError):
            ad.layer_norm(X, None, eps=None)
        torch.testing.assert_close(ad.rms_norm(X, eps=None), torch.nn.functional.rms_norm(X, (3,)))

    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
    @pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
    def test_integers_have_no_mean(self, name: str, dtype: torch.dtype) -> None:
        """Not even beside a weight with a point."""
        for weight in (None, torch.ones(3)):
            with pytest.raises(RuntimeError, match=r"takes .*floating-point numbers; got torch"):
                OPS[name](X.to(dtype), None, weight, eps=1e-5)

    @pytest.mark.parametrize("dim", [0, 1, -1, -2])
    @pytest.mark.parametrize("name", ["normalize", "cosine_similarity"])
    def test_a_number_that_is_a_tensor_with_more_dimensions_than_the_operands(self, name: str, dim: int) -> None:
        op, eps = OPS[name], torch.tensor([[[0.5]], [[4.0]]])
        operands = [X] if name == "normalize" else [X, X.sin()]
        expected = op.definition(*operands, dim=dim, eps=eps)
        torch.testing.assert_close(op(*operands, dim=dim, eps=eps), expected)

    def test_the_gradient_of_a_number_that_is_a_sparse_tensor(self) -> None:
        for of in (ad.layer_norm, ad.layer_norm.definition):
            eps = torch.tensor([1e-3], dtype=torch.float16).to_sparse().requires_grad_()
            (gradient,) = torch.autograd.grad(of(X[0].half(), eps=eps).square().sum(), eps)
            assert gradient.to_dense().item() < 0

    @pytest.mark.parametrize("dim", [(1,), [0], torch.Size([1])], ids=repr)
    @pytest.mark.parametrize("name", [name for name in ROW_CATALOGUE if "dim" in PARAMETERS[name]])
    def test_a_list_of_one_dimension(self, name: str, dim: Any) -> None:
        operands = [X for p in PARAMETERS[name].values() if p is EMPTY]
        ours, theirs = (outcome(lambda f=f: f(*operands, dim=dim)) for f in (OPS[name], OPS[name].definition))
        assert type(ours.error) is type(theirs.error)
        torch.testing.assert_close(ours.values, theirs.values)

    def test_normalized_shape_is_no_tensor(self) -> None:
        with pytest.raises(TypeError, match=r"normalized_shape, as in .* got Tensor"):
            ad.rms_norm(X, torch.tensor([3]))

    def test_options_by_name_reach_a_subclass(self) -> None:
        y = ad.vector_norm(X.as_subclass(Counted), dim=-1)
        assert type(y) is Counted
        torch.testing.assert_close(y.as_subclass(torch.Tensor), X.norm(dim=-1))
        y = ad.gelu(X.as_subclass(Counted), approximate="tanh")
        torch.testing.assert_close(y.as_subclass(torch.Tensor), torch.nn.functional.gelu(X, approximate="tanh"))

    def test_many_arguments_with_long_names(self) -> None:
        """The kernel of some of their gradients is named after them."""
        names = [f"x{i}_{'long' * 10}" for i in range(8)]
        op = ad.pointwise(eval(f"lambda {', '.join(names)}: {' + '.join(names)} * {names[0]}"))
        xs = [torch.ones(2, requires_grad=i != 1) for i in range(8)]
        assert torch.autograd.grad(op(*xs).sum(), xs[7])[0].tolist() == [1, 1]

    @pytest.mark.parametrize("closed", [False, True])
    def test_a_process_without_a_console(self, closed: bool, tmp_path: Path) -> None:
        """As a daemon, or under pythonw, which have no stderr to say that a kernel is being compiled."""
        program = (
            f"import sys; {'sys.stderr.close()' if closed else 'sys.stderr = None'}\n"
            "import torch, torchad_ext as ad\n"
            f"print(ad.pointwise(lambda x: x.sin() + {7.25 + closed})(torch.zeros(1)).item())"
        )
        command, setting = [sys.executable, "-c", program], with_operators(tmp_path)
        done = subprocess.run(command, capture_output=True, text=True, env=setting, check=False)
        assert done.stdout == f"{7.25 + closed}\n", done.stderr


HOSTILE = (
    "__import__('os').system('touch {}')", "x.__class__.__mro__[1].__subclasses__()", "(lambda: open('{}', 'w'))()",
    "[open('{}', 'w') for _ in (1,)]", "open('{}', 'w')", "exec(\"open('{}', 'w')\")", "x if open('{}', 'w') else x",
    "f'{{open(\"{}\", \"w\")}}'", "sin(open('{}', 'w'))", "sin(x=open('{}', 'w'))", "sin(*open('{}', 'w'))",
    "(y := open('{}', 'w'))", "x ** 9 ** 9 ** 9", "9 ** 9 ** 9 ** 9", "sin(" * 500 + "x" + ")" * 500, "(" * 900 + "x",
    "-" * 999 + "x", "x\nimport os", "x; import os", "x # {}", "`touch {}`", "$(touch {})", "\0", "x\0", "'", '"', "\\",
    "∑(x)", "ｘ", "x" * 1001, "1e999", "0x", "1_0*x", "...", "await x", "yield x", "x[0]", "x@x", "x//1", "not x", "",
)  # fmt: skip


class TestHostileText:
    @pytest.mark.parametrize("text", HOSTILE)
    def test_a_formula_runs_no_code(self, text: str, tmp_path: Path) -> None:
        touched = tmp_path / "touched"
        try:
            f = parse(text.replace("{}", str(touched)))
        except FormulaError:
            pass
        else:
            assert isinstance(f(X), torch.Tensor)
        assert not touched.exists()

    @settings(FEW, max_examples=300)
    @given(st.text(alphabet="x0123456789.eE+-*/()_ ,sincolgpwt[]{}'\"\\;:=#\n\0", max_size=40) | st.text(max_size=40))
    def test_any_text_is_a_formula_or_an_error_that_points(self, text: str) -> None:
        result = outcome(lambda: parse(text)(X.double()))
        if result.error is None:
            assert result.values[0].shape == X.shape
        else:
            assert type(result.error) is FormulaError
            assert str(result.error).endswith("^")

    @pytest.mark.parametrize(
        "name",
        ["../../up", "/absolute", "a;touch x", "$(touch `x`)", "a\nb\0c", "é*/", "a" * 5000, '"', "template"],
        ids=range(9),
    )
    def test_a_name_stays_in_the_cache(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCHAD_EXT_CACHE_DIR", str(tmp_path / "cache"))

        def f(x: torch.Tensor) -> torch.Tensor:
            return x * 2 + (17.5 + hash(name) % 10**9)

        f.__name__ = f.__qualname__ = name
        torch.testing.assert_close(ad.pointwise(f)(X), f(X))
        assert [file.name for file in tmp_path.iterdir()] == ["cache"]
        assert all(re.fullmatch(r"[\w.+-]+", file.name) for file in (tmp_path / "cache").iterdir())
