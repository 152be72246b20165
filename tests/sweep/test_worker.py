"""What a job raises, as a report: what can be tried again, what has failed, what leaves a process broken."""

from __future__ import annotations

import pytest
import torch

from backdoor_bench.errors import BusyError, DivergedError, UnwritableError
from backdoor_bench.sweep.job import Job, Report
from backdoor_bench.sweep.worker import attempt


class Raising:
    """Its jobs raise one error; counts how often it was asked for its memory."""

    def __init__(self, error: Exception) -> None:
        self._error = error
        self.released = 0

    def __call__(self, job: Job) -> Report:
        raise self._error

    def release(self) -> None:
        self.released += 1

    def give_up(self, job: Job, reason: str) -> None:
        """Nobody asks."""


def reported(error: Exception) -> tuple[Report, int]:
    work = Raising(error)
    return attempt(work, Job("1", "v", {}, "one")), work.released


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        # Where the context itself, or a library's workspace, finds no room.
        torch.AcceleratorError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_a_full_device_is_tried_again_and_gives_its_memory_back(error: Exception) -> None:
    report, released = reported(error)
    assert (report.outcome, report.broken, released) == ("memory", False, 1)


def test_after_an_error_of_the_device_itself_the_process_is_of_no_more_use() -> None:
    report, released = reported(torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))
    assert (report.outcome, report.broken, released) == ("failed", True, 0)


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (BusyError("another process works on it"), "busy", "another process works on it"),
        (UnwritableError("the disk is full"), "unwritable", "the disk is full"),
        (DivergedError("the loss is NaN"), "failed", "the loss is NaN"),
        (ValueError("no good"), "failed", "ValueError: no good"),
        (MemoryError(), "failed", "MemoryError:"),
    ],
)
def test_what_else_is_raised_says_why(error: Exception, outcome: str, reason: str) -> None:
    report, _ = reported(error)
    assert (report.outcome, report.reason, report.broken) == (outcome, reason, False)
