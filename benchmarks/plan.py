"""``python -m benchmarks.plan``: how long a plan of 120,000 runs takes, and how much memory.

The survey's grid with the methods that exist here, its repetitions stretched until it has so many runs; composed,
hashed, looked up in a store that holds records of a share of them, ordered and estimated. A data set that is not on
this machine is stood in for by a manifest of its published size: a plan reads nothing else of it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from rich.console import Console

from backdoor_bench import config as configuration
from backdoor_bench.bench import Bench
from backdoor_bench.dataset import Manifest
from backdoor_bench.errors import DataError
from backdoor_bench.store import RECORD_FORMAT, Store
from backdoor_bench.sweep.compose import Composer
from backdoor_bench.sweep.grid import NONE, Grid
from backdoor_bench.sweep.plan import SweepPlan, make_plan

SIZES = {"cifar10": (10, 5000), "gtsrb": (43, 911), "tiny_imagenet": (200, 500)}  # classes, images of each
TARGETS = {"seconds": 120.0, "mib": 2048.0}
console = Console(highlight=False)


class Anywhere(Bench):
    """A bench that plans with stand-ins for the data sets that are not here."""

    def manifest(self, config: Mapping[str, Any]) -> Manifest:
        try:
            return super().manifest(config)
        except DataError:
            name = config["dataset"]["name"]
            classes, images = SIZES[name]
            counts, size = (images,) * classes, (64, 64) if name == "tiny_imagenet" else (32, 32)
            names = tuple(map(str, range(classes)))
            return Manifest(name, "a stand-in", names, size, counts, counts, f"train of {name}", f"test of {name}")


def survey(composer: Composer, runs: int) -> Grid:
    """The survey's grid of methods that exist, with as many repetitions as make ``runs`` runs."""
    path = configuration.directory("multirun_sweeps") / "sweep" / "survey.yaml"
    axes: dict[str, Any] = dict(OmegaConf.to_container(OmegaConf.load(path).hydra.sweeper.axes))  # type: ignore[arg-type]
    for group in ("attack", "defense"):
        axes[group] = [name for name in axes[group] if name == NONE or name in composer.options(group)]
    # Two of the survey's attacks and ten of its defenses would be a small grid: the others that exist join them.
    axes["defense"] += [name for name in composer.options("defense") if name not in axes["defense"]]
    defended = sum(point["defense"] != NONE for point in Grid.read({**axes, "repetition": [0]}).points())
    return Grid.read({**axes, "repetition": f"range({math.ceil(runs / defended)})"})


def plan(store: Path, runs: int, data_dir: Path) -> tuple[SweepPlan, dict[str, float]]:
    """The plan, and what it cost: wall and processor seconds, peak memory, how often Hydra composed."""
    started, worked = time.perf_counter(), time.process_time()
    with initialize_config_dir(str(configuration.directory()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
    composer = Composer(loader, ["device=cpu", "trainer.precision=32-true", f"data_dir={data_dir}"])
    found = make_plan(survey(composer, runs), composer, Anywhere(Store(store)))
    cost = {
        "seconds": time.perf_counter() - started,
        "processor_seconds": time.process_time() - worked,
        "process_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "composed": composer.composed,
    }
    return found, cost


def fill(store: Path, found: SweepPlan, share: float) -> int:
    """Records of a share of the planned runs, as large as real ones."""
    keep = Store(store)
    chosen = found.jobs[:: max(1, round(1 / share))] if share else []
    for job in chosen:
        record = {
            "format": RECORD_FORMAT, "status": "ok", "key": job.key, "victim": job.victim, "config": job.config,
            "architecture": "preact_resnet18", "attack": None, "numerics": {"device": "cpu"}, "victim_was": "trained",
            "victim_seconds": 100.0, "seconds": 110.0,
        }  # fmt: skip
        keep.add_record(job.key, record)
    return len(chosen)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan", description="Time and memory of a large plan.")
    parser.add_argument("--runs", type=int, default=120_000)
    parser.add_argument("--done", type=float, default=0.1, help="share of the runs that have a record already")
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("BACKDOOR_BENCH_DATA", "data")).resolve())
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        if options.done:  # in another process: its memory is not the plan's
            child = os.fork()
            if not child:
                fill(Path(folder), plan(Path(folder), options.runs, options.data_dir)[0], options.done)
                os._exit(0)
            if os.waitpid(child, 0)[1]:
                raise RuntimeError("the records could not be made")
        found, cost = plan(Path(folder), options.runs, options.data_dir)
    console.print(
        f"{found.planned:,} runs over {found.victims:,} victims ({found.done:,} done), {cost['composed']:.0f} times "
        f"composed by Hydra: {cost['seconds']:.1f} s ({cost['processor_seconds']:.1f} s of a processor), peak "
        f"{cost['process_mib']:,.0f} MiB; load {load:.1f} before the start\n[targets: {TARGETS['seconds']:.0f} s, "
        f"{TARGETS['mib']:,.0f} MiB]",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    if options.out:
        figures = {"runs": found.planned, "done": found.done, "load": load, **cost}
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
