"""What a sweep is going to do: every run of a grid composed, hashed, looked up in the store, and ordered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any

from backdoor_bench.bench import Bench, Plan
from backdoor_bench.errors import BenchError, ConfigError, DataError, IncompatibleError
from backdoor_bench.sweep.compose import Composer
from backdoor_bench.sweep.estimate import Past
from backdoor_bench.sweep.grid import NONE, Grid, Point, meaningful, of_victim
from backdoor_bench.sweep.job import Job
from backdoor_bench.sweep.names import NAMED, Names


@dataclass
class SweepPlan:
    """Everything that is known before a sweep starts.

    Attributes:
        jobs: what is to do, in order; trainings of victims that the grid does not list are among them.
        runs, victims: of the grid, whether they can be done here or not.
        planned: runs of the grid that can be done here, in this shard, among those that are asked for.
        same: points of the grid that are the same run as another one: they differ in words alone.
        elsewhere: runs of other shards.
        unasked: runs that can be done here and are not among the keys that were given.
        strangers: of those keys, the ones that are no runs of this grid.
        done, failed: of the planned ones, those with an ``ok`` record, and those with failed attempts alone.
        train: victims that something is to be done with and that are not in the store.
        extra: jobs that only train a victim and are no run of the grid.
        missing: runs of what does not exist yet, by its name.
        absent: runs of data sets that are not on this machine, by what to do about it.
        impossible: runs that cannot be, by reason.
        seconds: expected of all jobs one after the other, as far as known.
        unknown: jobs of whose kind there is no record.
    """

    jobs: list[Job] = field(default_factory=list)
    runs: int = 0
    victims: int = 0
    planned: int = 0
    same: int = 0
    elsewhere: int = 0
    unasked: int = 0
    strangers: int = 0
    done: int = 0
    failed: int = 0
    train: int = 0
    extra: int = 0
    missing: Counter[str] = field(default_factory=Counter)
    absent: Counter[str] = field(default_factory=Counter)
    impossible: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    unknown: int = 0


@dataclass
class _Victim:
    """The runs of one victim: what they share, and what of them is to do."""

    facts: tuple[str, str | None, str]  # architecture, attack, kind of device
    number: int  # in the grid
    label: str
    runs: dict[str, Job] = field(default_factory=dict)
    trainer: str | None = None


def make_plan(
    grid: Grid, composer: Composer, bench: Bench, *, shard: tuple[int, int] = (1, 1),
    keys: Collection[str] | None = None,
) -> SweepPlan:  # fmt: skip
    """Plan a grid over the bench's store. Nothing is started.

    The jobs of a victim follow one another: its training (the run without a defense), then the cheap before the dear.
    Victims that are in the store come first, then those that most runs wait for.

    Args:
        grid: with the command line's axes and narrowing applied.
        composer: of the command's configuration.
        bench: over the store.
        shard: (number, of how many), from 1. A victim's runs all go to one shard, in turn as the grid names them; the
            same command with another number on another machine does the others.
        keys: plan these runs alone; None: all.

    Raises:
        ConfigError: a misspelt axis or value, or one that a method refuses.
        StoreError: a record of one of the runs was written by a newer version.
    """
    plan, victims = _compose(grid, composer, bench, keys)
    chosen = {key: victim for key, victim in victims.items() if victim.number % shard[1] == shard[0] - 1}
    plan.elsewhere = sum(len(victim.runs) for key, victim in victims.items() if key not in chosen)
    if keys is not None:
        plan.strangers = len(set(keys).difference(*(victim.runs for victim in victims.values())))
    past = Past.read(bench.store, (run for victim in chosen.values() for run in victim.runs))
    waiting = []
    for key, victim in chosen.items():
        plan.planned += len(victim.runs)
        states = [past.states.get(run) for run in victim.runs]
        plan.done, plan.failed = plan.done + states.count("done"), plan.failed + states.count("failed")
        jobs = [job for job in victim.runs.values() if _is_to_do(job, past, bench)]
        if not jobs:
            continue
        there = (bench.store.root / "victims" / key / "manifest.json").is_file()
        if not there:
            plan.train += 1
            jobs = _with_training(jobs, victim, bench, plan)
        jobs = [replace(job, estimate=past.seconds(job.config, *victim.facts)) for job in jobs]
        waiting.append((not there, -len(jobs), _ordered(jobs, there)))
    plan.jobs = [job for *_, jobs in sorted(waiting, key=lambda entry: entry[:2]) for job in jobs]
    plan.seconds = sum(job.estimate or 0.0 for job in plan.jobs)
    plan.unknown = sum(job.estimate is None for job in plan.jobs)
    return plan


def _compose(
    grid: Grid, composer: Composer, bench: Bench, keys: Collection[str] | None
) -> tuple[SweepPlan, dict[str, _Victim]]:
    """Every run that can be done here, by victim."""
    plan, names, varied = SweepPlan(), Names(grid, composer), _varied(grid)
    numbers: dict[str, int] = {}
    victims: dict[str, _Victim] = {}
    for point in grid.points():
        plan.runs += 1
        number = numbers.setdefault(repr(sorted(of_victim(point).items(), key=itemgetter(0))), len(numbers))
        overrides = {**point, **grid.settings_of(point)}
        lacking = names.lacking(overrides)
        if lacking is not None:
            plan.missing[lacking] += 1
            continue
        config = composer.config(overrides)
        try:
            bench.manifest(config)
        except DataError as error:
            plan.absent[str(error)] += 1
            continue
        planned = _plan(config, bench, plan, point)
        if planned is None:
            continue
        if keys is not None and planned.key not in keys:
            plan.unasked += 1
            continue
        facts = (planned.architecture or "", planned.attack, planned.numerics.device.type)
        if planned.victim_key not in victims:
            label = _label(meaningful({**point, "defense": NONE}), varied)
            victims[planned.victim_key] = _Victim(facts, number, label)
        victim = victims[planned.victim_key]
        plan.same += planned.key in victim.runs
        victim.runs.setdefault(planned.key, Job(planned.key, planned.victim_key, config, _label(point, varied)))
        if config.get("defense") is None:
            victim.trainer = planned.key
    plan.victims = len(numbers)
    return plan, victims


def _plan(config: Mapping[str, Any], bench: Bench, plan: SweepPlan, point: Point) -> Plan | None:
    for name in ("seed", "repetition"):
        if not isinstance(config[name], int) or isinstance(config[name], bool):
            raise ConfigError(f"axis {name}: expected whole numbers, got {config[name]!r}")
    try:
        return bench.plan(config)
    except (IncompatibleError, DataError) as error:
        plan.impossible[str(error)] += 1
        return None
    except BenchError as error:
        raise ConfigError(f"{_label(point, list(point))}: {error}") from None


def _is_to_do(job: Job, past: Past, bench: Bench) -> bool:
    if past.states.get(job.key) != "done" or job.config["force"]:
        return True
    wanted = job.config["save_purified"] and job.config.get("defense") is not None
    return bool(wanted) and not (bench.store.root / "purified" / job.key / "manifest.json").is_file()


def _with_training(jobs: list[Job], victim: _Victim, bench: Bench, plan: SweepPlan) -> list[Job]:
    """The jobs of a victim that is not there, all but the one that trains it waiting for that one."""
    if victim.trainer is not None:
        trainer = victim.runs[victim.trainer]  # also where its record is there already, and the victim is not
    else:
        config = {name: value for name, value in jobs[0].config.items() if name != "defense"}
        planned = bench.plan(config)
        trainer = Job(planned.key, planned.victim_key, config, victim.label)
    plan.extra += all(job.key != trainer.key for job in jobs)
    return [trainer, *(replace(job, needs=trainer.key) for job in jobs if job.key != trainer.key)]


def _ordered(jobs: list[Job], there: bool) -> list[Job]:
    first = [] if there else jobs[:1]
    rest = jobs[len(first) :]
    return first + sorted(rest, key=lambda job: float("inf") if job.estimate is None else job.estimate)


def _varied(grid: Grid) -> list[str]:
    """The axes that a label needs: the four that name a run, and whatever else has several values."""
    return [axis for axis, given in grid.axes.items() if axis in NAMED or len(given) > 1]


def _label(point: Point, varied: list[str]) -> str:
    words = []
    for axis in varied:
        if axis not in point:
            continue
        value = point[axis]
        short = axis.split("@")[-1].split(".")[-1].lstrip("+")
        words.append(str(value) if axis in NAMED else f"{short}={value}")
    return " ".join(words)
