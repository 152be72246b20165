from __future__ import annotations

import pytest

from backdoor_bench.stage.cost_controller import CostController


def test_five_in_a_row_double_five_failures_divide_by_two_to_the_three_halves() -> None:
    controller = CostController(1.0)
    assert [controller.update(True) for _ in range(6)] == [1, 1, 1, 1, 2, 2]
    # One success has begun a new count; a failure ends it.
    assert [controller.update(False) for _ in range(4)] == [2, 2, 2, 2]
    assert controller.went_up
    assert not controller.went_down
    assert controller.update(False) == pytest.approx(2 / 2**1.5)
    assert controller.went_down


def test_an_interrupted_row_starts_anew() -> None:
    controller = CostController(1.0)
    for held in [True] * 4 + [False] + [True] * 4:
        controller.update(held)
    assert controller.cost == 1.0
    assert controller.update(True) == 2.0


def test_below_the_floor_it_is_set_to_the_floor() -> None:
    controller = CostController(1e-3, floor=1e-3)
    for _ in range(10):
        controller.update(False)
    assert controller.cost == pytest.approx(1e-3 / 8)
    assert [controller.update(True) for _ in range(10)][4::5] == pytest.approx([1e-3, 2e-3])


def test_the_papers_rule_of_unit_moves_at_every_step() -> None:
    controller = CostController(1.0, patience=1, down=2.0)
    assert [controller.update(held) for held in (True, True, False)] == [2, 4, 2]


def test_the_ceiling() -> None:
    controller = CostController(1.0, patience=1, ceiling=3.0)
    assert [controller.update(True) for _ in range(3)] == [2, 3, 3]
