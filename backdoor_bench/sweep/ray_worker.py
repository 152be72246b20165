"""The process that Ray starts on a device: it takes one job at a time and keeps what jobs share."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

import ray

from backdoor_bench.sweep.job import Job, Report
from backdoor_bench.sweep.worker import MakeWork, attempt


class Worker:
    """Nothing heavy is imported before :meth:`prepare`."""

    def __init__(self, make_work: MakeWork, threads: int | None, folder: str) -> None:
        if threads is not None:  # before torch: it reads them once
            for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
                os.environ[name] = str(threads)
        with suppress(OSError):  # relative paths mean what they mean where the sweep was started
            os.chdir(folder)
        self._make_work = make_work

    def prepare(self) -> tuple[str, str, str]:
        """Import and build what jobs need. Returns host, node and device (empty: the CPU)."""
        self._work = self._make_work()
        context = ray.get_runtime_context()
        return socket.gethostname(), context.get_node_id(), ",".join(context.get_accelerator_ids().get("GPU", ()))

    def run(self, job: Job) -> Report:
        return attempt(self._work, job)

    def release(self) -> None:
        self._work.release()
