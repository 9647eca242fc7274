"""Programs as formulas in LaTeX."""

from __future__ import annotations

import collections
import math
import re

from .expr import OPERATIONS, Expr, topological
from .program import Program
from .readable import readable

_WIDTH = 24  # nodes of a repeated subexpression before it gets a name
_GREEK = """
    alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi pi rho sigma tau phi chi psi omega
""".split()
_UNICODE = dict(zip("αβγδεζηθκλμνξπρστφχψω", _GREEK, strict=True))
_LETTERS = {"input": "x", "output": "y"}
_NAMED = {
    math.pi: r"\pi",
    math.log(2): r"\log 2",
    math.log(10): r"\log 10",
    math.sqrt(0.5): r"\tfrac{1}{\sqrt{2}}",
    2 / math.sqrt(math.pi): r"\tfrac{2}{\sqrt{\pi}}",
    2 * math.sqrt(2 / math.pi): r"\sqrt{\tfrac{8}{\pi}}",
    0.5: r"\tfrac{1}{2}",
    0.25: r"\tfrac{1}{4}",
    math.inf: r"\infty",
}
_CASES = r"\begin{cases}"
_SUM, _PRODUCT, _POWER, _ATOM = 1, 2, 3, 4
_DELIMITED = (r"\left", r"\sqrt", r"\frac")  # beginnings of what needs no brackets around it
_GREEK_FUNCTION = re.compile(r"\\(sigma|Gamma|Phi|varphi)")  # has brackets around its argument


def symbol(name: str) -> str:
    """A name as a symbol: a bar for a cotangent, a dot for a tangent, Greek letters, digits as an index."""
    if name in _LETTERS:
        return _LETTERS[name]
    for prefix, accent in (("grad_", "bar"), ("tangent_", "dot")):
        if name.startswith(prefix):
            stem, digits = re.fullmatch(r"(.*?)(\d*)", name.removeprefix(prefix), re.DOTALL).groups()  # type: ignore[union-attr]
            return rf"\{accent}{{{symbol(stem)}}}" + (f"_{{{digits}}}" if digits else "")
    stem, digits = re.fullmatch(r"(.*?)_?(\d*)", name, re.DOTALL).groups()  # type: ignore[union-attr]
    if stem in _GREEK:
        letter = rf"\{stem}"
    elif stem in _UNICODE:
        letter = rf"\{_UNICODE[stem]}"
    else:
        letter = stem if len(stem) == 1 else rf"\mathrm{{{stem}}}".replace("_", r"\_")
    return letter + (f"_{{{digits}}}" if digits else "")


def latex(program: Program, name: str = "", operator: str = "", simplify: bool = False, mathtext: bool = False) -> str:
    """The equations of a program as one formula; the arguments are those of :func:`equations`."""
    lines = equations(program, name, operator, simplify, mathtext)
    if mathtext:
        return r",\quad ".join(map(" = ".join, lines))
    if len(lines) == 1:
        return " = ".join(lines[0])
    return r"\begin{aligned}" + r" \\ ".join(map(" &= ".join, lines)) + r"\end{aligned}"


def equations(
    program: Program, name: str = "", operator: str = "", simplify: bool = False, mathtext: bool = False
) -> list[tuple[str, str]]:
    """Both sides of the equations of a program.

    Args:
        program: what to write.
        name: calls the outputs functions of the arguments; without it they have their own names.
        operator: what stands before the name.
        simplify: in the shortest form that is found, equal as a function of real numbers.
        mathtext: in the part of LaTeX that matplotlib knows: no environments, no ``\\tfrac``.
    """
    if simplify:
        outputs = tuple(readable(y, _length) for y in program.outputs)
        program = Program(program.inputs, program.scalars, outputs, program.names)
    printer = _Printer(program, mathtext)
    results = [printer.text(y) for y in program.outputs]
    if name:
        arguments = ", ".join(symbol(str(x.value)) for x in (*program.inputs, *program.scalars))
        function = rf"\mathrm{{{name}}}".replace("_", r"\_") if name.isidentifier() else "f"
        call = f"{operator}{function}({arguments})"
        left = [call] if len(results) == 1 else [f"{call}_{{{i}}}" for i in range(len(results))]
    else:
        left = [symbol(output) for output in program.names]
    both = [*printer.definitions, *zip(left, results, strict=True)]
    return [(_for_mathtext(a), _for_mathtext(b)) for a, b in both] if mathtext else both


def _for_mathtext(text: str) -> str:
    return re.sub(r"\\(le|ge)\b", r"\\\1q", text.replace(r"\tfrac", r"\frac"))


def formula(expression: Expr, mathtext: bool = False) -> str:
    """One expression in the shortest form that is found."""
    ((_, text),) = equations(Program((), (), (expression,), ("y",)), simplify=True, mathtext=mathtext)[-1:]
    return text


def _length(y: Expr) -> int:
    """About how wide an expression is on paper."""
    text = "".join(right for _, right in equations(Program((), (), (y,), ("y",))))
    return len(re.sub(r"\\(left|right|mathrm|t?frac|,)|[{} ]", "", text))


def _constant(value: float) -> str:
    if value < 0:
        return f"-{_constant(-value)}"
    if value in _NAMED:
        return _NAMED[value]
    text = f"{value:.6g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        return rf"{mantissa}\cdot 10^{{{int(exponent)}}}"
    return text


