"""One run from configuration to record: data set, attack, victim, defense, evaluation, record."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from torch import nn

from backdoor_bench import config as configuration
from backdoor_bench import environment, progress, tracking
from backdoor_bench.bench import Bench, Plan, Victim
from backdoor_bench.chance import at_chance, best_constant
from backdoor_bench.dataset import Data, draw_clean
from backdoor_bench.defense import DefenderView, Defense
from backdoor_bench.errors import BenchError, BusyError
from backdoor_bench.metric import Comparison, Evaluator, Measurement, compare
from backdoor_bench.model import addition
from backdoor_bench.store import RECORD_FORMAT, Stored, identity
from backdoor_bench.suspect import given as suspects
from backdoor_bench.suspect.deliver import deliver
from backdoor_bench.suspect.export import check_target


@dataclass(frozen=True)
class Outcome:
    """A run's record, where it lies, and whether it was there before."""

    record: Mapping[str, Any]
    path: str
    found: bool


def run(config: Mapping[str, Any], bench: Bench) -> Outcome:
    """Do one run, or find it done. A failure is recorded with its reason and raised again."""
    return run_plan(bench.plan(config), bench)


def run_plan(plan: Plan, bench: Bench) -> Outcome:
    """The same for a run that is planned already.

    Raises:
        BusyError: another process works on the run or on its victim, and the bench's store does not wait.
    """
    config = plan.config
    if config.get("export") is not None:  # what is there already is an error before any work
        check_target(config["export"], replace=config["force"])
    if (found := _found(plan, bench)) is not None:  # without a lock, for a store that may only be read has none
        return found
    with bench.store.claim(f"run-{plan.key}"):
        if (found := _found(plan, bench)) is not None:  # another process has made it
            return found
        started = time.time()
        facts = describe(plan, started)
        try:
            record = {**facts, "status": "ok", **experiment(plan, bench)}
        except BusyError:
            raise
        except Exception as error:
            expected = isinstance(error, BenchError)
            reason = str(error) if expected else f"{type(error).__name__}: {error}"
            # A sweep's workers print to nobody: where it happened stands in the record alone.
            where = {} if expected else {"traceback": "".join(traceback.format_exception(error))}
            failed = {**facts, "status": "failed", "reason": reason, **where, "seconds": time.time() - started}
            bench.store.add_record(plan.key, failed)
            raise
        record["seconds"] = time.time() - started
        path = bench.store.add_record(plan.key, record)
        return Outcome(record, str(path), False)


def _found(plan: Plan, bench: Bench) -> Outcome | None:
    """The run as it was done before, unless something asks for doing it again."""
    if plan.config["force"] or plan.config.get("export") is not None:
        return None
    done = bench.store.done(plan.key)
    if not done or _lacks_purified(plan, bench):
        return None
    path, record = done[0]
    logs = ", and logs it" if plan.config["logger"].get("_target_") is not None else ""
    progress.say(f"found in the store: run {plan.key} (force=true runs it again{logs})")
    return Outcome(record, str(path), True)


def _lacks_purified(plan: Plan, bench: Bench) -> bool:
    """Whether a purified network is asked for that an earlier attempt did not keep."""
    wanted = plan.config["save_purified"] and plan.config.get("defense") is not None
    return wanted and bench.store.load("purified", plan.key) is None


def experiment(plan: Plan, bench: Bench) -> dict[str, Any]:
    """The way of the data, left to right. Returns what was measured."""
    data = bench.data(plan)
    victim = bench.victim(plan, data)
    evaluator = bench.evaluator(plan, data, victim.trigger)
    measured: dict[str, Any] = {
        "victim_was": _was(plan, victim),
        "victim_seconds": victim.seconds,
        "effective_poisoning_ratio": victim.ratio if victim.trigger is not None else None,
        "weak_attack": victim.measurement.asr is not None and victim.measurement.asr < plan.config["weak_attack_below"],
        "victim_at_chance": _victim_at_chance(plan, victim),
        "before": victim.measurement.fractions,
        "stages": [],
    }
    final, gained = victim.measurement, Comparison()
    if plan.config.get("defense") is not None:
        purified, final = purify(plan, bench, data, victim, evaluator, measured)
        gained = compare(victim.measurement, final)
        if plan.config["save_purified"]:
            measured["purified"] = save_purified(plan, bench, purified, final)
        if plan.config.get("export") is not None:
            measured["exported"] = deliver(plan, data, victim, purified, measured | final.fractions)
    measured |= final.fractions | asdict(gained)
    measured["at_chance"] = at_chance(final.acc, best_constant(plan.manifest.test_counts))
    if final.triggered_as is not None:
        measured["triggered_as"] = {"before": victim.measurement.triggered_as, "after": final.triggered_as}
    measured |= environment.memory(plan.numerics.device)
    tracking.track(plan, {**describe(plan, time.time()), **measured}, data, victim)
    return measured


def _was(plan: Plan, victim: Victim) -> str:
    if plan.given is not None:
        return "given"
    return "trained" if victim.trained_now else "found in the store"


