"""What is no working classifier: by hand, on balanced and unbalanced classes."""

from __future__ import annotations

import pytest

from backdoor_bench.chance import at_chance, best_constant


def test_the_best_constant_answer_is_the_largest_class() -> None:
    assert best_constant([1000] * 10) == 0.1
    assert best_constant([60, 750, 90]) == 750 / 900


@pytest.mark.parametrize(
    ("acc", "sizes", "expected"),
    [
        (0.1, [1000] * 10, True),  # one class for everything
        (0.1058, [1000] * 10, True),
        (0.19, [1000] * 10, True),  # 0.1 and a tenth of 0.9
        (0.2, [1000] * 10, False),
        (0.012, [750, *[11880 // 42] * 42], True),  # below chance is no classifier either
        (0.7, [7, 1, 1, 1], True),  # right on seven of ten by answering the largest class
        (0.75, [7, 1, 1, 1], False),
        (1.0, [5], True),  # with one class there is nothing to know
    ],
)
def test_at_chance(acc: float, sizes: list[int], expected: bool) -> None:
    assert at_chance(acc, best_constant(sizes)) is expected
