"""Which defense works on which network, found by running each: ``python -m backdoor_bench.capability --out docs``.

Every cell runs a defense's stages to the end, at the least lengths, with two digits per class, on a network of random
weights (with BatchNorm: after a few steps of training), with a badnet trigger if it assumes one. A cell *works* if
the purified network gives finite logits, and gives the same again when it is stored and built anew; it is *refused* if
the plan of a run says so before anything is trained. What a defense is worth on a network, it does not say.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hydra
import torch
from torch.nn import functional as F

from backdoor_bench import config as configuration
from backdoor_bench import pipe, progress, seeding
from backdoor_bench.bench import Bench, Plan, Victim, make_model
from backdoor_bench.dataset import ImageSet
from backdoor_bench.defense import Defense
from backdoor_bench.errors import BenchError, IncompatibleError, unknown
from backdoor_bench.experiment import defender_view
from backdoor_bench.metric import Measurement
from backdoor_bench.model import Network, addition, anatomy
from backdoor_bench.stage import DefenderView
from backdoor_bench.store import Store

TEMPLATES = {"timm": "timm:convnext_atto", "torchvision": None}
"""Leaves of conf/model that need a name, and one to give them here; None: the others show what they can do."""

COMMON = [
    "dataset=digits", "spc=2", "device=cpu", "trainer.precision=32-true", "+attack=badnet", "preset=default",
]  # fmt: skip
STEPS, BATCH_SIZE, LEARNING_RATE = 20, 16, 1e-4
"""Of the few steps of Adam. At 1e-3 they leave wide_resnet with logits of several hundred, and TSBD's fine-tuning, over
maps of one pixel, with infinite gradients."""
LONGER = {"tsbd_epochs": 5}
"""Least lengths above 1: TSBD zeroes weights, and BatchNorm's statistics take some steps to follow (EfficientNet)."""

LENGTH = re.compile(r"\$\{length:(\w+),\s*(null|\d+)\}")
STATUSES = ("works", "refused", "failed")


@dataclass(frozen=True)
class Cell:
    """One defense on one network.

    Attributes:
        status: ``works``, ``refused`` (by the plan of a run) or ``failed``.
        reason: of what does not work, in one sentence.
    """

    defense: str
    model: str
    status: str
    reason: str | None = None


def leaves(group: str) -> list[str]:
    """The names in a group of ``conf``."""
    return sorted(path.stem for path in (configuration.directory() / group).glob("*.yaml"))


def models() -> list[str]:
    """Every network that ``conf/model`` names, and one for each template."""
    named = [name for name in leaves("model") if name not in TEMPLATES]
    return named + [name for name in TEMPLATES.values() if name is not None]


def least_lengths() -> dict[str, int]:
    """1, or what LONGER says, for every length that a method publishes as a whole number; 2 for images.

    Batch sizes are no lengths, and a count that is published as null has no least value but 1.
    """
    found: dict[str, int] = {}
    for group in ("attack", "stage", "defense"):
        for leaf in leaves(group):
            text = (configuration.directory() / group / f"{leaf}.yaml").read_text()
            found |= {name: 2 if name.endswith("images") else 1 for name, _ in LENGTH.findall(text)}
    return {name: LONGER.get(name, least) for name, least in found.items() if not name.endswith("batch_size")}


def compose(model: str, defense: str, store: Path) -> dict[str, Any]:
    """The configuration of a cell, resolved."""
    template = next((leaf for leaf in TEMPLATES if model.startswith(f"{leaf}:")), None)
    chosen = [f"model={template}", f"model.name={model!r}"] if template else [f"model={model}"]
    lengths = [f"++preset.lengths.{name}={least}" for name, least in least_lengths().items()]
    overrides = [*COMMON, *chosen, *lengths, f"+defense={defense}", f"store_dir={store}"]
    with hydra.initialize_config_dir(str(configuration.directory()), version_base="1.3"):
        config = hydra.compose("config", overrides)
    if "pretrained" in config.model:
        config.model.pretrained = False
    return configuration.plain(config)


