"""Warnings that name the user's line, and are errors in strict mode."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

from ._settings import is_strict

_INSIDE = (str(Path(__file__).parent), str(Path(torch.__file__).parent))


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Warns at the innermost line outside of this package and of PyTorch."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_code.co_filename.startswith(_INSIDE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def warn_or_raise(error: Exception, remedy: str = "", category: type[Warning] = UserWarning) -> None:
    """Says what is slower than it could be: a warning of ``error`` and of what is done about it.

    Raises:
        Exception: ``error``, under ``TORCHAD_EXT_STRICT=1``.
    """
    if is_strict():
        raise error
    warn_user(f"{error}{remedy}", category)
