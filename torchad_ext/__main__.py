"""The command line: ``python -m torchad_ext`` with one of demo, verify and ops."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

import torchad_ext

from .ops import CATALOGUE, table
from .rows import ROW_CATALOGUE

OPS: dict[str, Callable[..., torch.Tensor]] = {
    **CATALOGUE,
    **ROW_CATALOGUE,
    "quadratic_form": torchad_ext.quadratic_form,
}


def _op(name: str) -> Callable[..., torch.Tensor]:
    if name not in OPS:
        raise argparse.ArgumentTypeError(f"{name!r} is no op; choose from {', '.join(OPS)}")
    return OPS[name]


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of steps; give 1 or more")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m torchad_ext", description=torchad_ext.__doc__)
    device = argparse.ArgumentParser(add_help=False)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    device.add_argument("--device", choices=("cpu", "cuda"), default=default, help="default: %(default)s")
    commands = parser.add_subparsers(dest="command", required=True)

    demo = commands.add_parser("demo", parents=[device], help="verify the ops, time them, and train a sine network")
    demo.add_argument("--steps", type=_count, help="training steps (default: 300, or 30 with --quick)")
    demo.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for the pictures")
    demo.add_argument("--picture", type=Path, help="the picture to learn (default: one that matplotlib ships)")
    demo.add_argument("--quick", action="store_true", help="smaller sizes, a few seconds in all")

    verify = commands.add_parser("verify", parents=[device], help="hold ops against their definitions")
    verify.add_argument("ops", nargs="*", type=_op, metavar="op", help=f"of {', '.join(OPS)} (default: all)")
    verify.add_argument("--all", action="store_true", help="all of them, as if none were named")

    commands.add_parser("ops", help="print the catalogue as a table in Markdown")
    return parser


def _verify(ops: Iterable[Callable[..., torch.Tensor]], device: str) -> Iterator[str]:
    """Verifies every op, and says of each that is wrong what is wrong."""
    for op in ops:
        try:
            torchad_ext.verify(op, devices=(device,))
        except torchad_ext.VerificationError as error:
            yield f"{error}\n"


def main(arguments: list[str] | None = None) -> None:
    """Runs a command; exits with 1 and a sentence if a derivative is wrong or a file is missing."""
    parser = _parser()
    options: dict[str, Any] = vars(parser.parse_args(arguments))
    command = options.pop("command")
    if command == "ops":
        print(table(), end="")
        return
    device = options["device"]
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, but PyTorch finds no CUDA device; use --device cpu")
    try:
        if command == "demo":
            from . import demo

            os.environ.setdefault("TORCHAD_EXT_EAGER", "wait")  # its compiler would disturb what is timed
            demo.run(**options)
        else:
            ops = OPS.values() if options["all"] else options["ops"] or OPS.values()
            if wrong := list(_verify(ops, device)):
                parser.exit(1, "\n".join(wrong))
    except (AssertionError, OSError) as error:
        parser.exit(1, f"torchad_ext {command}: {error}\n")


if __name__ == "__main__":
    main()
