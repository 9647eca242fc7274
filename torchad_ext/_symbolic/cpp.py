"""Programs as C++: the functor of a kernel, in the form of ``csrc/ops/sin.h``, and the file around it.

Subexpressions that occur once are written where they are used, the others get a name. What depends on run-time numbers
alone becomes a member of the functor, computed once in double.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .expr import OPERATIONS, Expr, Operation, constant, make, topological
from .operations import mul, pow_, reciprocal, row_sum, rsqrt, sqrt
from .program import Program

DTYPES = {"float16": 5, "float32": 6, "float64": 7, "bfloat16": 15}  # of kernels, and their numbers in C++
_LARGEST = {
    "float16": 65504.0,
    "bfloat16": 2.0**128 - 2.0**120,
    "float32": 2.0**128 - 2.0**104,
    "float64": sys.float_info.max,
}
_WIDTH = 100  # characters of an expression before it is given a name
_PART = 200  # lines of a functor before it is compiled in parts
_PRECEDENCE = {"*": 6, "/": 6, "+": 5, "-": 5, "<": 4, "<=": 4, ">": 4, ">=": 4, "==": 3, "!=": 3, "&": 2, "|": 1}
_PREFIXES = ("-", "!")
_TOP, _UNARY = 8, 7
_KEYWORDS = """
    alignas alignof asm auto bool break case catch char class const constexpr continue decltype default delete do double
    dynamic_cast else enum explicit export extern false float for friend goto if inline int long mutable namespace new
    noexcept nullptr operator private protected public register reinterpret_cast return short signed sizeof static
    static_assert static_cast struct switch template this thread_local throw true try typedef typeid typename union
    unsigned using virtual void volatile wchar_t while
