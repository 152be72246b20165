"""Hydra accepts a sweeper only if its class is defined here; everything of it is in the package."""

from backdoor_bench.sweep import sweeper

__all__ = ["GridSweeper"]


class GridSweeper(sweeper.GridSweeper):
    __doc__ = sweeper.GridSweeper.__doc__
