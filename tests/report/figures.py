"""Records for figures, and what is read off one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from backdoor_bench.report.frame import Records, regime
from backdoor_bench.report.reading import RUN, STAGE

DEFAULTS: Mapping[str, Any] = {
    "status": "ok", "started": "2026-01-01T00:00:00Z", "source": "s", "dataset": "cifar10", "variant": "cifar10",
    "architecture": "preact_resnet18", "width": 16, "attack": "badnet", "poisoning_ratio": 0.1, "defense": "ft",
    "assumes": "", "clean_ratio": 0.05, "seed": 0, "repetition": 0, "preset": "default", "weak_attack": False,
    "victim_at_chance": False, "at_chance": False, "before_acc": 0.9, "before_asr": 1.0, "acc": 0.9, "asr": 0.5,
    "ra": 0.4, "arr": 0.0, "rdr": 0.5, "defense_seconds": 10.0,
    "attack_options": json.dumps({"_target_": "backdoor_bench.attack.badnet.BadNet", "alpha": 0.2}),
    "defense_options": json.dumps({"epochs": 20, "stages": {"prune": {"k": 0.05}}}),
    "victim_options": json.dumps({"recipe": {"epochs": 10}}), "device": "cpu", "threads": 1, "precision": "32-true",
    "victim": "v",
}  # fmt: skip


Make = Callable[..., Records]


def make(*rows: Mapping[str, Any], stages: list[tuple[int, str, Mapping[str, Any]]] | None = None) -> Records:
    """Records of these runs; stages as (row, name, report)."""
    full = [
        {**dict.fromkeys(RUN), **DEFAULTS, "key": f"k{n}", "sha256": f"s{n}", "record": f"k{n}/1", **row}
        for n, row in enumerate(rows)
    ]
    runs = pd.DataFrame(full)[list(RUN)].astype(dict(RUN))
    names = [regime(s, c) for s, c in zip(runs.spc.astype("float64"), runs.clean_ratio, strict=True)]
    made = [
        {**dict.fromkeys(STAGE), "key": f"k{n}", "sha256": f"s{n}", "position": at, "stage": name,
         "report": json.dumps(report)}
        for at, (n, name, report) in enumerate(stages or [])
    ]  # fmt: skip
    table = pd.DataFrame(made, columns=list(STAGE)).astype(dict(STAGE))
    return Records(runs.assign(regime=pd.Series(names, dtype="str")), table)


def footnote(figure: Figure) -> str:
    return " ".join(figure.get_supxlabel().split())


def lines(figure: Figure) -> dict[str, list[tuple[float, float]]]:
    """The points of each line by colour, of the first panel."""
    found = figure.axes[0].get_lines()
    return {line.get_color(): [(float(x), round(float(y), 6)) for x, y in line.get_xydata()] for line in found}
