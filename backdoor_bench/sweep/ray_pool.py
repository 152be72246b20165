"""Workers on Ray: one warm process per device, of this machine or of a cluster, topped up as they are lost."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from backdoor_bench import cores, progress
from backdoor_bench.errors import BenchError, root_cause
from backdoor_bench.sweep import ray_start
from backdoor_bench.sweep.job import Job, Report
from backdoor_bench.sweep.pool import Done, Event, Lost, Ready
from backdoor_bench.sweep.ray_start import first_line
from backdoor_bench.sweep.ray_worker import Worker
from backdoor_bench.sweep.worker import MakeWork

SECONDS_BETWEEN_COUNTS = 3.0
SECONDS_UNTIL_WORRY = 60.0
FAILED_STARTS = 3
SECONDS_UNTIL_NEXT_START = 60.0
RESTARTS = 3


@dataclass
class _Actor:
    handle: Any
    name: str = ""
    node: str = ""


def connect(
    make_work: MakeWork, workers: int | None, gpus_per_worker: float, address: str | None = None
) -> RayPool | None:
    """Start Ray on this machine, or join the cluster at ``address`` (or at ``RAY_ADDRESS``).

    Returns None where one worker is all there is to have, which needs no Ray.

    Raises:
        ConfigError: nothing answers at the address.
        BenchError: Ray does not start on this machine.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    here, gpus = cores.available(), _local_gpus() if gpus_per_worker else 0
    if gpus == 0 and address is None:
        gpus_per_worker = 0.0
    if address is None and workers is None and (here if gpus == 0 else int(gpus / gpus_per_worker)) == 1:
        return None
    started = not ray.is_initialized()
    start = partial(ray_start.start, address, max(here, workers or 1))
    if started:
        start()
    if gpus_per_worker and not ray.cluster_resources().get("GPU"):
        gpus_per_worker = 0.0
    own = started and address is None
    return RayPool(make_work, workers, gpus_per_worker, stop_ray=started, start_ray=start if own else None)


class RayPool:
    """As many workers as there are devices, or as many as were asked for.

    Args:
        make_work: called in each worker.
        workers: how many at most; None: one per device share, or one per core where there are no GPUs.
        gpus_per_worker: share of a GPU that each has; 0: they compute on CPUs, each with its share of the cores.
        stop_ray: whether to leave Ray at the end (and stop it, if it was started here).
        start_ray: starts it once more on this machine, where it may die like a worker; None: others look after it.
    """

    def __init__(
        self, make_work: MakeWork, workers: int | None, gpus_per_worker: float = 0.0, stop_ray: bool = False,
        start_ray: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        self._make_work = make_work
        self._workers = workers
        self._gpus = gpus_per_worker
        self._stop_ray = stop_ray
        self._start_ray = start_ray
        self._restarts = 0
        self._starting: dict[Any, _Actor] = {}
        self._running: dict[Any, str] = {}
        self._actors: dict[str, _Actor] = {}
        self._numbers = count()
        self._failed_starts = 0
        self._failed_at = 0.0
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

    def kill(self, worker: str) -> None:
        self._running = {ref: name for ref, name in self._running.items() if name != worker}
        if worker in self._actors:
            self._bury(worker)

    def wait(self, timeout: float) -> Sequence[Event]:
        lost = self._top_up()
        if lost:
            return lost
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
            report = Report("failed", first_line(root_cause(error)))
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
            self._failed_starts, self._failed_at = self._failed_starts + 1, time.monotonic()
            cause = root_cause(error.cause if isinstance(error, RayTaskError) else error)
            if isinstance(cause, BenchError) and not self._actors:  # the user's to mend: no use in trying again
                raise cause from None
            if self._failed_starts >= FAILED_STARTS and not self._actors:
                raise BenchError(f"no worker starts; the last one said: {first_line(cause)}") from None
            if self._failed_starts == FAILED_STARTS:
                progress.say(f"no further worker starts ({first_line(cause)}); tried again every minute")
            return []
        self._failed_starts = self._restarts = 0
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

    def _top_up(self) -> list[Event]:
        """Start workers for devices that have none: at the beginning, after a loss, and when a node joins."""
        now = time.monotonic()
        if self._actors:
            self._alone_since = now
        elif now - self._alone_since > SECONDS_UNTIL_WORRY and not self._worried:
            self._worried = True
            progress.say("no worker has started for a minute; waiting for devices (see: ray status)")
        if now - self._counted < SECONDS_BETWEEN_COUNTS:
            return []
        self._counted = now
        nodes = [node for node in ray.nodes() if node["Alive"]]
        if not nodes and not self._running and self._start_ray is not None:
            return self._restart(self._start_ray)
        wanted = self._wanted(node["Resources"] for node in nodes)
        for ref, actor in list(self._starting.items()):
            if len(self._actors) + len(self._starting) <= wanted:
                break
            del self._starting[ref]  # its node is gone: it would wait for ever
            ray.kill(actor.handle)
        if self._failed_starts >= FAILED_STARTS and now - self._failed_at < SECONDS_UNTIL_NEXT_START:
            return []
        while len(self._actors) + len(self._starting) < wanted:
            actor = self._spawn()
            self._starting[actor.handle.prepare.remote()] = actor
        return []

    def _restart(self, start_ray: Callable[[], None]) -> list[Event]:
        """Start Ray again: nobody else would. Its workers have died with it; returns those that had nothing to do."""
        self._restarts += 1
        if self._restarts > RESTARTS:
            raise BenchError(
                "Ray dies on this machine before any worker is ready: it is short of memory, or too busy; "
                "hydra.launcher.workers=1 does one run after the other without it"
            )
        progress.say("Ray has died on this machine, and its workers with it; it is started again")
        idle: list[Event] = [Lost(name, "Ray has died") for name in self._actors]
        self._actors.clear()
        self._starting.clear()
        ray.shutdown()
        start_ray()
        self._kind = ray.remote(Worker)
        self._counted = -SECONDS_BETWEEN_COUNTS
        return idle

    def _wanted(self, nodes: Iterable[Mapping[str, float]]) -> int:
        """One worker per share of a GPU that is in the cluster now, or as many as were asked for."""
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


def _local_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _loss(error: RayError, node: str) -> str:
    """Why a worker is gone, in a few words; Ray itself takes a paragraph."""
    if not isinstance(error, RayActorError):
        return first_line(error)
    alive = any(known["Alive"] for known in ray.nodes() if known["NodeID"] == node)
    return "its process died: killed, or the machine is short of memory" if alive else "its node is gone"
