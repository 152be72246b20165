"""The cost scheduler of Neural Cleanse (Wang et al., "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in
Neural Networks", IEEE S&P 2019), which UNIT uses for its alpha as well."""

from __future__ import annotations


class CostController:
    """The weight of a penalty: raised while a condition holds, lowered while it fails.

    Args:
        cost: the weight to start with.
        patience: updates in a row with the same answer before the cost changes; then the count starts anew.
        up: factor after ``patience`` updates that held.
        down: divisor after ``patience`` updates that failed.
        ceiling: the cost grows no further: beyond it, squared gradients in float32 would overflow. No run of a
            published length gets there.
        floor: a cost below it is not raised by ``up`` but set to it (UNIT's code).

    Attributes:
        cost: the weight now.
        went_up, went_down: whether it ever did; Neural Cleanse stops early only after both.
    """

    def __init__(
        self,
        cost: float,
        patience: int = 5,
        up: float = 2.0,
        down: float = 2.0**1.5,
        floor: float = 0.0,
        ceiling: float = 1e16,
    ) -> None:
        self.cost, self.patience, self.up, self.down = cost, patience, up, down
        self.floor, self.ceiling = floor, ceiling
        self.went_up = self.went_down = False
        self._streak = 0  # updates in a row that held (positive) or failed (negative)

    def update(self, held: bool) -> float:
        """Take one answer; returns the cost from now on."""
        self._streak = max(self._streak, 0) + 1 if held else min(self._streak, 0) - 1
        if self._streak == self.patience:
            self.cost = self.floor if self.cost < self.floor else min(self.cost * self.up, self.ceiling)
            self._streak, self.went_up = 0, True
        elif self._streak == -self.patience:
            self.cost /= self.down
            self._streak, self.went_down = 0, True
        return self.cost
