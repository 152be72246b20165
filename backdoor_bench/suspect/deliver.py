"""``export=``: a run's purified network and its model card, written for whoever uses it next."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from backdoor_bench import progress
from backdoor_bench.dataset import Data
from backdoor_bench.model import addition, start
from backdoor_bench.model.base import IDENTITY, Normalize
from backdoor_bench.suspect import export
from backdoor_bench.suspect.card import Accuracy, Card, machine

if TYPE_CHECKING:
    from backdoor_bench.bench import Plan, Victim


def deliver(plan: Plan, data: Data, victim: Victim, network: nn.Module, measured: Mapping[str, Any]) -> str:
    """Write the purified network to ``export=`` with the interface that it came with; returns the path.

    A given network takes what it took before: normalised inputs, if ``mean`` and ``std`` were given. Its weights carry
    the file's names and types, except where modules were added, which belong to the architecture as it is here.
    """
    target = export.check_target(plan.config["export"], replace=True)
    taken = plan.numerics.images(data.test.images[:2])
    node = start.constructor(plan.config["model"])
    network = deepcopy(network)
    if plan.given is not None:
        taken = network.get_submodule("normalize")(taken)
        network.set_submodule("normalize", Normalize(*IDENTITY).to(taken.device))
        node |= {"mean": list(IDENTITY[0]), "std": list(IDENTITY[1])}
    names, dtypes = (victim.origin.names, victim.origin.dtypes) if victim.origin is not None else (None, None)
    card = _card(plan, target, measured, bool(names) and not addition.describe(network)).markdown()
    export.write(network, target, card, taken, names, dtypes, {**node, "num_classes": data.num_classes})
    return str(target)


def _card(plan: Plan, target: Path, measured: Mapping[str, Any], own_names: bool) -> Card:
    before, config = measured["before"], plan.config
    attack = {}
    if measured["asr"] is not None:
        attack = {name.upper(): (before[name], measured[name]) for name in ("asr", "ra")}
    remarks = []
    if measured["victim_at_chance"]:
        remarks.append("**The accuracy before was at chance**: normalisation or class order may be wrong.")
    accuracy = Accuracy(
        f"held-out clean test images of {plan.manifest.variant}", sum(plan.manifest.test_counts),
        before["acc"], measured["acc"],
    )  # fmt: skip
    if accuracy.warning:
        progress.say(f"WARNING: {accuracy.warning}")
    return Card(
        target.name, config["defense"]["name"], _facts(plan, measured), measured["stages"], accuracy,
        _usage(target, own_names), attack, remarks,
    )  # fmt: skip


def _facts(plan: Plan, measured: Mapping[str, Any]) -> list[tuple[str, str]]:
    config, clean, given = plan.config, measured["clean"], plan.given
    if given is not None:
        came = f"`{given.path.name}`, sha256 `{given.sha256}`"
        stated = config.get("mean") is not None or config.get("std") is not None
        takes = (
            f"mean {config.get('mean')}, std {config.get('std')}: it takes images normalised with these, as before"
            if stated
            else "none: it takes pixels in [0, 1]"
        )
    else:
        came = f"victim `{plan.victim_key}` of {plan.attack or 'no attack'}, seed {config['seed']}"
        mean, std = (config["model"][name] for name in ("mean", "std"))
        takes = f"inside the network (mean {mean}, std {std}): it takes pixels in [0, 1]"
    facts = [
        ("network", f"{plan.architecture}, {plan.manifest.num_classes} classes, {came}"),
        ("input normalisation", takes),
        ("images", f"{plan.manifest.variant}; {clean['train']} clean ones to train, {clean['validation']} to validate"),
        ("repetition", str(config["repetition"])),
        ("run", f"`{plan.key}`"),
        *machine(str(plan.numerics.device)),
    ]
    if plan.attack is not None:
        facts.insert(1, ("trigger", f"{plan.attack}" + (f" of victim `{given.trigger}`" if given is not None else "")))
    return facts


def _usage(target: Path, own_names: bool) -> str:
    name = repr(target.name)
    if target.suffix == ".ts":
        lines = "import torch\n\nnetwork = torch.jit.load({})"
    elif target.suffix == ".pt2":
        lines = "import torch\n\nnetwork = torch.export.load({}).module()"
    elif own_names:
        lines = "from safetensors.torch import load_file\n\nnetwork.load_state_dict(load_file({}))  # as before"
    else:
        lines = "import backdoor_bench\n\nnetwork = backdoor_bench.load_purified({})"
    return f"```python\n{lines.format(name)}\n```"
