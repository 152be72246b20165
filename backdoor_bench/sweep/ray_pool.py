"""Workers on Ray: one warm process per device, of this machine or of a cluster, topped up as they are lost."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from backdoor_bench import progress
from backdoor_bench.errors import BenchError, ConfigError, root_cause
from backdoor_bench.sweep.job import Job, Report
from backdoor_bench.sweep.pool import Done, Event, Lost, Ready
from backdoor_bench.sweep.worker import MakeWork, attempt

OBJECT_STORE_BYTES = 100 * 2**20  # jobs and reports are kilobytes
SECONDS_BETWEEN_COUNTS = 3.0
SECONDS_UNTIL_WORRY = 60.0
SECONDS_TO_ANSWER = 10.0
FAILED_STARTS = 3


class Worker:
    """Lives in a process of its own, on one device. Nothing heavy is imported before :meth:`prepare`."""

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


@dataclass
class _Actor:
    handle: Any
    name: str = ""
    node: str = ""
    born: float = field(default_factory=time.monotonic)


def connect(
    make_work: MakeWork, workers: int | None, gpus_per_worker: float, address: str | None = None
) -> RayPool | None:
    """Start Ray on this machine, or join the cluster at ``address`` (or at ``RAY_ADDRESS``).

    Returns None where one worker is all there is to have, which needs no Ray.

    Raises:
        ConfigError: nothing answers at the address, or there is no GPU for a worker that was asked for.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    cores, gpus = len(os.sched_getaffinity(0)), _local_gpus() if gpus_per_worker else 0
    if gpus == 0 and address is None:
        gpus_per_worker = 0.0
    if address is None and workers is None and (cores if gpus == 0 else int(gpus / gpus_per_worker)) == 1:
        return None
    started = not ray.is_initialized()
    if started:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address is None:
            options |= {"address": "local", "num_cpus": max(cores, workers or 1), "include_dashboard": False,
                        "object_store_memory": OBJECT_STORE_BYTES}  # fmt: skip
        else:
            options |= {"address": address}
        try:
            if address is not None:
                _knock(address)
            ray.init(**options)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"no Ray cluster answers at address={address} ({_first_line(error)}); start one with "
                "'ray start --head' there and 'ray start --address=HOST:6379' on the other machines, or leave the "
                "address out: Ray is then started on this machine"
            ) from None
    if gpus_per_worker and not ray.cluster_resources().get("GPU"):
        gpus_per_worker = 0.0
    return RayPool(make_work, workers, gpus_per_worker, stop_ray=started)


