"""Scalar expressions: traced from a PyTorch function, differentiated, printed as C++ and LaTeX. They know no memory."""

from . import operations as operations  # fills the table of operations
