"""Text in a file between two marks, which a program writes anew."""

from __future__ import annotations

from pathlib import Path


def replace_between(file: Path, begin: str, end: str, text: str) -> None:
    """Puts ``text`` in place of what stands between the line ``begin`` and ``end``."""
    before, rest = file.read_text(encoding="utf-8").split(f"{begin}\n")
    _, after = rest.split(end)
    file.write_text(f"{before}{begin}\n{text}{end}{after}", encoding="utf-8")
