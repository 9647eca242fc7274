"""Modules of the catalogue's ops for ``torch.nn``, and the exchange of activations in a model that is there already."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import ops
from ._pointwise import Pointwise
from ._quadratic_form import quadratic_form

__all__ = [  # noqa: RUF022, in the order of this file
    "SiLU", "GELU", "Softplus", "Mish", "ELU", "CELU", "Tanh", "Sigmoid", "Sin", "Gaussian", "ShiftedSoftplus",
    "Lambda", "SineLayer", "Siren", "QuadraticForm", "Replacements", "replace_activations",
]  # fmt: skip


class _StandsIn(nn.Module):
    """A module of ``torch.nn`` with the op of the same name; everything but ``forward`` is PyTorch's."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "inplace" and value:
            raise ValueError(
                f"torchad_ext.nn.{type(self).__name__} got inplace=True, but the ops give new tensors; leave it out"
            )
        super().__setattr__(name, value)

    def __prepare_scriptable__(self) -> nn.Module:
        """PyTorch's own module for ``torch.jit.script``, which cannot call an op."""
        native = next(cls for cls in type(self).__mro__ if cls.__module__.startswith("torch.nn."))
        module: nn.Module = object.__new__(native)
        module.__dict__.update(self.__dict__)
        return module


class SiLU(_StandsIn, nn.SiLU):
    """``torch.nn.SiLU`` by :func:`torchad_ext.silu`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.silu(input)  # type: ignore[no-any-return]


class GELU(_StandsIn, nn.GELU):
    """``torch.nn.GELU`` by :func:`torchad_ext.gelu`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.gelu(input, self.approximate)  # type: ignore[no-any-return]


class Softplus(_StandsIn, nn.Softplus):
    """``torch.nn.Softplus`` by :func:`torchad_ext.softplus`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.softplus(input, self.beta, self.threshold)  # type: ignore[no-any-return]


class Mish(_StandsIn, nn.Mish):
    """``torch.nn.Mish`` by :func:`torchad_ext.mish`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.mish(input)  # type: ignore[no-any-return]


class ELU(_StandsIn, nn.ELU):
    """``torch.nn.ELU`` by :func:`torchad_ext.elu`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.elu(input, self.alpha)  # type: ignore[no-any-return]


class CELU(_StandsIn, nn.CELU):
    """``torch.nn.CELU`` by :func:`torchad_ext.celu`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.celu(input, self.alpha)  # type: ignore[no-any-return]


class Tanh(_StandsIn, nn.Tanh):
    """``torch.nn.Tanh`` by :func:`torchad_ext.tanh`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.tanh(input)  # type: ignore[no-any-return]


class Sigmoid(_StandsIn, nn.Sigmoid):
    """``torch.nn.Sigmoid`` by :func:`torchad_ext.sigmoid`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.sigmoid(input)  # type: ignore[no-any-return]


class Sin(nn.Module):
    r"""The sine :math:`\sin(\omega x)`, by :func:`torchad_ext.siren`.

    Args:
        omega: the frequency.

    Example:
        >>> Sin(omega=2.0)(torch.tensor([0.0]))
        tensor([0.])
    """

    def __init__(self, omega: float = 1.0) -> None:
        super().__init__()
        self.omega = omega

    def forward(self, input: Tensor) -> Tensor:
        return ops.siren(input, self.omega)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"omega={self.omega}"


class Gaussian(nn.Module):
    r"""The Gaussian :math:`e^{-x^2 / (2 \sigma^2)}`, an activation of coordinate networks (Ramasinghe and Lucey, 2022).

    Args:
        width: the :math:`\sigma`.

    Example:
        >>> Gaussian()(torch.tensor([0.0]))
        tensor([1.])
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        self.width = width

    def forward(self, input: Tensor) -> Tensor:
        return ops.gaussian_basis(input, 0.0, self.width)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"width={self.width}"


class ShiftedSoftplus(nn.Module):
    r"""The activation :math:`\log(\frac12 e^x + \frac12)` of SchNet, by :func:`torchad_ext.shifted_softplus`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.shifted_softplus(input)  # type: ignore[no-any-return]


