"""The W&B project's dashboard: a workspace of panels over the stable keys of :mod:`tracking.wandb_content`.

Two kinds of W&B runs fill it. Runs of victims hold a table of their cells, which the coloured scatter plot and the box
plots are drawn from, and means per defense (``defenses.ft.asr``), so every defense has a scatter plot of its own. Runs
of single experiments are grouped by the defense in their configuration.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import yaml  # type: ignore[import-untyped]

from backdoor_bench import config as configuration

# Typed in part only, and what they export they do not say.
wr: Any = import_module("wandb_workspaces.reports.v2")
ws: Any = import_module("wandb_workspaces.workspaces")

NAME = "Backdoor defenses"
ANYBODY = "your-entity"
"""Stands in the file for the account that is not known offline."""
WIDTH, HEIGHT = 8, 6


def _chart(mark: dict[str, Any], encoding: dict[str, Any]) -> dict[str, Any]:
    """A Vega-Lite chart over a table of W&B's; ``${field:...}`` is filled in by the panel."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "data": {"name": "wandb"},
        "title": "${string:title}",
        "mark": mark,
        "encoding": encoding,
    }


def _axis(field: str, kind: str, **scale: Any) -> dict[str, Any]:
    return {"field": f"${{field:{field}}}", "type": kind, **({"scale": scale} if scale else {})}


CHARTS: dict[str, dict[str, Any]] = {
    "backdoor_bench_scatter": _chart(
        {"type": "point", "filled": True, "tooltip": {"content": "data"}},
        {
            "x": _axis("x", "quantitative", domain=[0, 1]),
            "y": _axis("y", "quantitative", domain=[0, 1]),
            "color": _axis("color", "nominal"),
        },
    ),
    "backdoor_bench_box": _chart(
        {"type": "boxplot", "extent": 1.5},
        {"x": _axis("x", "nominal"), "y": _axis("y", "quantitative"), "color": _axis("x", "nominal")},
    ),
}
"""Charts that W&B has no panel for: points coloured by a column, and boxes. Saved with the dashboard."""


def spec(project: str, entity: str | None = None) -> dict[str, Any]:
    """What W&B would store, as plain JSON values: the workspace and its charts. Nothing is asked of the network."""
    model = workspace(project, entity or ANYBODY)._to_model()
    return {"workspace": model.model_dump(mode="json", by_alias=True, exclude_none=True), "charts": CHARTS}


def save(project: str, entity: str | None = None) -> str:
    """Save it in the project; returns its address.

    Raises:
        StoreError: W&B does not take it.
    """
    import wandb

    from backdoor_bench.errors import StoreError

    try:
        api = wandb.Api()
        entity = entity or str(api.default_entity)
        for name, chart in CHARTS.items():
            try:
                api.create_custom_chart(
                    entity=entity, name=name, display_name=name, spec_type="vega2", access="private", spec=chart
                )
            except Exception as error:
                if "exist" not in str(error).lower():  # of an earlier time
                    raise
        board = workspace(project, entity)
        board.save()
    except Exception as error:  # requests', W&B's and the package's own, which have no common base
        raise StoreError(
            f"W&B did not take the dashboard: {error}; without --online it is written to a file"
        ) from error
    return str(board.url)