def _victim_at_chance(plan: Plan, victim: Victim) -> bool:
    """Whether the victim is no working classifier; says so before a defense spends time on it."""
    acc, constant = victim.measurement.acc, best_constant(plan.manifest.test_counts)
    found = at_chance(acc, constant)
    if found:
        longer = "Train it longer or at another rate (recipe.epochs=, recipe.optimizer.lr=)."
        progress.say(
            f"WARNING: before any defense the network is right on {acc:.1%} of the clean test images, and answering "
            f"the largest class whatever is shown is on {constant:.1%}. "
            + (longer if plan.given is None else suspects.at_chance_advice(plan.manifest))
        )
    return found


def purify(
    plan: Plan, bench: Bench, data: Data, victim: Victim, evaluator: Evaluator, measured: dict[str, Any]
) -> tuple[nn.Module, Measurement]:
    """Run the defense on a copy of the victim; measure copies of what each stage leaves."""
    defense: Defense = configuration.make(plan.config["defense"])
    view, measured["clean"] = defender_view(plan, data, victim, defense)
    network, last, changed = deepcopy(victim.network), victim.measurement, False
    stages = list(defense.stages)
    for result in defense.run(network, view):
        final = result.name == stages[-1]
        wanted = final or plan.config["measure_stages"]
        changed |= result.changed
        if changed and wanted:
            last, changed = evaluator.measure(deepcopy(result.network)), False
        measured["stages"].append(
            {
                "name": result.name,
                "seconds": result.seconds,
                "changed": result.changed,
                **(last.fractions if wanted else {}),
                "report": dict(result.output.report) if result.output is not None else {},
                **environment.memory(plan.numerics.device),
            }
        )
    return network, last


def defender_view(plan: Plan, data: Data, victim: Victim, defense: Defense) -> tuple[DefenderView, dict[str, Any]]:
    """The defender's images, drawn; and what the record says of the draw."""
    config = plan.config
    draw = draw_clean(
        data.train.labels, plan.regime, plan.manifest.train_sha256, config["repetition"], victim.altered,
        config["clean_from"],
    )  # fmt: skip
    share = config["trainer"]["dataset_memory_share"]
    place = partial(lambda index: data.train[index].to(plan.numerics.device, share))
    train, validation = place(draw.train), place(draw.validation)
    if defense.use_validation == "train":
        train, validation = place(draw.train.new_tensor([*draw.train, *draw.validation])), place(draw.validation[:0])
    view = DefenderView(
        train, validation, data.num_classes, data.augmentation, plan.numerics, config["repetition"],
        clean_ratio=(len(train) + len(validation)) / len(data.train),
        known_trigger=victim.trigger if "trigger" in defense.assumes else None,
        known_target=_target(plan) if "target_label" in defense.assumes else None,
    )  # fmt: skip
    facts = {
        "train": len(train),
        "validation": len(validation),
        "replaced": draw.replaced,
        "from": config["clean_from"] if victim.altered is not None else "all",
    }
    return view, facts


def _target(plan: Plan) -> int | None:
    """The attack's one target label, if it has one."""
    attack = plan.config.get("attack") or {}
    return attack.get("target_label") if attack.get("labels", "all_to_one") == "all_to_one" else None


def save_purified(plan: Plan, bench: Bench, network: nn.Module, final: Measurement) -> str:
    """Keep the purified network, with the modules that stages added; returns its folder."""
    manifest = {
        "victim": plan.victim_key,
        "additions": addition.describe(network),
        "measured": final.describe(),
        "numerics": plan.numerics.describe(),
        "environment": environment.describe(),
    }
    bench.store.replace("purified", plan.key, Stored({"network": network.state_dict()}, manifest))
    return str(bench.store.root / "purified" / plan.key)


def describe(plan: Plan, started: float) -> dict[str, Any]:
    """What a record says before anything is measured."""
    config, attack, defense = plan.config, plan.config.get("attack"), plan.config.get("defense")
    return {
        "format": RECORD_FORMAT,
        "key": plan.key,
        "victim": plan.victim_key,
        **({"given": plan.given.describe()} if plan.given is not None else {}),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "dataset": config["dataset"]["name"],
        "variant": plan.manifest.variant,
        "architecture": plan.architecture,
        "attack": plan.attack,
        "poisoning_ratio": attack["poisoning_ratio"] if attack is not None else None,
        "defense": defense["name"] if defense is not None else None,
        "assumes": list(defense.get("assumes", [])) if defense is not None else [],
        "spc": plan.regime.spc if defense is not None else None,
        "clean_ratio": plan.regime.clean_ratio if defense is not None else None,
        "seed": config["seed"],
        "repetition": config["repetition"],
        "preset": config["preset"]["name"],
        "numerics": plan.numerics.describe(),
        "environment": environment.describe(),
        "versions": identity.versions({name: config.get(name) for name in ("attack", "defense")}),
        "config": config,
    }