class RayPool:
    """As many workers as there are devices, or as many as were asked for.

    Args:
        make_work: called in each worker.
        workers: how many at most; None: one per device share, or one per core where there are no GPUs.
        gpus_per_worker: share of a GPU that each has; 0: they compute on CPUs, each with its share of the cores.
        stop_ray: whether to leave Ray at the end (and stop it, if it was started here).
    """

    def __init__(
        self, make_work: MakeWork, workers: int | None, gpus_per_worker: float = 0.0, stop_ray: bool = False
    ) -> None:
        self._make_work = make_work
        self._workers = workers
        self._gpus = gpus_per_worker
        self._stop_ray = stop_ray
        self._starting: dict[Any, _Actor] = {}
        self._running: dict[Any, str] = {}
        self._actors: dict[str, _Actor] = {}
        self._numbers = count()
        self._failed_starts = 0
        self._counted = -SECONDS_BETWEEN_COUNTS
        self._alone_since = time.monotonic()
        self._worried = False
        # Ray pickles a class of an installed package by name: every node needs the package, none the driver's files.
        self._kind = ray.remote(Worker)

    def start(self, worker: str, job: Job) -> None:
        self._running[self._actors[worker].handle.run.remote(job)] = worker

    def release(self, workers: Iterable[str]) -> None:
        handles = [self._actors[worker].handle for worker in workers if worker in self._actors]
        with suppress(RayError):
            ray.get([handle.release.remote() for handle in handles], timeout=60)

    def wait(self, timeout: float) -> Sequence[Event]:
        self._top_up()
        waiting = [*self._running, *self._starting]
        if not waiting:
            time.sleep(timeout)
            return []
        done, _ = ray.wait(waiting, num_returns=1, timeout=timeout)
        if len(waiting) > 1 and done:  # the others that are ready by now, too
            done, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        return [event for ref in done for event in self._event(ref)]

    def close(self, abandon: bool) -> None:
        for actor in [*self._actors.values(), *self._starting.values()]:
            with suppress(RayError):
                ray.kill(actor.handle)
        self._actors.clear()
        if self._stop_ray:
            ray.shutdown()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _event(self, ref: Any) -> list[Event]:
        if ref in self._starting:
            return self._started(ref)
        worker = self._running.pop(ref)
        try:
            report: Report = ray.get(ref)
        except RayTaskError as error:  # not the job's: what it raises becomes a report
            report = Report("failed", _first_line(root_cause(error)))
        except RayError as error:
            node = self._bury(worker).node
            return [Lost(worker, _loss(error, node))]
        if report.broken:
            self._bury(worker)
            return [Done(worker, report), Lost(worker, "its CUDA context broke")]
        return [Done(worker, report)]

    def _started(self, ref: Any) -> list[Event]:
        actor = self._starting.pop(ref)
        try:
            host, actor.node, gpu = ray.get(ref)
        except RayError as error:
            with suppress(RayError):
                ray.kill(actor.handle)
            self._failed_starts += 1
            cause = root_cause(error.cause if isinstance(error, RayTaskError) else error)
            if isinstance(cause, BenchError) and not self._actors:  # the user's to mend: no use in trying again
                raise cause from None
            if self._failed_starts >= FAILED_STARTS and not self._actors:
                raise BenchError(f"no worker starts; the last one said: {_first_line(cause)}") from None
            return []
        self._failed_starts = 0
        number = next(self._numbers)
        elsewhere = "" if host == socket.gethostname() else f"{host} "
        # The number keeps names apart where several share a GPU, or simulated nodes a host.
        actor.name = f"{elsewhere}cuda:{gpu} #{number}" if gpu else f"{elsewhere}cpu #{number}"
        self._actors[actor.name] = actor
        return [Ready(actor.name, f"{actor.node} {gpu}" if gpu else actor.name)]

    def _bury(self, worker: str) -> _Actor:
        actor = self._actors.pop(worker)
        with suppress(RayError):  # one that is only unreachable must not go on with what another one repeats
            ray.kill(actor.handle)
        self._counted = -SECONDS_BETWEEN_COUNTS
        return actor

    def _top_up(self) -> None:
        """Start workers for devices that have none: at the beginning, after a loss, and when a node joins."""
        now = time.monotonic()
        if self._actors:
            self._alone_since = now
        elif now - self._alone_since > SECONDS_UNTIL_WORRY and not self._worried:
            self._worried = True
            progress.say("no worker has started for a minute; waiting for devices (see: ray status)")
        if now - self._counted < SECONDS_BETWEEN_COUNTS:
            return
        self._counted = now
        wanted = self._wanted()
        for ref, actor in list(self._starting.items()):
            if len(self._actors) + len(self._starting) <= wanted:
                break
            del self._starting[ref]  # its node is gone: it would wait for ever
            ray.kill(actor.handle)
        while len(self._actors) + len(self._starting) < wanted and self._failed_starts < FAILED_STARTS:
            actor = self._spawn()
            self._starting[actor.handle.prepare.remote()] = actor

    def _wanted(self) -> int:
        """One worker per share of a GPU that is in the cluster now, or as many as were asked for."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if self._gpus:
            most = sum(int(node.get("GPU", 0) / self._gpus + 1e-6) for node in nodes)
            return most if self._workers is None else min(most, self._workers)
        return self._workers or sum(int(node.get("CPU", 0)) for node in nodes)

    def _spawn(self) -> _Actor:
        threads = self._threads()
        resources = {"num_gpus": self._gpus, "num_cpus": 0} if self._gpus else {"num_cpus": 1}
        options = {**resources, "max_restarts": 0, "max_task_retries": 0}
        return _Actor(self._kind.options(**options).remote(self._make_work, threads, str(Path.cwd())))

    def _threads(self) -> int | None:
        """A worker's share of the cores. On GPUs the cluster's cores are shared by its GPUs."""
        resources = ray.cluster_resources()
        cores = resources.get("CPU", 1)
        if self._gpus:
            return max(1, int(cores * self._gpus / resources.get("GPU", 1)))
        return max(1, int(cores // (self._workers or cores)))


def _knock(address: str) -> None:
    """Raise OSError at once if nobody listens at ``host:port``; Ray itself tries for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "//" not in host:
        socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_ANSWER).close()


def _local_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _loss(error: RayError, node: str) -> str:
    """Why a worker is gone, in a few words; Ray itself takes a paragraph."""
    if not isinstance(error, RayActorError):
        return _first_line(error)
    alive = any(known["Alive"] for known in ray.nodes() if known["NodeID"] == node)
    return "its process died: killed, or the machine is short of memory" if alive else "its node is gone"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