class _Printer:
    def __init__(self, program: Program, mathtext: bool = False) -> None:
        self.mathtext = mathtext
        self.definitions: list[tuple[str, str]] = []
        self._texts: dict[Expr, tuple[str, int]] = {}
        order = topological(program.outputs)
        uses = collections.Counter(arg for node in order for arg in node.args)
        sizes: dict[Expr, int] = {}
        for node in order:
            written = self._write(node)
            sizes[node] = 1 + sum(sizes[arg] for arg in node.args)
            if uses[node] > 1 and sizes[node] > _WIDTH and not node.is_mask:
                letter = f"t_{{{len(self.definitions) + 1}}}"
                self.definitions.append((letter, written[0]))
                written, sizes[node] = (letter, _ATOM), 1
            self._texts[node] = written

    def text(self, node: Expr, least: int = 0) -> str:
        text, precedence = self._texts[node]
        return text if precedence >= least else rf"\left({text}\right)"

    def _write(self, node: Expr) -> tuple[str, int]:
        """The text of a node and its precedence."""
        op, args = node.op, node.args
        if op == "constant":
            value = node.number
            return _constant(value), _SUM if value < 0 else _ATOM
        if not args:
            return symbol(str(node.value)), _ATOM
        if op == "rounded":
            return self._texts[args[0]]
        if op in ("add", "sub"):
            return f"{self.text(args[0])} {'+' if op == 'add' else '-'} {self.text(args[1], _PRODUCT)}", _SUM
        if op == "neg":
            return f"-{self.text(args[0], _PRODUCT)}", _SUM
        if op == "mul":
            product = self._product(*args)
            return product, _SUM if product.startswith("-") else _PRODUCT
        if op == "div":
            return rf"\frac{{{self.text(args[0])}}}{{{self.text(args[1])}}}", _POWER
        if op == "pow":
            return self._power(*args), _POWER
        if op == "not":
            return rf"\neg\left({self.text(args[0])}\right)", 0
        if node.is_mask:
            if op in ("eq", "ne") and args[0].is_constant:
                args = args[::-1]
            return f"{self.text(args[0], _SUM)} {OPERATIONS[op].latex} {self.text(args[1], _SUM)}", 0
        if op == "where":
            condition, first, second = map(self.text, args)
            if self.mathtext:
                first, second = (self.text(arg, _SUM) for arg in args[1:])
                return rf"{first}\ \mathrm{{if}}\ {condition}\ \mathrm{{else}}\ {second}", 0
            is_case = args[2].op == "where" and second.startswith(_CASES)  # and has no name
            rest = second.removeprefix(_CASES) if is_case else rf"{second} & \text{{otherwise}}\end{{cases}}"
            return rf"{_CASES}{first} & {condition} \\ {rest}", 0
        if op == "spherical_bessel":
            order, z = _constant(args[0].number), rf"\pi \, {self.text(args[1], _PRODUCT)}"
            numerator, power = rf"j_{{{order}}}\left({z}\right)", rf"\left({z}\right)^{{{order}}}"
            if order == "1":
                power = z
            if order == "0":
                numerator, power = rf"\sin\left({z}\right)", z
            return rf"\frac{{{numerator}}}{{{power}}}", _POWER
        if op == "polygamma":
            return rf"\psi^{{({args[0].number:g})}}\left({self.text(args[1])}\right)", _ATOM
        if op == "erfcx":
            times = int(args[0].number)
            text = rf"\operatorname{{erfcx}}{f'^{{({times})}}' if times else ''}\left({self.text(args[1])}\right)"
            return (f"-{text}", _SUM) if times % 2 else (text, _ATOM)
        if op == "expm1":
            return rf"e^{{{self.text(args[0])}}} - 1", _SUM
        if op == "tanh_half":
            twice = args[0].op == "mul" and args[0].args[0].is_constant and args[0].args[0].number == 2
            argument = self.text(args[0].args[1]) if twice else rf"\tfrac{{1}}{{2}} \, {self.text(args[0], _PRODUCT)}"
            return rf"\tanh\left({argument}\right)", _ATOM
        if op == "one_minus_square":
            return rf"1 - {self.text(args[0], _ATOM)}^{{2}}", _SUM
        if op == "log1p":
            return rf"\log\left(1 + {self.text(args[0])}\right)", _ATOM
        template = OPERATIONS[op].latex
        if "%s" in template:
            return template % self.text(args[0]), _ATOM if template.startswith(_DELIMITED) else _POWER
        call = self._call(op, args)
        return call, _ATOM if call.endswith(")") else _POWER

    def _call(self, op: str, args: tuple[Expr, ...]) -> str:
        function = OPERATIONS[op].latex or rf"\operatorname{{{op}}}"
        if len(args) == 1 and not args[0].args and not _GREEK_FUNCTION.search(function):
            return f"{function} {self.text(args[0], _ATOM)}"
        return rf"{function}\left({', '.join(map(self.text, args))}\right)"

    def _product(self, a: Expr, b: Expr) -> str:
        first, second = self.text(a, 0 if a.is_constant else _PRODUCT), self.text(b, _PRODUCT)
        space = r" \cdot " if second[0].isdigit() or second.startswith((r"\tfrac", "-")) else r" \, "
        return f"{first}{space}{second}"

    def _power(self, base: Expr, exponent: Expr) -> str:
        function = OPERATIONS[base.op].latex if len(base.args) == 1 else ""
        if function and "%s" not in function and exponent.is_constant and exponent.number > 1:
            return rf"{function}^{{{self.text(exponent)}}}\left({self.text(base.args[0])}\right)"
        return f"{self.text(base, _ATOM)}^{{{self.text(exponent)}}}"
