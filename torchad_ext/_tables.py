"""Tables in a terminal, however narrow it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

_LONGEST = 9  # letters of a number; ranges of two are broken where there is no room


def with_whole_numbers(table: Table) -> Table:
    """The table, which breaks headers before numbers where a terminal is narrow, and cuts nothing short."""
    from rich.text import Text

    for column in table.columns:
        words = [word for cell in column.cells for word in Text.from_markup(str(cell)).plain.split()]
        column.min_width, column.overflow = min(_LONGEST, max(map(len, words), default=0)), "fold"
    return table