"""
_OWN = "T Outputs Parts of parts outputs number scalars std rounded"
_TAKEN = frozenset(
    (*_KEYWORDS.split(), *_OWN.split(), *OPERATIONS, *(operation.cpp for operation in OPERATIONS.values()))
)


def functor(program: Program, name: str, dtype: str = "float64") -> str:
    """The functor of a program as C++, a struct called ``name``, for tensors of a dtype of ``DTYPES``.

    It depends on the dtype only where the program rounds to one.
    """
    return _Functor(program, dtype).text(name)


@dataclass(frozen=True)
class Kernel:
    """A kernel as C++: a file, the symbol under which it exports the kernel, and what the kernel takes and gives.

    Attributes:
        kinds: of the outputs and then of the inputs of a kernel of rows, by their numbers in ``csrc/rowwise.h``.
    """

    symbol: str
    text: str
    inputs: int
    outputs: int
    dtype: int
    kinds: tuple[int, ...] = ()


def kernel(functor: str, name: str, program: Program, device: str, dtype: str) -> Kernel:
    """The file that compiles to the kernel of a functor.

    Args:
        functor: the C++ that defines it, or an ``#include``.
        name: of the functor.
        program: what it computes.
        device: ``"cpu"`` or ``"cuda"``.
        dtype: one of ``DTYPES``.
    """
    loop = {"cpu": "pointwise_cpu.h", "cuda": "cuda/pointwise.cuh"}[device]
    inputs, outputs, numbers = map(len, (program.inputs, program.outputs, program.scalars))
    arguments = f"{name}, {inputs}, {numbers}, {dtype}"
    digest = hashlib.sha256(f"{device}\0{functor}\0{arguments}".encode()).hexdigest()[:16]
    symbol = f"{name}_{dtype}_{digest}"
    namespace = "torchad_ext"
    if not functor.startswith("#include"):
        namespace, functor = declared(functor, symbol, device)
    text = f'#include "{loop}"\n{functor}\nTORCHAD_EXT_KERNEL({symbol}, {namespace}::{arguments})\n'
    return Kernel(symbol, text, inputs, outputs, DTYPES[dtype])


def declared(functor: str, symbol: str, device: str) -> tuple[str, str]:
    """The namespace of a kernel's functor, and the functor in it: kernels with functors of one name are compiled and
    linked together. On the CPU the library keeps the names to itself."""
    namespace = f"torchad_ext::of_{symbol}"
    text = f"namespace {{\n\n{functor}\n}}  // namespace" if device == "cpu" else functor
    includes = "#include <cmath>\n\n" if "std::" in functor else ""
    return namespace, f"{includes}namespace {namespace} {{\n\n{text}\n}}  // namespace {namespace}\n"


def quadratic_form(dtype: str) -> Kernel:
    """The file that compiles to the CUDA kernels of the quadratic form for a dtype; it exports more than is said."""
    text = f'#include "cuda/quadratic_form.cuh"\nTORCHAD_EXT_QUADRATIC_FORM({dtype})\n'
    return Kernel(f"values_{dtype}", text, 2, 1, DTYPES[dtype])


def struct_name(name: str) -> str:
    """The C++ name of a functor for the name of a kernel: ``sin_backward`` gives ``SinBackward``."""
    joined = "".join(part[:1].upper() + part[1:] for part in re.sub(r"[^0-9A-Za-z_]", "", name).split("_"))
    return f"Functor{joined}" if joined in ("", "T", "Outputs") or joined[0].isdigit() else joined


def lower(program: Program, dtype: str = "float64") -> tuple[Expr, ...]:
    """The outputs as a kernel of a dtype computes them: powers as the few multiplications that PyTorch makes of them,
    norms as roots of sums, roundings where numbers are computed with more bits than the dtype has."""
    lowered: dict[Expr, Expr] = {}
    for node in topological(program.outputs):
        args = tuple(lowered[arg] for arg in node.args)
        if node.op == "pow":
            lowered[node] = _lower_power(*args)
        elif node.op == "rounded":
            lowered[node] = make(dtype, *args) if dtype in ("float16", "bfloat16") else args[0]
        elif node.op == "finite":
            lowered[node] = constant(math.copysign(_LARGEST[dtype], args[0].number))
        elif node.op == dtype and dtype in ("float32", "float64"):
            lowered[node] = args[0]
        else:
            lowered[node] = node if args == node.args else make(node.op, *args)
        if lowered[node].op == "row_norm":
            (x,) = lowered[node].args
            lowered[node] = sqrt(row_sum(mul(x, x)))
    return tuple(lowered[y] for y in program.outputs)


def _lower_power(base: Expr, exponent: Expr) -> Expr:
    value = exponent.value if exponent.is_constant else None
    if isinstance(value, float) and value.is_integer() and 2 <= value <= 8:
        return _power(base, int(value))
    special: dict[Any, Callable[[Expr], Expr]] = {
        -1.0: reciprocal,
        -2.0: lambda x: reciprocal(mul(x, x)),
        0.5: sqrt,
        -0.5: rsqrt,
    }
    return special[value](base) if value in special else pow_(base, exponent)


def _power(base: Expr, exponent: int) -> Expr:
    """Error below (exponent - 1) / 2 ulp."""
    if exponent == 1:
        return base
    if exponent % 2:
        return mul(_power(base, exponent - 1), base)
    half = _power(base, exponent // 2)
    return mul(half, half)


def identifiers(symbols: tuple[Expr, ...]) -> dict[Expr, str]:
    """A C++ name for each symbol, its own where C++ allows."""
    names: dict[Expr, str] = {}
    for symbol in symbols:
        text = "".join(c if c.isascii() and (c.isalnum() or c == "_") else f"u{ord(c):x}" for c in str(symbol.value))
        # A name in capitals may be a macro, such as M_PI.
        while text in _TAKEN or text in names.values() or (len(text) > 1 and text.isupper()):
            text += "_" if not text.isupper() else "_name"
        names[symbol] = text
    return names


def _literal(value: float, short: bool = True) -> str:
    if math.isnan(value):
        return "NAN"
    if math.isinf(value):
        return "INFINITY" if value > 0 else "-INFINITY"
    is_integer = value.is_integer() and abs(value) < 1e6 and repr(value) != "-0.0"
    return f"{value:.0f}" if short and is_integer else repr(value)


class _Functor:
    """Prints a program."""

    def __init__(self, program: Program, dtype: str) -> None:
        self.inputs, self.scalars = program.inputs, program.scalars
        self.outputs = lower(program, dtype)
        self.order = topological(self.outputs)
        self.names = identifiers((*program.inputs, *program.scalars))
        self.uses = collections.Counter(arg for node in self.order for arg in node.args)
        self.uses.update(self.outputs)
        self.numbers: list[str] = []  # the constructor's lines
        self.members = [("double", self.names[x]) for x in self.scalars]
        self.lines: list[tuple[str, str, str]] = []  # of operator(): type, name, value
        self._counter = itertools.count(1)
        # Values that are uniform over all elements and known before the first.
        self.uniform = {node for node in self.order if not node.args and not node.varies}

    def text(self, name: str) -> str:
        results: dict[Expr, tuple[str, int]] = {}
        for node in self.order:
            written = self._write(node, results)
            is_leaf = not node.args
            if not is_leaf and node not in self.uniform and (self.uses[node] > 1 or len(written[0]) > _WIDTH):
                written = self._named(node, written[0]), _TOP
            results[node] = written
        outputs = [self._number(y, results) if y in self.uniform else results[y][0] for y in self.outputs]
        return "\n".join(self._struct(name, outputs)) + "\n"

    def _struct(self, name: str, outputs: list[str]) -> Iterator[str]:
        yield f"struct {name} {{"
        for kind in ("double", "bool"):
            if members := [member for k, member in self.members if k == kind]:
                yield f"  {kind} {', '.join(members)};"
        if self.scalars or self.numbers:
            yield ""
            yield f"  TORCHAD_EXT_FUNCTION explicit {name}(const double* scalars) {{"
            for i, x in enumerate(self.scalars):
                yield f"    {self.names[x]} = scalars[{i}];"
            yield from self.numbers
            yield "  }"
            yield ""
        if len(self.lines) > _PART:
            yield from self._parts(name, outputs)
        else:
            yield "  template <class T>"
            yield f"  TORCHAD_EXT_FUNCTION auto operator()({self._arguments()}) const {{"
            yield from (f"    const {kind} {name} = {text};" for kind, name, text in self.lines)
            yield from self._returned(outputs)
            yield "  }"
        yield "};"

    def _arguments(self) -> str:
        return ", ".join(f"T {self.names[x]}" for x in self.inputs)

    @staticmethod
    def _returned(outputs: list[str]) -> Iterator[str]:
        if sum(map(len, outputs)) <= _WIDTH:
            yield f"    return Outputs{{{', '.join(outputs)}}};"
        else:
            yield "    return Outputs{"
            yield from (f"        {output}," for output in outputs[:-1])
            yield f"        {outputs[-1]}}};"

    def _parts(self, name: str, outputs: list[str]) -> Iterator[str]:
        """A long functor in parts, for compilers that take the square of a function's length."""
        inputs = [self.names[x] for x in self.inputs]
        starts = range(0, len(self.lines), _PART)
        yield "  template <class T>"
        yield "  struct Parts {"
        yield f"    T {', '.join(inputs)};"
        yield from (f"    {kind} {member};" for kind, member in self.members)
        yield from (f"    {'T' if kind == 'T' else 'mask_t<T>'} {member};" for kind, member, _ in self.lines)
        given = [f"{x}({x})" for x in inputs] + [f"{member}(of.{member})" for _, member in self.members]
        yield f"    TORCHAD_EXT_FUNCTION Parts(const {name}& of, {self._arguments()}) : {', '.join(given)} {{}}"
        for start in starts:
            yield f"    TORCHAD_EXT_PART void part{start // _PART}() {{"
            yield from (f"      {member} = {text};" for _, member, text in self.lines[start : start + _PART])
            yield "    }"
        yield "    TORCHAD_EXT_FUNCTION auto outputs() const {"
        yield from (f"  {line}" for line in self._returned(outputs))
        yield "    }"
        yield "  };"
        yield ""
        yield "  template <class T>"
        yield f"  TORCHAD_EXT_FUNCTION auto operator()({self._arguments()}) const {{"
        yield f"    Parts<T> parts(*this, {', '.join(inputs)});"
        yield from (f"    parts.part{start // _PART}();" for start in starts)
        yield "    return parts.outputs();"
        yield "  }"

    def _fresh(self, prefix: str) -> str:
        names = (f"{prefix}{i}" for i in self._counter)
        return next(name for name in names if name not in self.names.values())

    def _named(self, node: Expr, text: str) -> str:
        name = self._fresh("t")
        self.lines.append(("auto" if node.is_mask else "T", name, text))
        return name

    def _number(self, node: Expr, results: dict[Expr, tuple[str, int]]) -> str:
        """A node that is the same for all elements, as an operand of one that is not."""
        return results[node][0] if node.is_mask else f"number<T>({results[node][0]})"

    def _is_computed_once(self, node: Expr) -> bool:
        """Can the constructor compute it in double?"""
        operation = OPERATIONS[node.op]
        known = operation.cpp in _PRECEDENCE or operation.cpp in _PREFIXES or operation.cpp_double or node.op == "where"
        return bool(known) and not node.varies and all(arg in self.uniform for arg in node.args)

    def _write(self, node: Expr, results: dict[Expr, tuple[str, int]]) -> tuple[str, int]:
        """The text of a node and its precedence."""
        if node.op == "constant":
            return _literal(node.number), _TOP
        if not node.args:
            return self.names[node], _TOP
        uniform = self._is_computed_once(node)
        operands = [self._operand(node, arg, uniform, results) for arg in node.args]
        text, precedence = self._operation(OPERATIONS[node.op], operands, uniform)
        if not uniform:
            return text, precedence
        self.uniform.add(node)
        member = self._fresh("s")
        self.members.append(("bool" if node.is_mask else "double", member))
        self.numbers.append(f"    {member} = {text};")
        return member, _TOP

    def _operand(self, node: Expr, arg: Expr, uniform: bool, results: dict[Expr, tuple[str, int]]) -> tuple[str, int]:
        if uniform and arg.is_constant:
            return _literal(arg.number, short=False), _TOP  # 1 / 0 is not to be a division of integers
        if uniform or arg not in self.uniform or (OPERATIONS[node.op].is_family and arg is node.args[0]):
            return results[arg]
        return self._number(arg, results), _TOP

    @staticmethod
    def _operation(operation: Operation, operands: list[tuple[str, int]], in_double: bool) -> tuple[str, int]:
        def wrapped(i: int, least: int) -> str:
            text, precedence = operands[i]
            return text if precedence >= least else f"({text})"

        name = operation.cpp or operation.name
        if name in _PREFIXES and len(operands) == 1:
            return f"{name}{wrapped(0, _UNARY + 1)}", _UNARY
        if name in _PRECEDENCE:
            precedence = _PRECEDENCE[name]
            if name in ("&", "|"):  # compilers warn of other operators in them without parentheses
                least = [precedence if p == precedence else _UNARY for _, p in operands]
            else:
                least = [precedence, precedence + 1]  # a + (b + c) rounds in this order
            return f"{wrapped(0, least[0])} {name} {wrapped(1, least[1])}", precedence
        if name == "detach":
            return operands[0]
        if operation.is_family:
            return f"{name}<{operands[0][0]}>({operands[1][0]})", _TOP
        function = (operation.cpp_double if in_double else "") or name
        return f"{function}({', '.join(text for text, _ in operands)})", _TOP
