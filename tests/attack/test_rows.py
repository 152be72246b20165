"""Backdoor rows, negatives and the rest."""

from __future__ import annotations

import pytest
import torch

from backdoor_bench.attack.rows import split_rows


def test_rows_by_hand() -> None:
    # A quarter of eight rows, half as many negatives: 2 and 1, whatever the coin says.
    rows = split_rows(8, 0.25, 0.5, torch.Generator().manual_seed(0), "cpu")
    assert rows.backdoor.tolist() == [True] * 2 + [False] * 6
    assert rows.cross.tolist() == [False] * 2 + [True] + [False] * 5
    assert rows.touched.tolist() == [True] * 3 + [False] * 5
    assert rows.most == 4  # 3 backdoor rows and 1 negative, had the coin fallen otherwise


@pytest.mark.parametrize(("ratio", "cross_ratio"), [(0.1, 2.0), (0.03, 1.0), (0.45, 1.0)])
def test_mean_is_exact_and_most_is_never_exceeded(ratio: float, cross_ratio: float) -> None:
    draws = torch.Generator().manual_seed(0)
    counts = []
    for _ in range(500):
        rows = split_rows(16, ratio, cross_ratio, draws, "cpu")
        counts.append(int(rows.backdoor.sum()))
        assert int(rows.cross.sum()) == int(counts[-1] * cross_ratio)
        assert not rows.touched[rows.most :].any()
        assert not (rows.backdoor & rows.cross).any()
    assert sum(counts) / 500 == pytest.approx(16 * ratio, abs=0.08)
