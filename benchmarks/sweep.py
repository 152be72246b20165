"""``python -m benchmarks.sweep``: what a sweep costs beside its arithmetic, on Ray, timed from all workers ready.

(a) a simulated cluster whose runs only sleep, one node removed on the way; (b) dispatch: runs that do nothing; (c)
arithmetic in one-thread workers, one per core; (d) one more run of the benchmark in a warm process. (a) sleeps and (b)
to (d) compute: nothing else should run on the machine meanwhile, or their figures are those of a busy one.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from backdoor_bench.sweep import engine
from backdoor_bench.sweep.job import Job, Report, Result
from backdoor_bench.sweep.pool import Event, Pool, Ready
from backdoor_bench.sweep.worker import MakeWork

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
console = Console(highlight=False)
GPUS_PER_NODE = 2
SIZE = 192
REFERENCE_PRODUCTS = 50


class Sleeping:
    """Sleeps, and leaves a line per job that it ended. No torch."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def __call__(self, job: Job) -> Report:
        started = time.monotonic()
        time.sleep(job.config["seconds"])
        descriptor = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, f"{job.key}\n".encode())
        os.close(descriptor)
        return Report("ok", seconds=time.monotonic() - started)

    def release(self) -> None:
        """Keeps nothing."""

    def give_up(self, job: Job, reason: str) -> None:
        """Records nothing."""


class Multiplying(Sleeping):
    """Multiplies matrices in one thread, ``job.config["products"]`` times."""

    def __init__(self, log: Path) -> None:
        import torch

        super().__init__(log)
        torch.set_num_threads(1)
        self._matrix = torch.rand(SIZE, SIZE) / SIZE
        self.seconds(REFERENCE_PRODUCTS)

    def __call__(self, job: Job) -> Report:
        return Report("ok", seconds=self.seconds(job.config["products"]))

    def seconds(self, products: int) -> float:
        """That so many products take."""
        started = time.perf_counter()
        result = self._matrix
        for _ in range(products):
            result = self._matrix @ result
        return time.perf_counter() - started


class Prepared:
    """A pool all of whose workers are ready before the clock starts."""

    def __init__(self, pool: Pool, workers: int) -> None:
        self._pool = pool
        self._events: list[Event] = []
        while sum(isinstance(event, Ready) for event in self._events) < workers:
            self._events += pool.wait(1.0)
        self.start, self.release, self.kill, self.close = pool.start, pool.release, pool.kill, pool.close

    def wait(self, timeout: float) -> Sequence[Event]:
        events, self._events = self._events, []
        return events or self._pool.wait(timeout)


def timed(
    jobs: Sequence[Job], folder: Path, work: MakeWork, workers: int, gpus: float,
    on_result: Callable[[Job, Result], None] | None = None,
) -> float:  # fmt: skip
    """Seconds of a sweep over a Ray that is running, from all workers ready to the last result."""
    from backdoor_bench.sweep.ray_pool import RayPool

    pool = Prepared(RayPool(work, workers, gpus), workers)
    started = time.monotonic()
    ended = [started]

    def note(job: Job, result: Result) -> None:
        ended[0] = time.monotonic()
        if on_result is not None:
            on_result(job, result)

    summary = engine.run(jobs, folder, pool=pool, make_work=work, on_result=note)
    if summary.counts["ok"] != len(jobs):
        raise RuntimeError(f"expected {len(jobs)} runs to end well, got {dict(summary.counts)}")
    return ended[0] - started


def cluster(nodes: int, runs: int, seconds: float) -> dict[str, Any]:
    """Sleeping runs on logical GPUs of several nodes of which one is removed after a third of them."""
    import ray
    from ray.cluster_utils import Cluster

    folder = Path(tempfile.mkdtemp(prefix="benchmark_sweep_"))
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0, "include_dashboard": False})
    removable = [made.add_node(num_cpus=1, num_gpus=GPUS_PER_NODE) for _ in range(nodes)][-1]
    ray.init(address=made.address, log_to_driver=False, logging_level=logging.ERROR)
    removed: list[float] = []
    finished, attempts = Counter[str](), Counter[str]()

    def remove() -> None:
        removed.append(time.monotonic())
        made.remove_node(removable, allow_graceful=False)

    def note(job: Job, result: Result) -> None:
        finished[job.key] += 1
        attempts[job.key] = result.attempts
        if sum(finished.values()) == runs // 3:
            threading.Thread(target=remove).start()  # at once, whatever the driver does meanwhile

    try:
        jobs = [Job(f"{n}", f"victim {n // 10}", {"seconds": seconds}, f"sleep {n}") for n in range(runs)]
        started = time.monotonic()
        wall = timed(jobs, folder, partial(Sleeping, folder / "log"), nodes * GPUS_PER_NODE, 1.0, note)
        first = time.monotonic() - wall
    finally:
        ray.shutdown()
        made.shutdown()
    before, after = nodes * GPUS_PER_NODE, (nodes - 1) * GPUS_PER_NODE
    alone = removed[0] - first  # seconds with all devices
    ideal = alone + max(0.0, runs * seconds - before * alone) / after
    ended = Counter((folder / "log").read_text().split())
    return {
        "devices": before, "runs": runs, "seconds_per_run": seconds, "wall": wall, "ideal": ideal,
        "efficiency": ideal / wall, "removed_after": alone, "until_ready": first - started,
        "lost": sum(not finished[job.key] for job in jobs), "doubled": sum(count > 1 for count in ended.values()),
        "started_again": sum(count > 1 for count in attempts.values()),
    }  # fmt: skip


