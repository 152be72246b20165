"""Every figure by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from backdoor_bench.errors import ConfigError, unknown
from backdoor_bench.report.figure import bar, box, curve, scatter
from backdoor_bench.report.frame import Records

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES: Mapping[str, str] = {
    "box": "ASR, RDR and ARR by defense (survey, Figs. 3 and 10)",
    "box_by_regime": "the same, split by the defender's clean data (survey, Fig. 6)",
    "box_by_attack": "the same, split by attack (survey, Figs. 7 and 11)",
    "box_by_consistency": "the same, split by static and dynamic triggers (survey, Fig. 12)",
    "box_by_architecture": "the same, split by architecture (survey, Figs. 8 and 13)",
    "box_by_dataset": "the same, split by data set (survey, Figs. 9 and 14)",
    "box_by_poisoning_ratio": "the same, split by poisoning ratio (survey, Fig. 15)",
    "medians": "median RDR and ARR against median ASR, with FP's and FT's rectangles (survey, Fig. 5)",
    "density": "RDR and ARR against ASR, every run (survey, Fig. 4)",
    "clean_ratio": "ASR and ACC against the clean ratio (UniBP, Fig. 4)",
    "poisoning_ratio": "ASR and ACC against the poisoning ratio (UniBP, Fig. 5)",
    "architecture": "ASR and ACC by architecture (UniBP, Fig. 6)",
    "budget": "ASR and ACC against the share that was pruned (UniBP, Fig. 8)",
    "time": "seconds of each defense (UNIT, Fig. 6)",
    "sensitivity": "ASR and ACC against one option; --parameter defense.stages.mask.k names it",
}
"""Names and what they show. Ratios, SPC and time are those of the records given; filter before."""


def draw(name: str, records: Records, parameter: str | None = None, weak: bool = False) -> Figure:
    """One figure.

    Args:
        name: one of :data:`FIGURES`.
        parameter: for ``sensitivity``, the option's dotted name on the command line.
        weak: keep runs of weak attacks and of victims at chance.

    Raises:
        ConfigError: an unknown name, or records that leave nothing to show; the message says what to run.
    """
    if name not in FIGURES:
        raise unknown("figure", name, FIGURES)
    if name == "sensitivity":
        if parameter is None:
            raise ConfigError("sensitivity needs --parameter NAME, as on the command line: defense.stages.mask.k")
        return curve.draw_sensitivity(records, parameter, weak)
    if name.startswith("box"):
        return box.draw(records, name.removeprefix("box_by_") if name != "box" else None, weak)
    if name == "time":
        return bar.draw_time(records)
    if name == "poisoning_ratio":
        return curve.draw_poisoning_ratio(records)
    simple = {
        "medians": scatter.draw_medians, "density": scatter.draw_density, "clean_ratio": curve.draw_clean_ratio,
        "architecture": bar.draw_architecture, "budget": curve.draw_budget,
    }  # fmt: skip
    return simple[name](records, weak)
