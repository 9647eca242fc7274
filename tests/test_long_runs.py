"""Long lives of a process in which nothing grows, with the numbers of a test; ``make long-run`` has large ones."""

from __future__ import annotations

import long_run
import pytest

from torchad_ext._native.state import state


class TestTraining:
    def test_nothing_grows(self) -> None:
        first, *_, last = long_run.train(100, report=lambda _: None)
        assert long_run.grew(first, last) == []

    def test_growth_is_seen(self) -> None:
        before = long_run.held()
        leak = [[i] for i in range(1000)]
        assert long_run.grew(before, long_run.held()) == ["Python objects"]
        assert leak

    def test_threads_do_not_disturb_one_another(self) -> None:
        losses = long_run.train_at_once(threads=8, steps=10)
        assert losses == long_run.train_at_once(threads=1, steps=10) * 8


class TestDeclaring:
    def test_again_is_found_by_content(self) -> None:
        first, *rest = long_run.declare(3)
        assert rest == [first] * 2

    @pytest.mark.long
    def test_five_hundred(self) -> None:
        before = len(state.kernels)
        assert long_run.declare(500, rounds=2) == [before + 500] * 2
