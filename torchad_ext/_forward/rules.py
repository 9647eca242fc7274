"""Which operation has which rule: the table that the sweep asks.

A rule is a function of the sweep, of the operation and of its arguments, and gives NotImplemented where it does not
fit. The sweep takes the first that fits, and differentiates the operation twice where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from .._linearity import Kind, rule_registered_for
from .._pointwise import Pointwise
from .._symbolic.torch_functions import FUNCTIONS
from . import (
    control_flow,
    decompositions,
    elementwise_rules,
    grid_sampling,
    linalg_rules,
    linear_rules,
    losses,
    missing,
    recurrent,
    selection_rules,
)
from .calls import known_name, without_guard
from .corrections import CORRECTIONS
from .sweep import Arguments, Keywords, Rule, Sweep


def rules_of(func: Any, name: str | None) -> Iterator[Rule]:
    """The rules to try for an operation, the most special one first; ``name`` is None for operations of others."""
    if isinstance(func, Pointwise):
        yield elementwise_rules.by_kernel
        return
    if name is None:
        yield from _registered(func)
        return
    if name in RULES:
        yield RULES[name]
    yield _by_parts
    if name in FUNCTIONS:
        yield elementwise_rules.by_kernel
    yield _by_composition
    yield elementwise_rules.by_slopes


def _registered(func: Any) -> Iterator[Rule]:
    rule = rule_registered_for(func)
    if callable(rule):
        yield lambda sweep, func, args, kwargs: rule(*args, **kwargs)
    elif rule is not None:
        yield _OF_KIND[rule]


def _constant(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    args, kwargs = sweep.values(args, kwargs)
    return func(*args, **kwargs)


def _by_parts(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """A function of PyTorch that is written in Python."""
    parts = without_guard(func)
    return NotImplemented if parts is None else parts(*args, **kwargs)


def _by_composition(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    composed = COMPOSITIONS.get(known_name(func))
    return NotImplemented if composed is None else composed(*args, **kwargs)


def _batch_norm(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """Refuses one that mixes points."""
    training = len(args) == 6 or args[5]  # there is nothing else without statistics
    if training and min(args[0].shape[0], sweep.points) > 1:
        raise ValueError(
            "torchad_ext: batch_norm in training makes each result depend on all points; call eval() on it"
        )
    return NotImplemented


def _undifferentiated(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """A function that PyTorch takes for a constant, which it is where its first argument is one."""
    if any(map(sweep.owns, args[:1])):
        raise missing.MissingDerivative(known_name(func))
    return NotImplemented


def _control_flow(sweep: Sweep, func: Any, args: Arguments, kwargs: Keywords) -> Any:
    """A branch, or a loop, in which functions of the user are followed like f itself."""
    sweep.applying = False  # until the result is there
    with torch.enable_grad():
        return control_flow.CONTROL_FLOW[known_name(func)](*args, **kwargs)


_OF_KIND: dict[Kind, Rule] = {
    "constant": _constant,
    "moves": linear_rules.of_all,
    "linear": linear_rules.of_all,
    "multilinear": linear_rules.of_each,
    "elementwise": elementwise_rules.by_slopes_of_any,
}
RULES: dict[str, Rule] = {
    **linear_rules.RULES,
    **selection_rules.RULES,
    **linalg_rules.RULES,
    **recurrent.RULES,
    "sgn": elementwise_rules.sgn,
    "hypot": _by_composition,
    **dict.fromkeys("batch_norm native_batch_norm _native_batch_norm_legit".split(), _batch_norm),
    **dict.fromkeys(missing.UNDIFFERENTIATED, _undifferentiated),
    **dict.fromkeys(control_flow.CONTROL_FLOW, _control_flow),
}
# Corrections of functions with a kernel serve where that does not, as for complex numbers: by slopes.
COMPOSITIONS: dict[str, Callable[..., Any]] = {
    **{name: of for name, of in CORRECTIONS.items() if name in RULES or name not in FUNCTIONS},
    **decompositions.COMPOSITIONS,
    **losses.COMPOSITIONS,
    **grid_sampling.COMPOSITIONS,
}
