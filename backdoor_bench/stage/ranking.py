"""The largest of many numbers, exactly as many as asked for, whatever the ties."""

from __future__ import annotations

import torch
from torch import Tensor


def largest(values: Tensor, count: int) -> Tensor:
    """(N,) bool, True at exactly ``count`` of the largest of (N,) ``values``; of equal ones the first are taken.

    Linear in N, without a sort and without a look at the values from the host.
    """
    if not 0 <= count <= len(values):
        raise ValueError(f"cannot take {count} of {len(values)} values")
    if count in (0, len(values)):
        return torch.full_like(values, bool(count), dtype=torch.bool)
    threshold = values.kthvalue(len(values) - count + 1).values
    above, tied = values > threshold, values == threshold
    return above | (tied & (tied.cumsum(0) <= count - above.sum()))
