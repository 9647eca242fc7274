"""Arguments of the commands: an op by its name, or a function of a user's file, FILE:FUNCTION."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import torch

import torchad_ext

from ._declared import Declared
from ._symbolic.refusals import TraceError
from .ops import CATALOGUE
from .rows import ROW_CATALOGUE

OPS: dict[str, Callable[..., torch.Tensor]] = {
    **CATALOGUE,
    **ROW_CATALOGUE,
    "quadratic_form": torchad_ext.quadratic_form,
}


class Mistake(click.ClickException):
    """A mistake of the user, in a sentence, without the usage of the command."""

    exit_code = 2


class Wrong(click.ClickException):
    """A derivative, a file or a machine that is not as it should be."""

    exit_code = 1


def named(text: str) -> Any:
    """An op of the catalogue by its name, or whatever FILE:FUNCTION names.

    Raises:
        Mistake: there is no such op, file or function, or running the file raises.
    """
    if ":" not in text:
        if text not in OPS:
            near = difflib.get_close_matches(text, OPS, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise Mistake(f"{text!r} is no op; {hint}choose from {', '.join(OPS)}, or give FILE:FUNCTION")
        return OPS[text]
    path, _, name = text.rpartition(":")
    module = _module(Path(path))
    if not hasattr(module, name):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = difflib.get_close_matches(name, functions, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"it has {', '.join(functions) or 'no function'}"
        raise Mistake(f"{path} has no {name!r}; {remedy}")
    return getattr(module, name)


@functools.cache
def _module(file: Path) -> Any:
    if not file.is_file():
        raise Mistake(f"there is no file {file}; give FILE:FUNCTION, as in my_ops.py:snake")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise Mistake(f"{file} is no Python file; its name has to end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # where pickle and dataclasses look for it
    sys.path.insert(0, str(file.parent.resolve()))
    with blamed(str(file)):
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def blamed(text: str) -> Iterator[None]:
    """Says what FILE:FUNCTION raises, and on which line; an op of the catalogue has a traceback, as a bug of ours."""
    file = Path(re.sub(r"(\.py):\w+$", r"\1", text)).resolve()
    try:
        yield
    except (click.ClickException, TraceError, torchad_ext.BuildError, torchad_ext.VerificationError):
        raise
    except (Exception, SystemExit) as error:
        if text in OPS:
            raise
        lines = [at.lineno for at in traceback.extract_tb(error.__traceback__) if Path(at.filename).resolve() == file]
        at = f" (line {lines[-1]})" if lines else ""
        raise Wrong(f"{text}{at} raises {type(error).__name__}: {error}") from None


def declared(text: str) -> Any:
    """The op that a text names; a plain function is declared as one."""
    op = named(text)
    if isinstance(op, Declared) or op is torchad_ext.quadratic_form:
        return op
    if isinstance(op, type) or not callable(op):
        kind = f"the class {op.__name__}" if isinstance(op, type) else f"of type {type(op).__name__}"
        remedy = "this takes a function of tensors, or an op"
        if isinstance(op, type) and issubclass(op, torch.autograd.Function):
            remedy = f"hold it against its definition: torchad_ext verify {text} --against FILE:FUNCTION"
        raise Mistake(f"{text} is {kind}; {remedy}")
    with blamed(text):
        return torchad_ext.pointwise(op)


def drawn(text: str) -> Any:
    """The op of a file that plot draws: one number to one number."""
    op = declared(text)
    if not isinstance(op, torchad_ext.Pointwise):
        raise Mistake(f"{text} is no function of elements; plot draws functions of one number")
    first, *_ = parameters = op.__signature__.parameters.values()
    if first.kind is first.KEYWORD_ONLY:
        raise Mistake(f"{text} takes {first.name} by name alone; plot draws functions of one number: let it go unnamed")
    needed = [p.name for p in parameters if p.default is p.empty]
    if len(needed) > 1:
        raise Mistake(f"{text} takes {', '.join(needed)}; plot draws functions of one number: give the others defaults")
    if (count := len(op.program.outputs)) > 1:
        raise Mistake(f"{text} has {count} results; plot draws functions with one")
    return op


def sample_for(definition: Callable[..., Any], low: float, high: float) -> list[torch.Tensor]:
    """A sample for each argument of a plain PyTorch function, or of a module, that has no default."""
    parameters = inspect.signature(getattr(definition, "forward", definition)).parameters.values()
    count = sum(p.default is p.empty and p.kind is not p.VAR_KEYWORD for p in parameters)
    generator = torch.Generator().manual_seed(0)
    return [low + (high - low) * torch.rand(7, generator=generator, dtype=torch.float64) for _ in range(count)]