def suspect(plan: Plan, data: ImageSet) -> Network:
    """A network to purify, in eval mode: random weights, and where it has BatchNorm, a few steps of training.

    Through many BatchNorms of random weights gradients grow beyond bounds, and a defense that is not at fault diverges.
    """
    with seeding.scope("capability"):
        network = plan.numerics.place(make_model(plan.config["model"], plan.manifest.num_classes))
        if anatomy.batch_norms(network):
            optimizer = torch.optim.Adam(network.train().parameters(), lr=LEARNING_RATE)
            for rows in torch.randperm(len(data))[: STEPS * BATCH_SIZE].split(BATCH_SIZE):
                loss = F.cross_entropy(network(plan.numerics.images(data.images[rows])), data.labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return network.eval()


class Cells:
    """Runs cells; what several share (the data, a model's network) is made once.

    Args:
        store: a folder for the store, which stays empty.
    """

    def __init__(self, store: Path) -> None:
        self.bench, self.folder = Bench(Store(store)), store
        self._model = ""
        self._network: Network | None = None

    def run(self, defense: str, model: str) -> Cell:
        """One cell."""
        try:
            plan = self.bench.plan(compose(model, defense, self.folder))
        except IncompatibleError as error:
            return Cell(defense, model, "refused", str(error))
        except BenchError as error:
            return Cell(defense, model, "failed", str(error))
        try:
            reason = self._purify(plan, model)
        except BenchError as error:
            reason = str(error)
        except Exception as error:  # whatever went wrong is what the table is there to say
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return Cell(defense, model, "failed" if reason else "works", reason)

    def _purify(self, plan: Plan, model: str) -> str | None:
        """Run the defense on a copy of the model's network; what is wrong with the result, if anything."""
        data = self.bench.data(plan)
        if model != self._model:
            self._model, self._network = model, suspect(plan, data.train)
        assert self._network is not None
        network = deepcopy(self._network)
        attack = configuration.make(plan.config["attack"])
        trigger = attack.trigger(data.manifest.image_size)
        untold = Measurement(acc=0.0, asr=None, ra=None)
        victim = Victim(network, trigger, None, None, None, untold, False)
        defense: Defense = configuration.make(plan.config["defense"])
        view, _ = defender_view(plan, data, victim, defense)
        for _ in defense.run(network, view):
            pass
        return what_is_wrong(network, plan.config["model"], view)


@torch.no_grad()
def what_is_wrong(network: torch.nn.Module, node: Mapping[str, Any], view: DefenderView) -> str | None:
    """Whether a purified network answers, and answers the same when it is described, built anew and loaded."""
    images = view.numerics.images(view.train.images)
    logits = network.eval()(images)
    if logits.shape != (len(images), view.num_classes) or not logits.isfinite().all():
        return f"the purified network gives logits of shape {tuple(logits.shape)}, or not finite ones"
    again = make_model(node, view.num_classes)
    addition.restore(again, json.loads(json.dumps(addition.describe(network))))
    again.load_state_dict(network.state_dict())
    if not torch.allclose(view.numerics.place(again).eval()(images), logits, atol=1e-5):
        return "the purified network gives other logits when it is stored and built anew"
    return None


def by_size(names: Iterable[str]) -> list[str]:
    """The models from the smallest to the largest, so that a table fills soon."""
    return sorted(names, key=lambda name: _parameters(name))


def _parameters(model: str) -> int:
    with TemporaryDirectory() as folder, torch.device("meta"):
        node = compose(model, "ft", Path(folder))["model"]
        return sum(parameter.numel() for parameter in make_model(node, 10).parameters())


# -- the table -------------------------------------------------------------------------------------------------------


def read(file: Path) -> dict[tuple[str, str], Cell]:
    """The cells of an earlier table; none where there is none."""
    if not file.exists():
        return {}
    found = [Cell(**entry) for entry in json.loads(file.read_text())["cells"]]
    return {(cell.defense, cell.model): cell for cell in found}


def write(cells: Mapping[tuple[str, str], Cell], out: Path) -> None:
    """``capability.json`` and ``capability.md`` in ``out``: the same cells give the same bytes."""
    ordered = [cells[key] for key in sorted(cells)]
    made = {name: metadata.version(name) for name in ("torch", "torchvision")}
    if any(cell.model.startswith("timm:") for cell in ordered):
        made["timm"] = metadata.version("timm")
    out.mkdir(parents=True, exist_ok=True)
    document = {"made_by": "python -m backdoor_bench.capability", "versions": made, "cells": list(map(asdict, ordered))}
    (out / "capability.json").write_text(json.dumps(document, indent=1) + "\n")
    (out / "capability.md").write_text(markdown(ordered, made))


def markdown(cells: Sequence[Cell], versions: Mapping[str, str]) -> str:
    """The table, and below it the reasons."""
    defenses = sorted({cell.defense for cell in cells})
    rows = sorted({cell.model for cell in cells})
    found = {(cell.defense, cell.model): cell for cell in cells}
    reasons = list(dict.fromkeys(cell.reason for cell in cells if cell.reason))

    def entry(defense: str, model: str) -> str:
        cell = found.get((defense, model))
        if cell is None:
            return ""
        return cell.status + (f" [{reasons.index(cell.reason) + 1}](#reasons)" if cell.reason else "")

    made = ", ".join(f"{name} {version}" for name, version in versions.items())
    counts = {status: sum(cell.status == status for cell in cells) for status in STATUSES}
    doc = (__doc__ or "").split("\n\n", 1)[1].strip().replace("\n", " ")
    lines = [
        "# Which defense works on which network",
        "",
        f"Made by `python -m backdoor_bench.capability --out docs` ({made}); do not edit.",
        "",
        doc,
        "",
        f"{', '.join(f'{count} {status}' for status, count in counts.items())}. Images of 32x32; where a network works "
        "at one other size, it resizes them.",
        "",
        "| | " + " | ".join(defenses) + " |",
        "| --- |" + " :-: |" * len(defenses),
        *("| " + " | ".join([f"`{row}`", *(entry(defense, row) for defense in defenses)]) + " |" for row in rows),
        "",
    ]
    if reasons:
        lines += ["## Reasons", "", *(f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)), ""]
    return "\n".join(lines)


