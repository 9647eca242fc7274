"""The table of operations with a rule: up to date, and able to say that one is missing."""

from __future__ import annotations

import pytest

pytest.importorskip("expecttest", reason="torch.testing._internal imports expecttest, which is not installed")
import laplacian_table
import torch

from torchad_ext._forward import rules


def page() -> str:
    text = laplacian_table.PAGE.read_text(encoding="utf-8")
    return text.partition(laplacian_table.BEGIN)[2].partition(laplacian_table.END)[0]


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_the_table_is_up_to_date() -> None:
    if torch.__version__.partition("+")[0] not in laplacian_table.PAGE.read_text(encoding="utf-8"):
        pytest.skip("the table was made with another PyTorch, whose samples may be others")
    assert laplacian_table.table() == page(), "run make rules"


@pytest.mark.filterwarnings("ignore")
def test_a_rule_that_is_missing_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    (info,) = [info for info in laplacian_table.op_db if info.name == "flip"]
    assert laplacian_table.ways_of(info, torch.float64) == {"rule"}
    monkeypatch.delitem(rules.RULES, "flip")
    assert laplacian_table.ways_of(info, torch.float64) == {"operation"}
