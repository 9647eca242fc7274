"""How a sweep follows a function: its operations are intercepted while it runs, so it may branch on values.

Which operation has which rule, :mod:`torchad_ext._forward.rules` says; what the rules are made of stands in
:mod:`torchad_ext._forward.sweep`.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._linearity import CONSTANT
from .._pointwise import Pointwise
from .._quadratic_form import quadratic_form
from .._row_function import HALF
from .._rowwise import Rowwise
from .._symbolic.torch_names import is_of_torch
from .._torch_state import (
    OpOverloadPacket,
    is_autocast_enabled,
    is_below_autograd,
    is_captured,
    outside_autocast,
    overload_of,
    run_without_compilation,
    top_saved_tensors_hooks,
    transforms_active,
)
from . import writes
from .calls import each, known_name, positional
from .correction_mode import with_powers
from .deferred import tensors_in
from .fallback import Unseen, random_states, restore_random_states
from .sweep import Arguments, Jet, Keywords, Rule, Sweep
from .undone import is_write


@dataclass(eq=False)
class Propagation(Sweep):
    """A sweep through a function.

    Attributes:
        rules_of: the rules to try for an operation, given it and its name, None for operations of others.
    """

    rules_of: Callable[[Any, str | None], Iterable[Rule]] = field(kw_only=True)

    def intercept(self, func: Any, args: Arguments, kwargs: Keywords, jets: Sequence[Jet]) -> Any:
        for x in jets:
            if x.base is not None and x.seen != x.base.written:
                writes.read_again(x)
        if self.finished and not top_saved_tensors_hooks():  # a checkpoint that runs again saves what it saved
            args, kwargs = self.values(args, kwargs)
            return func(*args, **kwargs)
        if not (self.applying or torch.is_grad_enabled()):
            raise Unseen("what runs under torch.no_grad() or in a torch.autograd.Function")
        if is_below_autograd():
            raise Unseen("what an operation of higher order runs, as torch.cond")
        applying, self.applying = self.applying, True
        try:
            with torch.set_grad_enabled(self.recording):
                return self.apply(func, args, kwargs)
        finally:
            self.applying = applying

    def follow(self, f: Callable[[Any], Any], points: Any) -> Any:
        """The result of a function, with its derivatives; raises Unseen for what the sweep cannot follow."""
        if self.owns(points):
            points.shown = True
        y = None
        try:
            # The sweep would not see the operations of what torch.compile made.
            with torch.enable_grad():
                self.points = math.prod(points.shape[:-1])
                y = run_without_compilation(f, points)
            if self.owns(y):
                writes.read_again(y)
                y = self.wrapped(y.value, y.given, y.laplacian)
        except Exception as error:
            unseen = error if isinstance(error, Unseen) else self.unseen
            if unseen is None:
                raise
            raise unseen from None
        finally:
            with torch.set_grad_enabled(self.recording):
                writes.returned(self, finished=y is not None)
            self.finished = True
        return y

    def apply(self, func: Any, args: Arguments, kwargs: Keywords) -> Any:
        """An operation on tensors of this sweep."""
        if isinstance(func, Rowwise):
            return with_powers(func, args, kwargs, lambda: func.computed(func.bound(args, kwargs), self))
        if isinstance(func, Pointwise):  # whose name may be that of a function of PyTorch
            return self.by_rule(func, None, args, kwargs)
        if isinstance(func, OpOverloadPacket):
            func = overload_of(func, args, kwargs)
        spoken, name, known = _names(func)
        if known and name == "requires_grad":
            return True
        if known and spoken == "requires_grad_" and all((*args[1:], *kwargs.values())):
            return args[0]
        if is_write(spoken, func, kwargs):
            return writes.written(self, func, args, kwargs)
        if known and spoken in _CONSTANT:
            if spoken in _SHOWS:
                args[0].root.shown = True
            if len(args) == 1 and not kwargs:
                return func(args[0].value)
            args, kwargs = self.values(args, kwargs)
            return func(*args, **kwargs)
        if known and spoken in _HIDDEN:
            raise Unseen(spoken)
        if not known:
            return self.by_rule(func, None, args, kwargs)
        args, kwargs = positional(func, args, kwargs)
        if is_autocast_enabled() and name not in _CONVERSIONS and (dtype := self._autocast_to(func, args, kwargs)):

            def cast(x: Any) -> Any:
                return x.to(dtype) if isinstance(x, Tensor) and x.dtype in _AUTOCAST else x

            with outside_autocast():
                if name in _PARTLY_HALF:
                    return each(cast, self.by_rule(func, name, args, kwargs))
                return self.by_rule(func, name, each(cast, args), each(cast, kwargs))
        return with_powers(func, args, kwargs, lambda: self.by_rule(func, name, args, kwargs))

    def _autocast_to(self, func: Any, args: Arguments, kwargs: Keywords) -> torch.dtype | None:
        """The dtype that autocast gives an operation; None if it has several, or others. A rule may be composed of
        operations that autocast runs in others."""
        given = [x for x in tensors_in((args, kwargs)) if x.dtype in _AUTOCAST]
        if not given:
            return None
        random = None if is_captured(given[0]) else random_states(given[0].device)
        args, kwargs = self.values(args, kwargs)
        dtypes = {y.dtype for y in tensors_in(func(*args, **kwargs))} & _AUTOCAST
        if random:
            restore_random_states(given[0].device, random)
        return dtypes.pop() if len(dtypes) == 1 else None

    def by_rule(self, func: Any, name: str | None, args: Arguments, kwargs: Keywords) -> Any:
        """An operation by the first of the rules that fits."""
        args, kwargs = each(_unchanged, args), each(_unchanged, kwargs)
        for rule in self.rules_of(func, name):
            result = rule(self, func, args, kwargs)
            if result is not NotImplemented:
                break
        else:
            result = self.differentiated(func, args, kwargs)
        if not transforms_active():
            writes.show_shared(self, result, (args, kwargs))
        return result


def _unchanged(x: Any) -> Any:
    """An argument as it is now: its caller may change an array, or a list, before deferred tangents are computed."""
    return copy.copy(x) if hasattr(x, "__array_interface__") else x


@functools.lru_cache(2048)
def _names(func: Any) -> tuple[str, str, bool]:
    """The name of a function as it is called and without underscores, and whether it is known by it."""
    name = known_name(func)
    known = func is quadratic_form or is_of_torch(func)
    return name, name.strip("_") if name.startswith("__") else name, known


# Functions and attributes whose results have no derivative.
_CONSTANT = CONSTANT | frozenset(
    "shape size dim ndim numel nelement stride storage_offset is_contiguous dtype device layout requires_grad "
    "is_floating_point is_complex is_cuda is_sparse is_nested is_leaf is_conj is_neg is_quantized is_mkldnn names "
    "item tolist bool int long __float__ __complex__ __len__ __bool__ __int__ __index__ __format__ "
    "__repr__ __hash__ get_device element_size itemsize data detach result_type".split()
)
# Attributes and methods that give plain tensors in the same memory.
_SHOWS = frozenset("data detach".split())
# Dtypes that autocast exchanges for another, and functions that do so themselves.
_AUTOCAST = HALF | {torch.float32}
_CONVERSIONS = frozenset("to float half bfloat16 double type type_as".split())
# Functions that autocast ends with a product in half precision, after parts that there are not in it.
_PARTLY_HALF = frozenset("pinv matrix_power".split())
# Functions that differentiate, or hide what they compute; of an array of NumPy and a copy autograd says what it is.
_HIDDEN = frozenset(
    "grad grad_fn backward register_hook register_post_accumulate_grad_hook retain_grad _make_dual _unpack_dual "
    "numpy __array__ __deepcopy__ __reduce_ex__".split()
)
