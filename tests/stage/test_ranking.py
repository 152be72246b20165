from __future__ import annotations

import pytest
import torch

from backdoor_bench.stage.ranking import largest


def test_the_largest_by_hand() -> None:
    assert largest(torch.tensor([3.0, 1.0, 2.0, 5.0]), 2).tolist() == [True, False, False, True]


def test_ties_are_cut_at_the_exact_count_and_the_first_win() -> None:
    values = torch.tensor([1.0, 2.0, 1.0, 1.0, 0.0])
    assert largest(values, 3).tolist() == [True, True, True, False, False]
    assert [int(largest(torch.zeros(7), count).sum()) for count in range(8)] == list(range(8))


def test_agrees_with_a_stable_sort() -> None:
    values = torch.randint(0, 9, (500,), generator=torch.Generator().manual_seed(0)).float()
    values[::50] = -torch.inf
    for count in (1, 77, 499):
        expected = torch.zeros(500, dtype=torch.bool)
        expected[values.sort(descending=True, stable=True).indices[:count]] = True
        assert torch.equal(largest(values, count), expected)


@pytest.mark.parametrize("count", [-1, 4])
def test_a_count_that_cannot_be(count: int) -> None:
    with pytest.raises(ValueError, match=f"cannot take {count} of 3"):
        largest(torch.zeros(3), count)
