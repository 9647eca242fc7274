"""Records of fast paths, ways to derivatives that are now and then checked against plain reverse mode."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Callable, Hashable, Iterator
from typing import Any

from ._warnings import warn_or_raise

_SHARE = 0.02  # of the time of a fast path, which its checks may take from the second call on
_KEPT = 1024


class FastPath:
    """The record of a fast path for one kind of graph.

    Attributes:
        is_wrong: does it give wrong numbers?
        is_rounded: does even plain reverse mode differ from itself, or has it no numbers, so that it shows nothing?
        is_suspect: was it used for what it is not for? Then it is checked each time.
        at_once: the number of columns of a batch, once it has been measured.
    """

    at_once: int | None = None

    def __init__(self) -> None:
        self.is_wrong = self.is_rounded = self.is_suspect = False
        self._total = self._checking = 0.0

    @property
    def is_due(self) -> bool:
        """Always at first, and from then on as often as a small share of the time allows."""
        return not self.is_rounded and (self.is_suspect or self._checking <= _SHARE * self._total)

    def took(self, seconds: float) -> None:
        self._total += seconds

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.took(time.perf_counter() - start)

    @contextlib.contextmanager
    def checking(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._checking += time.perf_counter() - start


_paths: collections.OrderedDict[Hashable, FastPath] = collections.OrderedDict()


def fast_path(key: Hashable, is_meta: bool = False) -> FastPath:
    """The record of a fast path for functions and tensors of a kind; those on the meta device have no numbers."""
    path = _paths.get(key)
    if path is None:
        path = _paths[key] = FastPath()
        if len(_paths) > _KEPT:
            _paths.popitem(last=False)
    path.is_rounded |= is_meta
    _paths.move_to_end(key)
    return path


def report(
    name: str,
    f: Callable[..., Any],
    path: FastPath,
    way: str,
    reference: str = "a random product by plain reverse mode",
) -> None:
    """Warns that a fast path was wrong; with ``TORCHAD_EXT_STRICT=1`` raises.

    Raises:
        RuntimeError: under ``TORCHAD_EXT_STRICT=1``.
    """
    path.is_wrong = True
    where = f"{getattr(f, '__module__', type(f).__module__)}.{getattr(f, '__qualname__', type(f).__qualname__)}"
    message = (
        f"torchad_ext.{name}: the derivatives of {where} computed {way} differ from {reference}; they are computed by "
        "that, which takes longer. If f neither computes under torch.no_grad() nor changes gradients in hooks, which "
        "forward mode passes by, this is a bug of torchad_ext or of PyTorch: please report it with this function"
    )
    warn_or_raise(RuntimeError(message), category=RuntimeWarning)
