"""Programs of rows as C++: a functor for each part, and the type that puts them in order (``csrc/rowwise.h``)."""

from __future__ import annotations

import hashlib

from .cpp import DTYPES, Kernel, declared, functor
from .passes import Part, Stage, split
from .program import Program

_KIND = {"tensor": "Kind::element", "row": "Kind::row", "column": "Kind::column"}
NUMBER_OF_KIND = {kind: number for number, kind in enumerate(_KIND)}  # of Kind in csrc/rowwise.h
_REDUCTION = {"+": "Reduction::sum", ">": "Reduction::largest", "<": "Reduction::smallest"}


def row_functor(program: Program, name: str, dtype: str = "float64") -> str:
    """The functors of a program of rows as C++, and a type of them: ``name`` followed by ``Rows``."""
    passes = split(program, dtype)
    texts: list[str] = []

    def part(of: Part | None, suffix: str) -> str:
        if of is None:
            return "None"
        texts.append(functor(of.program, name + suffix, dtype))
        return f"Part<{', '.join([name + suffix, *map(str, of.arguments)])}>"

    def stage(of: Stage, number: int) -> str:
        terms, row = part(of.terms, f"Terms{number}"), part(of.row, f"Row{number}")
        reductions = "".join(f", {_REDUCTION[kind]}" for kind in of.reductions)
        return f"Stage<{terms}, {of.reduced_at}, {of.kept_at}, {row}, {of.row_at}{reductions}>"

    stages = [stage(of, number) for number, of in enumerate(passes.stages)]
    elements = part(passes.elements, "Elements")
    inputs = ", ".join(_KIND[x.op] for x in program.inputs)
    outputs = ", ".join(_KIND[kind] for kind in _kinds(program))
    rows = ", ".join(map(str, passes.row_outputs))
    numbers = f"{passes.values}, {passes.kept}"
    lines = [f"Kinds<{inputs}>", f"Kinds<{outputs}>", f"Places<{rows}>", elements, numbers, *stages]
    joined = ",\n".join(f"    {line}" for line in lines)
    return "\n".join([*texts, f"using {name}Rows = RowFunctor<\n{joined}>;\n"])


def row_kernel(functor: str, name: str, program: Program, device: str, dtype: str, is_short: bool) -> Kernel:
    """The file that compiles to the kernel of a functor of rows for a device: on the CPU of short rows or of longer
    ones, on CUDA of all."""
    loops = "ShortRows" if is_short else "LongRows"
    headers, last = {
        "cpu": (("pointwise_cpu.h", "short_rows.h" if is_short else "long_rows.h"), dtype),
        "cuda": (("cuda/rowwise.cuh",), f"{1 + len(program.scalars)}, {dtype}"),  # the last is the length of a row
    }[device]
    of = f"{loops}, " if device == "cpu" else ""
    digest = hashlib.sha256(f"{device}\0{functor}\0{of}{last}".encode()).hexdigest()[:16]
    symbol = f"{name}_{dtype}_{digest}"
    namespace, functor = declared(functor, symbol, device)
    includes = "\n".join(f'#include "{header}"' for header in headers)
    text = f"{includes}\n{functor}\nTORCHAD_EXT_ROW_KERNEL({symbol}, {of}{namespace}::{name}Rows, {last})\n"
    kinds = (*_kinds(program), *(x.op for x in program.inputs))
    counts = len(program.inputs), len(program.outputs)
    return Kernel(symbol, text, *counts, DTYPES[dtype], tuple(NUMBER_OF_KIND[kind] for kind in kinds))


def _kinds(program: Program) -> tuple[str, ...]:
    """The kinds of the outputs."""
    return program.kinds or ("tensor",) * len(program.outputs)