def dispatch(runs: int, workers: int) -> dict[str, Any]:
    """Seconds per run that does nothing: what giving it to a worker and hearing of it costs."""
    folder = Path(tempfile.mkdtemp(prefix="benchmark_sweep_"))
    with local_ray(workers):
        jobs = [Job(f"{n}", f"victim {n // 10}", {"seconds": 0.0, "filling": "x" * 8000}, "") for n in range(runs)]
        wall = timed(jobs, folder, partial(Sleeping, folder / "log"), workers, 0.0)
    return {"runs": runs, "seconds_per_run": wall / runs}


def arithmetic(runs: int, seconds: float, workers: int) -> dict[str, Any]:
    """Throughput of one-thread arithmetic against one worker that has the machine for itself."""
    folder = Path(tempfile.mkdtemp(prefix="benchmark_sweep_"))
    alone = Multiplying(folder / "log")
    products = max(1, round(REFERENCE_PRODUCTS * seconds / alone.seconds(REFERENCE_PRODUCTS)))
    one = sorted(alone.seconds(products) for _ in range(5))[2]
    spent: list[float] = []
    with local_ray(workers):
        jobs = [Job(f"{n}", f"victim {n // 10}", {"products": products}, "") for n in range(runs)]
        wall = timed(jobs, folder, partial(Multiplying, folder / "log"), workers, 0.0,
                     lambda job, result: spent.append(result.seconds))  # fmt: skip
    return {
        "runs": runs, "workers": workers, "seconds_per_run_alone": one, "seconds_per_run": sum(spent) / runs,
        "wall": wall, "of_ideal": runs * one / workers / wall, "busy": sum(spent) / workers / wall,
    }  # fmt: skip


@contextmanager
def local_ray(workers: int) -> Iterator[None]:
    """A Ray of this machine for the block."""
    import ray

    ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False,
             logging_level=logging.ERROR, object_store_memory=100 * 2**20)  # fmt: skip
    try:
        yield
    finally:
        ray.shutdown()


def warm(runs: int) -> dict[str, float]:
    """Seconds of one more run with ``clp`` on digits, in a process that has data and victim.

    ``overhead`` is what remains without the defense's stages and the measuring; ``overhead_cpu`` the same in seconds of
    the processor, which a busy machine distorts less.
    """
    import hydra
    import torch

    from backdoor_bench import config, experiment
    from backdoor_bench.bench import Bench
    from backdoor_bench.metric import Evaluator
    from backdoor_bench.store import Store

    torch.set_num_threads(1)
    folder = tempfile.mkdtemp(prefix="benchmark_sweep_")
    small = (f"store_dir={folder}", "recipe.epochs=1", "+attack=badnet", "+defense=clp")
    with hydra.initialize_config_dir(str(config.directory()), version_base="1.3"):
        configs = [config.plain(hydra.compose("config", [*small, f"repetition={n}"])) for n in range(runs + 2)]
    bench, measuring = Bench(Store(folder)), [0.0, 0.0]
    original = Evaluator.measure

    def measure(self: Evaluator, network: torch.nn.Module) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            return original(self, network)
        finally:
            measuring[0] += time.perf_counter() - wall
            measuring[1] += time.process_time() - cpu

    Evaluator.measure = measure  # type: ignore[method-assign]
    try:
        for one in configs[:2]:
            experiment.run(one, bench)
        measuring[:] = [0.0, 0.0]
        wall, cpu = time.perf_counter(), time.process_time()
        records = [experiment.run(one, bench).record for one in configs[2:]]
        wall, cpu = (time.perf_counter() - wall) / runs, (time.process_time() - cpu) / runs
    finally:
        Evaluator.measure = original  # type: ignore[method-assign]
    stages = sum(stage["seconds"] for record in records for stage in record["stages"]) / runs
    return {
        "runs": runs, "wall": wall, "evaluation": measuring[0] / runs, "stages": stages,
        "overhead": wall - measuring[0] / runs - stages, "cpu": cpu, "overhead_cpu": cpu - measuring[1] / runs - stages,
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parts: dict[str, Callable[[bool], dict[str, Any]]] = {
        "cluster": lambda quick: cluster(2, 40, 0.3) if quick else cluster(4, 400, 1.0),
        "dispatch": lambda quick: dispatch(100 if quick else 2000, 2),
        "arithmetic": lambda quick: arithmetic(20 if quick else 100, 0.5, os.cpu_count() or 1),
        "warm": lambda quick: warm(5 if quick else 40),
    }
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description="What a sweep costs.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)}; none: all")
    parser.add_argument("--quick", action="store_true", help="a minute in all, for CI")
    parser.add_argument("--out", type=Path, help="add the figures to this JSON file")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(parts):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    found = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    for name in options.parts or parts:
        load = os.getloadavg()[0]
        found[name] = parts[name](options.quick) | {"load_before": round(load, 2), "cores": os.cpu_count()}
        console.print(f"{name}: " + ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
                                              for k, v in found[name].items()))  # fmt: skip
        if options.out:
            options.out.write_text(json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    main()
