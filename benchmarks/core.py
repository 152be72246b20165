"""``make bench``: speed and memory of the core beside a plain loop, measured in one run, the contenders interleaved.

(a) victim training against a textbook loop in fp32; (b) against the same loop, and against a bare one, with our
numerics: what the framework costs; (c) evaluation; (d) one more run in a warm process; (e) peak memory, each contender
in a process of its own. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from backdoor_bench import environment
from backdoor_bench.numerics import Numerics
from benchmarks.loops import EVALUATION, TRAINING, Contender
from benchmarks.setting import Setting, make_setting

FP32, SAME, BARE, OURS = TRAINING
PEAK_STEPS = 3
PROBE_STEPS = (2, 6)
console = Console(highlight=False)


@dataclass(frozen=True)
class Rates:
    """Images per second by contender, one value per round."""

    steps: int
    rounds: Mapping[str, Sequence[float]]

    def middle(self, name: str) -> float:
        return median(self.rounds[name])

    def ratio(self, name: str, base: str) -> float:
        """How much faster ``name`` is, from pairs of the same round, so that a slow minute hits both."""
        return median(a / b for a, b in zip(self.rounds[name], self.rounds[base], strict=True))


def measure(contenders: Mapping[str, Contender], setting: Setting, seconds: float, rounds: int) -> Rates:
    """About ``seconds`` of work, in rounds; each round starts with another contender."""
    names = list(contenders)
    few, more = PROBE_STEPS
    for name in names:  # the first call compiles kernels and starts thread pools
        _time(contenders[name], setting, few)
    # A step, without what a contender does once: on a GPU that would be most of the probe, and the rounds too short.
    short, long = (sum(_time(contenders[name], setting, n)[1] for name in names) for n in PROBE_STEPS)
    step = max((long - short) / (more - few), short / 1000)
    steps = max(2, min(5000, int(seconds / (rounds * step))))
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            images, taken = _time(contenders[name], setting, steps)
            found[name].append(images / taken)
    return Rates(steps, found)


def _time(contender: Contender, setting: Setting, steps: int) -> tuple[int, float]:
    cuda = setting.numerics.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    images = contender(setting, steps)
    if cuda:
        torch.cuda.synchronize()
    return images, time.perf_counter() - started


def peak(name: str, width: int, options: argparse.Namespace) -> dict[str, float]:
    """Peak memory in MiB of a few training steps in a fresh process, without its DataLoader workers.

    The data set and the project's imports are in it for every contender.
    """
    command = [sys.executable, "-m", "benchmarks.core", "--peak", name, "--widths", str(width)]
    passed = ["--device", options.device, "--data-dir", str(options.data_dir), "--workers", str(options.workers)]
    done = subprocess.run([*command, *passed], capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def report_peak(name: str, setting: Setting) -> None:
    """The child's side of :func:`peak`."""
    TRAINING[name](setting, PEAK_STEPS)
    found = {"process_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if setting.numerics.device.type == "cuda":
        found["cuda_mib"] = torch.cuda.max_memory_allocated() / 2**20
    print(json.dumps(found))


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    numerics = Numerics.resolve(options.device)
    setting = make_setting(options.data_dir, options.widths[0], numerics, options.workers)
    if options.peak:
        return report_peak(options.peak, setting)
    machine, load = environment.describe(), os.getloadavg()[0]
    place = machine["gpu"] if numerics.device.type == "cuda" else machine["processor"]
    console.print(
        f"{place}, {machine['cores']} cores, {machine['threads']} threads, torch {machine['torch']}; ours: "
        f"{numerics.precision}{', channels_last' if numerics.channels_last else ''}\n{setting.data.manifest.variant}, "
        f"batches of {setting.recipe.batch_size} (evaluation {setting.eval_batch_size}), {options.workers} DataLoader "
        f"workers, {options.rounds} rounds, medians",
        soft_wrap=True,
    )
    if load > 0.5:
        console.print(f"load {load:.1f} before the start: figures from a busy machine mean little", style="yellow")
    results: dict[str, Any] = {
        "machine": machine,
        "load": load,
        "numerics": numerics.describe(),
        "data": setting.data.manifest.variant,
        "rounds": options.rounds,
        "workers": options.workers,
        "widths": {},
    }
    for width in options.widths:
        results["widths"][width] = bench_width(replace(setting, width=width), options)
    from benchmarks.warm import one_more_run  # late: the children of peak() need none of it

    with tempfile.TemporaryDirectory() as store:
        results["one_more_run"] = warm = one_more_run(Path(store))
    console.print(
        f"(d) one more run in a warm process (digits, ft): {warm['fixed']:.3f} s besides the defense's own "
        f"{warm['defense']:.3f} s; {warm['evaluation']:.3f} s of it is the measuring [target: 0.3 s at most]",
        markup=False,
        soft_wrap=True,
    )
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")
        console.print(f"written: {options.out}")


def bench_width(setting: Setting, options: argparse.Namespace) -> dict[str, Any]:
    """(a), (b), (c) and (e) for one width, printed and returned."""
    training = measure(TRAINING, setting, options.seconds, options.rounds)
    evaluation = measure(EVALUATION, setting, options.seconds / 4, options.rounds)
    memory = {name: peak(name, setting.width, options) for name in (FP32, OURS)}
    table = Table(title=f"width {setting.width}", title_justify="left", title_style="bold")
    table.add_column("")
    for column in ("images/s", "lowest", "highest", "times", "MiB"):
        table.add_column(column, justify="right")
    for kind, rates in (("train", training), ("evaluate", evaluation)):
        for name, values in rates.rounds.items():
            mib = memory.get(name, {}) if kind == "train" else {}
            table.add_row(f"{kind}: {name}", *(f"{v:,.0f}" for v in (rates.middle(name), min(values), max(values))),
                          f"{rates.ratio(name, FP32):.2f}", " + ".join(f"{v:,.0f}" for v in mib.values()))  # fmt: skip
        table.add_section()
    console.print(table)
    cost = {name: training.ratio(name, OURS) - 1 for name in (SAME, BARE)}
    console.print(
        f"(a) {training.ratio(OURS, FP32):.2f} times the plain fp32 loop   (b) framework: {100 * cost[SAME]:+.1f} % "
        f"against the same loop with our numerics, {100 * cost[BARE]:+.1f} % against the bare one "
        f"[target: 5 % at most]; {training.steps} training steps per round",
        markup=False,
        soft_wrap=True,
    )
    return {
        "steps_per_round": training.steps,
        "training": dict(training.rounds),
        "evaluation": dict(evaluation.rounds),
        "speedup_over_fp32": training.ratio(OURS, FP32),
        "framework_cost": cost,
        "peak_memory": memory,
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.core", description="Speed and memory of the core.")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("BACKDOOR_BENCH_DATA", "data")))
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=60, help="of training per width, all contenders together")
    parser.add_argument("--workers", type=int, default=min(8, (os.cpu_count() or 1) // 2) if torch.cuda.is_available()
                        else 0, help="DataLoader processes of the plain loops")  # fmt: skip
    parser.add_argument("--peak", choices=TRAINING, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
