"""Runs the code of a notebook without Jupyter, and keeps its figures: run_notebook.py NOTEBOOK FOLDER."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt


def main(notebook: Path, folder: Path) -> None:
    """Runs the cells one after another; saves what figures each leaves open as 1.png, 2.png, ... in the folder."""
    plt.switch_backend("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    names: dict[str, Any] = {"__name__": "__main__"}
    kept = 0
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        code = "".join(line for line in cell["source"] if not line.startswith("%"))  # magic is Jupyter's
        exec(compile(code, str(notebook), "exec"), names)
        for number in plt.get_fignums():
            kept += 1
            plt.figure(number).savefig(folder / f"{kept}.png", dpi=120)
        plt.close("all")
    print(f"{kept} figures are in {folder}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