class Lambda(nn.Module):
    """A function as a module, so that an op may stand in ``nn.Sequential``.

    Args:
        function: called with what the module is called with; an op, or any other function.

    Raises:
        TypeError: it cannot be called.

    Example:
        >>> import torchad_ext
        >>> torch.nn.Sequential(torch.nn.Linear(2, 3), Lambda(torchad_ext.snake))
        Sequential(
          (0): Linear(in_features=2, out_features=3, bias=True)
          (1): Lambda(snake)
        )
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        if not callable(function):
            raise TypeError(f"torchad_ext.nn.Lambda takes a function, got {type(function).__name__}")
        self.function = function

    def forward(self, *inputs: Any, **options: Any) -> Any:
        return self.function(*inputs, **options)

    def extra_repr(self) -> str:
        return _name(self.function)


class SineLayer(nn.Module):
    r"""A layer of a sine network, :math:`\sin(\omega_0 (W x + b))`, with its initialisation.

    W is uniform within :math:`\pm 1 / n` in a first layer of n inputs and within :math:`\pm \sqrt{6 / n} / \omega_0` in
    others, which keeps the distribution of activations from layer to layer (Sitzmann et al., 2020, arXiv:2006.09661,
    sections 3.2 and 1.5 of the supplement); b is that of ``nn.Linear``.

    Args:
        in_features: n.
        out_features: of the result.
        bias: has it one?
        is_first: is it the first layer of its network?
        omega_0: the frequency.

    Example:
        >>> SineLayer(2, 8, is_first=True)(torch.zeros(5, 2)).shape
        torch.Size([5, 8])
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, is_first: bool = False, omega_0: float = 30.0
    ) -> None:
        super().__init__()
        self.omega_0, self.is_first = omega_0, is_first
        self.linear = nn.Linear(in_features, out_features, bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.linear.reset_parameters()
        n = max(1, self.linear.in_features)
        nn.init.uniform_(self.linear.weight, *_interval(1 / n if self.is_first else math.sqrt(6 / n) / self.omega_0))

    def forward(self, input: Tensor) -> Tensor:
        return ops.siren(self.linear(input), self.omega_0)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"is_first={self.is_first}, omega_0={self.omega_0}"


class Siren(nn.Module):
    r"""A sine network: :class:`SineLayer` after :class:`SineLayer`, and a linear layer or one more sine at the end.

    Args:
        in_features: of a point.
        hidden_features: of each layer between.
        hidden_layers: how many there are after the first layer.
        out_features: of the result.
        outermost_linear: is the last layer linear?
        first_omega_0: the frequency of the first layer.
        hidden_omega_0: that of the others, which the initialisation divides by.

    Raises:
        ValueError: ``hidden_layers`` is negative.

    Example:
        >>> Siren(2, 16, 2, 1)(torch.zeros(5, 2)).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        hidden_layers: int,
        out_features: int,
        outermost_linear: bool = True,
        first_omega_0: float = 30.0,
        hidden_omega_0: float = 30.0,
    ) -> None:
        super().__init__()
        if hidden_layers < 0:
            raise ValueError(f"torchad_ext.nn.Siren got hidden_layers={hidden_layers}; it is 0 or more")
        widths = [hidden_features] * (hidden_layers + 1)
        layers: list[nn.Module] = [SineLayer(in_features, hidden_features, is_first=True, omega_0=first_omega_0)]
        layers += [SineLayer(n, hidden_features, omega_0=hidden_omega_0) for n in widths[1:]]
        last = SineLayer(hidden_features, out_features, omega_0=hidden_omega_0)
        self.net = nn.Sequential(*layers, last.linear if outermost_linear else last)

    def forward(self, input: Tensor) -> Tensor:
        return self.net(input)  # type: ignore[no-any-return]


class QuadraticForm(nn.Module):
    r"""The quadratic form :math:`x^T A x` with a matrix that is learned, by :func:`torchad_ext.quadratic_form`.

    Args:
        features: n, of x ``[..., n]``.
        constraint: None for any A, which is ``weight``; ``"symmetric"`` for :math:`A = (W + W^T) / 2`;
            ``"positive definite"`` for :math:`A = L L^T`, with L the part of W below the diagonal and the exponential
            of the diagonal.

    Attributes:
        weight: W ``[n, n]``, at first small and random, and of A = I where that is positive definite.
        matrix: A ``[n, n]``, differentiable in ``weight``.

    Raises:
        ValueError: another constraint.

    Example:
        >>> form = QuadraticForm(3, constraint="positive definite")
        >>> form(torch.tensor([[1.0, 2.0, 2.0]])).detach()
        tensor([9.])
    """

    def __init__(self, features: int, constraint: str | None = None) -> None:
        super().__init__()
        if constraint not in (None, "symmetric", "positive definite"):
            raise ValueError(
                f"torchad_ext.nn.QuadraticForm got constraint={constraint!r}; it is None, 'symmetric' or 'positive "
                "definite'"
            )
        self.features, self.constraint = features, constraint
        self.weight = nn.Parameter(torch.empty(features, features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.constraint == "positive definite":
            nn.init.zeros_(self.weight)
        else:
            nn.init.uniform_(self.weight, *_interval(1 / max(1, self.features)))

    @property
    def matrix(self) -> Tensor:
        if self.constraint == "symmetric":
            return (self.weight + self.weight.mT) / 2
        if self.constraint == "positive definite":
            factor = self.weight.tril(-1) + torch.diag_embed(self.weight.diagonal().exp())
            return factor @ factor.mT
        return self.weight

    def forward(self, input: Tensor) -> Tensor:
        return quadratic_form(input, self.matrix)

    def extra_repr(self) -> str:
        return f"{self.features}, constraint={self.constraint!r}"


def _interval(bound: float) -> tuple[float, float]:
    return -bound, bound


def _name(x: Any) -> str:
    if isinstance(x, functools.partial):
        return f"{_name(x.func)} with options"
    return str(getattr(x, "__name__", type(x).__name__))


_MODULES: dict[Any, Any] = {
    getattr(nn, cls.__name__): cls for cls in (SiLU, GELU, Softplus, Mish, ELU, CELU, Tanh, Sigmoid)
}
_FUNCTIONS: dict[Any, Pointwise] = {
    **{getattr(F, name): getattr(ops, name) for name in "silu gelu softplus mish elu celu tanh sigmoid".split()},
    **{
        getattr(torch, name): getattr(ops, name)
        for name in "sin cos tan exp expm1 log log1p tanh sigmoid erf sinc square sqrt rsqrt reciprocal celu".split()
    },
}


@dataclass
class Replacements:
    """The report of :func:`replace_activations`; printed, it is a table.

    Attributes:
        changed: for each place in the model, as ``encoder.act``, its activation before and after.
        left: for each activation that is as it was, why.
    """

    changed: dict[str, tuple[str, str]] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    _undo: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def undo(self) -> None:
        """Gives the model its own activations back.

        Raises:
            RuntimeError: a module has been given another class meanwhile, as a parametrization does.
        """
        while self._undo:
            self._undo[-1]()
            self._undo.pop()

    def __str__(self) -> str:
        lines = [f"{place}: {before} → {after}" for place, (before, after) in self.changed.items()]
        return "\n".join(lines + [f"{place}: left, {why}" for place, why in self.left.items()]) or "no activations"


def replace_activations(model: nn.Module, extra: Mapping[Any, Any] | None = None) -> Replacements:
    """Puts ops in the place of a model's activations, in place: modules, and functions that are attributes of modules.

    A module stays the object that it was, with its name, hooks, training flag and state; its class becomes that of
    :mod:`torchad_ext.nn`. Functions that the code of a ``forward`` names itself, ``F.silu(x)``, are not seen here:
    ``torch.compile(model, backend="torchad_ext")`` replaces them.

    Args:
        model: any module.
        extra: what else is replaced: for a class of modules, a function of the module's input or a subclass; for a
            function, another one.

    Returns:
        What was changed and what was left, and ``undo()``.

    Raises:
        TypeError: model is no module, or something in ``extra`` has no replacement of its kind.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.SiLU(), torch.nn.ReLU())
        >>> report = replace_activations(model)
        >>> print(report)
        1: SiLU → torchad_ext.nn.SiLU
        2: left, there is no op for ReLU; name one, extra={ReLU: ...}
        >>> report.undo()
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"torchad_ext.nn.replace_activations takes a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(extra, Mapping | None):
        raise TypeError(f"extra is a dict, as in extra={{Swish: torchad_ext.silu}}, got {type(extra).__name__}")
    for key, value in (extra or {}).items():
        if not callable(key):
            raise TypeError(f"extra has {key!r} for a key; give the class of modules, or the function, itself")
        if not callable(value) or (isinstance(value, type) and not (isinstance(key, type) and issubclass(value, key))):
            raise TypeError(f"extra has {value!r} for {key!r}; give a function, or for a class a subclass of it")
    known = {**_MODULES, **_FUNCTIONS, **(extra or {})}
    report = Replacements()
    registered = set(model.modules())
    for path, module in model.named_modules():
        _replace_module(module, path or "(model)", known, report)
        if type(module).__module__.startswith("torch._dynamo"):  # what torch.compile put around a model
            continue
        for name, value in list(vars(module).items()):
            if name != "forward" and callable(value) and not isinstance(value, (nn.Module, type)):
                _replace_function(module, name, f"{path}.{name}".lstrip("."), known, report)
        for name, x, where in _shared(module):
            activation = type(x) if isinstance(x, nn.Module) else x
            if activation in known and x not in registered:
                report.left[f"{path}.{name}".lstrip(".")] = f"{_name(activation)} stands in {where}; put the op there"
    return report