def workspace(project: str, entity: str) -> Any:
    """The dashboard, not yet sent anywhere."""
    blind, knowing = by_assumption()
    defenses = sorted([*blind, *knowing])
    of_runs, mean = {"groupby": wr.Config("defense")}, {"groupby_aggfunc": "mean"}
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            _section(
                "Leaderboard",
                _bars("DER, mean over victims of attacks that work", blind, "der"),
                _bars("ASR after the defense, mean over victims of attacks that work", blind, "asr"),
                _bars("ACC after the defense, mean over the same victims and clean networks", blind, "acc"),
                _bars("Networks left at chance, where ASR says nothing; mean over victims", blind, "at_chance"),
                _bars("ASR, defenses that assume more than clean data: not to be ranked with those", knowing, "asr"),
                wr.WeavePanelSummaryTable(table_name="cells"),
            ),
            _section(
                "All cells of all victims",
                _cells(entity, "scatter", "ASR and ACC by defense", x="asr", y="acc", color="defense"),
                *(_cells(entity, "box", f"{metric.upper()} by defense", x="defense", y=metric)
                  for metric in ("asr", "rdr", "arr", "acc", "der")),
            ),
            _section(
                "ASR and ACC, one point per victim",
                *(
                    wr.ScatterPlot(title=name, x=wr.SummaryMetric(f"defenses.{name}.asr"), range_x=(0, 1),
                                   y=wr.SummaryMetric(f"defenses.{name}.acc"), range_y=(0, 1))
                    for name in defenses
                ),
            ),
            _section(
                "After each stage (0: the victim)",
                *(
                    wr.LinePlot(title=f"{name}: ASR, ACC, RA", range_y=(0, 1),
                                y=[f"stage/{name}/{metric}" for metric in ("asr", "acc", "ra")])
                    for name in defenses
                ),
            ),
            _section(
                "Single experiments",
                wr.ScatterPlot(title="ASR and ACC", x=wr.SummaryMetric("asr"), y=wr.SummaryMetric("acc"),
                               z=wr.SummaryMetric("der"), range_x=(0, 1), range_y=(0, 1)),
                *(wr.BarPlot(title=f"{metric.upper()} by defense", metrics=[metric], **of_runs, **mean,
                             groupby_rangefunc="minmax") for metric in ("asr", "acc", "der")),
                *(wr.LinePlot(title=f"{metric.upper()} after each stage", y=[metric], range_y=(0, 1), **of_runs)
                  for metric in ("asr", "acc", "ra")),
                wr.WeavePanelSummaryTable(table_name="stages"),
            ),
            _section(
                "Where triggered images go",
                wr.WeavePanelSummaryTable(table_name="triggered_as"),
                wr.MediaBrowser(title="Triggers: clean, triggered, residual", media_keys=["trigger"]),
            ),
            _section(
                "Time",
                wr.BarPlot(title="Seconds of the defense", metrics=["defense_seconds"], **mean, **of_runs),
                wr.BarPlot(title="Seconds of the victim's training", metrics=["victim_seconds"], **mean,
                           groupby=wr.Config("attack")),
            ),
        ],
        runset_settings=ws.RunsetSettings(groupby=[ws.Config("attack")]),
    )  # fmt: skip


def by_assumption() -> tuple[list[str], list[str]]:
    """The defenses that see clean data alone, and those whose configuration says that they assume more."""
    files = sorted((configuration.directory() / "defense").glob("*.yaml"))
    assumes = {path.stem: yaml.safe_load(path.read_text()).get("assumes") for path in files}
    return [name for name, more in assumes.items() if not more], [name for name, more in assumes.items() if more]


def _section(name: str, *panels: Any) -> Any:
    """Panels in rows of three."""
    for n, panel in enumerate(panels):
        panel.layout = wr.Layout(x=WIDTH * (n % 3), y=HEIGHT * (n // 3), w=WIDTH, h=HEIGHT)
    return ws.Section(name=name, panels=list(panels), is_open=True)


def _bars(title: str, defenses: list[str], metric: str) -> Any:
    """One bar per defense, over the W&B runs of victims."""
    metrics = [wr.SummaryMetric(f"defenses.{name}.{metric}") for name in defenses]
    titles = {f"summary:defenses.{name}.{metric}": name for name in defenses}
    return wr.BarPlot(title=title, metrics=metrics, aggregate=True, groupby_aggfunc="mean", line_titles=titles)


def _cells(entity: str, chart: str, title: str, **fields: str) -> Any:
    """One of :data:`CHARTS` over the table ``cells`` of the victims' W&B runs."""
    return wr.CustomChart(
        query={"summaryTable": {"tableKey": "cells"}}, chart_name=f"{entity}/backdoor_bench_{chart}",
        chart_fields=fields, chart_strings={"title": title},
    )  # fmt: skip
