"""One of a thing is not several."""

from __future__ import annotations

import pytest

from backdoor_bench.suspect import card
from backdoor_bench.words import counted


@pytest.mark.parametrize(("number", "text"), [(0, "0 runs"), (1, "1 run"), (2, "2 runs"), (12000, "12,000 runs")])
def test_a_number_of_things(number: int, text: str) -> None:
    assert counted(number, "run") == text


@pytest.mark.parametrize(("threads", "text"), [(1, ", on cpu, 1 thread"), (4, ", on cpu, 4 threads")])
def test_the_threads_of_a_model_card(monkeypatch: pytest.MonkeyPatch, threads: int, text: str) -> None:
    found = dict.fromkeys(("backdoor_bench", "torch", "python"), "1.0") | {"threads": threads}
    monkeypatch.setattr(card.environment, "describe", lambda: found)
    (_, made), _ = card.machine("cpu")
    assert made.endswith(text)