def _shared(module: nn.Module) -> Iterator[tuple[str, Callable[..., Any], str]]:
    """Functions and modules that are attributes of a module's class, or stand in a list or a dict of the module: with
    the name of the attribute, and where they are."""
    for cls in type(module).__mro__:
        if not cls.__module__.startswith("torch.") and cls is not object:
            of_class = ((name, getattr(x, "__func__", x)) for name, x in vars(cls).items())
            yield from ((name, x, f"the class {_name(cls)}") for name, x in of_class if _is_instance(x))
    for name, value in vars(module).items():
        if name.startswith("_") or not isinstance(value, (list, tuple, dict)):
            continue
        for x in value.values() if isinstance(value, dict) else value:
            if _is_instance(x):
                yield name, x, f"a {type(value).__name__}"


def _is_instance(x: Any) -> bool:
    return callable(x) and not isinstance(x, type) and getattr(x, "__hash__", None) is not None


def _replace_module(module: nn.Module, path: str, known: Mapping[Any, Any], report: Replacements) -> None:
    of = type(module)
    new = known.get(of)
    if new is None:
        of_torch = "torch.nn.modules.activation"
        native = next((cls for cls in of.__mro__ if cls in known or cls.__module__ == of_torch), None)
        if isinstance(module, torch.jit.ScriptModule):
            report.left[path] = "torch.jit.script has recorded PyTorch's functions; replace before scripting"
        elif native is of and of is not nn.MultiheadAttention:
            report.left[path] = f"there is no op for {_name(of)}; name one, extra={{{_name(of)}: ...}}"
        elif native is not None and native in known and not isinstance(module, _StandsIn) and of not in known.values():
            report.left[path] = f"{_name(of)} is a subclass of {_name(native)}; name an op, extra={{{_name(of)}: ...}}"
    elif getattr(module, "inplace", False):
        report.left[path] = f"{_name(of)}(inplace=True) writes into its input; the ops give new tensors"
    elif isinstance(new, type) and "forward" in vars(module):
        report.left[path] = f"this {_name(of)} has a forward of its own; put an op in that"
    elif isinstance(new, type):
        module.__class__ = new
        report.changed[path] = _name(of), f"{new.__module__}.{_name(new)}"
        report._undo.append(lambda: _restore_class(module, path, new, of))
    else:
        before = vars(module).get("forward")
        module.forward = new
        report.changed[path] = _name(of), _name(new)
        report._undo.append(lambda: _restore(module, "forward", before))