def wanted(only: Sequence[str]) -> tuple[list[str], list[str]]:
    """Defenses and models of ``["defense=a,b", "model=c"]``; all of what is not named."""
    known = {"defense": leaves("defense"), "model": models()}
    chosen = dict(known)
    for option in only:
        group, _, names = option.partition("=")
        if group not in known:
            raise unknown("part of --only", group, known)
        chosen[group] = names.split(",")
        for name in chosen[group]:
            if name not in known[group] and not (group == "model" and name.startswith("timm:")):
                raise unknown(group, name, known[group])
    return chosen["defense"], chosen["model"]


def table(defenses: Sequence[str], names: Sequence[str], skip: Iterable[tuple[str, str]] = ()) -> Iterator[Cell]:
    """The cells, model by model from the smallest; those of ``skip`` are left out."""
    left_out = set(skip)
    with TemporaryDirectory(prefix="backdoor_bench_capability_") as folder:
        cells = Cells(Path(folder))
        for model in by_size(names):
            for defense in defenses:
                if (defense, model) not in left_out:
                    yield cells.run(defense, model)


@pipe.quiet
def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 0 if nothing failed."""
    parser = argparse.ArgumentParser(
        prog="python -m backdoor_bench.capability", description="Run every defense on every network, smallest first."
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="GROUP=NAMES", help="e.g. defense=unit,clp model=resnet18"
    )
    parser.add_argument("--missing", action="store_true", help="only cells that the table in OUT does not have")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of capability.md and capability.json")
    options = parser.parse_args(arguments)
    file = options.out / "capability.json"
    try:
        defenses, names = wanted(options.only)
        cells = read(file)
        if not options.only and not options.missing:
            cells = {}
        failed = 0
        for cell in table(defenses, names, cells if options.missing else ()):
            cells[cell.defense, cell.model] = cell
            failed += cell.status == "failed"
            progress.say(f"{cell.defense} on {cell.model}: {cell.status}{f' ({cell.reason})' if cell.reason else ''}")
            write(cells, options.out)  # as they come: an interrupted table is continued with --missing
    except (BenchError, OSError, ValueError) as error:
        progress.say(f"error: {error}")
        return 1
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
