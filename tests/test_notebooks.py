"""The notebooks: kept with their outputs, in order, without errors, and their code runs, assertions included."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="pip install 'torchad_ext[notebooks]'")

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PICTURES = {"01": 2, "02": 2, "03": 4, "04": 2, "05": 2, "06": 5, "07": 3}  # at least


def read(path: Path) -> Any:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code_cells(path: Path) -> list[Any]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def test_every_notebook_is_here() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == list(PICTURES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_has_its_outputs_and_no_errors(path: Path) -> None:
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "make notebooks executes them"
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= PICTURES[path.name[:2]]
    assert not any(output.get("name") == "stderr" for output in outputs), "kernels were compiled: execute it again"
    text = path.read_text(encoding="utf-8")
    assert len(text) < 1_500_000 and not re.search(r"/(home|root|tmp)/", text)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_it_prints_it_asserts(path: Path) -> None:
    """A cell that prints a number asserts something, or the next one does."""
    sources = [cell.source for cell in code_cells(path)][1:]
    for source, following in zip(sources, [*sources[1:], ""], strict=True):
        if "print(" in source:
            assert re.search(r"\bassert|assert_close|raise AssertionError", source + following), source


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_executes(path: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="pip install 'torchad_ext[notebooks]'")
    nbclient.NotebookClient(read(path), timeout=300, resources={"metadata": {"path": path.parent}}).execute()