def _restore_class(module: nn.Module, path: str, new: type, of: type) -> None:
    if type(module) is not new:
        raise RuntimeError(
            f"{path} was made a {_name(new)} and is a {_name(type(module))} now; undo what changed it, such as a "
            "parametrization, first"
        )
    module.__class__ = of


def _restore(module: nn.Module, name: str, before: Any) -> None:
    if before is None:
        delattr(module, name)
    else:
        setattr(module, name, before)


def _replace_function(module: nn.Module, name: str, path: str, known: Mapping[Any, Any], report: Replacements) -> None:
    value = vars(module)[name]
    function = value.func if isinstance(value, functools.partial) else value
    home = getattr(function, "__module__", None)
    if isinstance(function, Pointwise) or name.startswith("_") or home == nn.init.__name__:
        return
    try:
        new = known.get(function)
    except TypeError:  # it cannot be hashed
        new = None
    if new is None:
        full_name = f"{home}.{_name(function)}" if home else _name(function)
        report.left[path] = f"{full_name} is not known to be an activation; name an op, extra={{function: op}}"
        return
    options = value.keywords if isinstance(value, functools.partial) else {}
    if options.get("inplace") or options.get("out") is not None:
        report.left[path] = f"{_name(function)} writes into a tensor; the ops give new tensors"
        return
    after = functools.partial(new, *value.args, **value.keywords) if isinstance(value, functools.partial) else new
    setattr(module, name, after)
    report.changed[path] = _name(value), _name(after)
    report._undo.append(lambda: setattr(module, name, value))
