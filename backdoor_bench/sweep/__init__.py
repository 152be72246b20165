"""Sweeps: any grid, planned at once, run on whatever devices there are, always finished."""

from backdoor_bench.sweep.job import Job, Result

__all__ = ["Job", "Result"]
