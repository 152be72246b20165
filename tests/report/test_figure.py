"""Figures show the numbers of the records, say what they leave out, and never come out empty or cut."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch, Rectangle

from backdoor_bench.analysis.base import ANALYSES
from backdoor_bench.errors import ConfigError, StoreError
from backdoor_bench.report.figure import __main__ as command
from backdoor_bench.report.figure import bar, box, curve, option, pick, scatter, style
from backdoor_bench.report.figure.draw import FIGURES, draw
from backdoor_bench.report.frame import Records, regime, to_parquet
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


@pytest.fixture(scope="module")
def many() -> Records:
    """Enough runs for every figure: 3 defenses, one of them an oracle, and two of everything that is split by."""
    rows, stages = [], []
    for defense, assumes in (("ft", ""), ("fp", ""), ("gradprune_oracle", "trigger")):
        for attack, kind in (("badnet", "badnet.BadNet"), ("wanet", "wanet.WaNet")):
            options = json.dumps({"_target_": f"backdoor_bench.attack.{kind}"})
            for n in range(6):
                k = (0.05, 0.1)[n == 5]
                stages.append((len(rows), "prune", {"pruned": int(100 * k), "units": 100}))
                rows.append(
                    {"defense": defense, "assumes": assumes, "attack": attack, "attack_options": options,
                     "asr": 0.1 * n, "rdr": 0.12 * n, "arr": 0.01 * n, "acc": 0.9 - 0.01 * n,
                     "clean_ratio": (0.05, 0.1)[n % 2], "poisoning_ratio": (0.1, 0.05)[n // 3],
                     "victim": f"{attack}{n // 3}",
                     "architecture": ("preact_resnet18", "vgg19_bn")[n % 2], "dataset": ("cifar10", "gtsrb")[n // 3],
                     "defense_options": json.dumps({"stages": {"prune": {"k": k}}}), "repetition": n}
                )  # fmt: skip
    # What lines need: runs that differ from a first one in a single thing.
    for n, change in enumerate(
        ({}, {"poisoning_ratio": 0.05}, {"clean_ratio": 0.1}, {"k": 0.1}, {"architecture": "vgg19_bn"})
    ):
        k = change.pop("k", 0.05)
        stages.append((len(rows), "prune", {"pruned": int(100 * k), "units": 100}))
        options = json.dumps({"stages": {"prune": {"k": k}}})
        rows.append({"defense": "fp", "attack": "sig", "victim": f"x{n}", "defense_options": options, **change})
    return make(*rows, stages=stages)


def footnote(figure: Figure) -> str:
    return " ".join(figure.get_supxlabel().split())


def lines(figure: Figure) -> dict[str, list[tuple[float, float]]]:
    """The points of each line by colour, of the first panel."""
    found = figure.axes[0].get_lines()
    return {line.get_color(): [(float(x), round(float(y), 6)) for x, y in line.get_xydata()] for line in found}


# -- looks -----------------------------------------------------------------------------------------------------------


def test_every_known_method_looks_different() -> None:
    looks = [(style.look(name).color, style.look(name).marker) for name in style.PLACES]
    assert len(set(looks)) == len(style.PLACES)


def test_an_unknown_method_has_a_look_of_its_name_that_no_known_one_has() -> None:
    known = {(style.look(name).color, style.look(name).marker) for name in style.PLACES}
    for name in ("mine", "yours", "a" * 50):
        assert style.look(name) == style.look(name)
        assert (style.look(name).color, style.look(name).marker) not in known


def test_ordered_values_go_from_dark_to_light() -> None:
    def luminance(color: str) -> float:
        red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    found = [luminance(how.color) for how in style.steps(5)]
    assert found == sorted(found)
    assert len(set(found)) == 5


def test_a_saved_figure_is_whole_and_the_same_every_time(tmp_path: Path, many: Records) -> None:
    for folder in ("one", "two"):
        style.save(draw("density", many), tmp_path / folder, "density")
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["density.pdf", "density.png", "density.svg"]
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_what_cannot_be_written(tmp_path: Path, many: Records) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*file/x\.png.*--out"):
        style.save(draw("density", many), tmp_path / "file", "x", ["png"])
    with pytest.raises(ConfigError, match=r"--formats gif: expected some of svg,pdf,png"):
        style.save(draw("density", many), tmp_path, "x", ["gif"])


# -- which runs ------------------------------------------------------------------------------------------------------


def test_what_is_left_out_is_counted() -> None:
    records = make(
        {}, {"status": "failed", "asr": None}, {"weak_attack": True}, {"attack": None, "asr": None}, {"defense": None}
    )
    picked = pick.pick(records)
    assert len(picked.runs) == 1
    assert picked.notes == (
        "1 run", "1 failed not shown", "1 more, of clean networks, have no ASR", "1 on weak attacks left out",
    )  # fmt: skip
    assert len(pick.pick(records, weak=True).runs) == 2


def test_nothing_left_says_why() -> None:
    with pytest.raises(
        ConfigError, match=r"no run with a defense has what the figure shows \(1 on weak attacks left out"
    ):
        pick.pick(make({"weak_attack": True}))


def test_what_is_pooled_is_said() -> None:
    runs = make({"seed": 1}, {"seed": 2, "attack": "blended"}, {"defense_options": "{}"}).ok
    assert pick.pooled(runs, ["defense"]) == ["Pooled over 2 x attack, defense options of ft, 3 x seed"]
    assert pick.pooled(runs, ["defense", "attack", "seed", "defense_options"]) == [
        "All cifar10, preact_resnet18, preset default"
    ]


def test_values_are_ordered_as_a_reader_expects() -> None:
    assert pick.ordered(["spc 10", "clean 5%", "spc 2", "clean 0.1%"]) == ["clean 0.1%", "clean 5%", "spc 2", "spc 10"]
    assert pick.ordered([0.1, 0.01, 0.1]) == [0.01, 0.1]
    assert pick.ordered(["b", None, "a"]) == ["a", "b", None]


def test_too_many_panels_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"10 panels, one for each attack, and a page takes 9; filter: attack=a0"):
        pick.facets(make(*({"attack": f"a{n}"} for n in range(10))).ok)


# -- boxes -----------------------------------------------------------------------------------------------------------


def test_a_box_needs_five_runs() -> None:
    def boxes(count: int) -> int:
        figure = box.draw(make(*({"asr": 0.1 * n} for n in range(count))))
        return sum(isinstance(patch, PathPatch) for panel in figure.axes for patch in panel.patches)

    assert [boxes(1), boxes(4), boxes(5)] == [0, 0, 3]


def test_few_runs_have_their_median() -> None:
    figure = box.draw(make({"asr": 0.1}, {"asr": 0.2}, {"asr": 0.6}))
    assert figure.axes[0].get_lines()[0].get_ydata() == pytest.approx([20, 20])
    assert "3 runs" in footnote(figure)


def test_a_run_far_above_does_not_press_the_others_flat() -> None:
    figure = box.draw(make(*({"arr": 0.02} for _ in range(30)), {"arr": 0.88}))
    assert figure.axes[2].get_ylim()[1] < 5
    assert "Above the ARR axis: ft 88 %" in footnote(figure)
    assert "Above" not in footnote(box.draw(make(*({"arr": 0.02 * n} for n in range(30)))))


def test_nor_does_one_far_below() -> None:
    figure = box.draw(make(*({"rdr": 0.01 * n} for n in range(30)), {"rdr": -4.7}))
    assert figure.axes[1].get_ylim()[0] > -10
    assert "Below the RDR axis: ft -470 %" in footnote(figure)


def test_the_legend_of_boxes_has_the_points_marker_too() -> None:
    """Where a group has too few runs for a box there are points alone."""
    figure = box.draw(make(*({"dataset": ("cifar10", "gtsrb")[n == 5]} for n in range(6))), "dataset")
    markers = {line.get_marker() for line in figure.legends[0].findobj(Line2D)}
    assert {how.marker for how in style.steps(2)} <= markers


def test_boxes_over_different_victims_say_so() -> None:
    same = make({"defense": "ft"}, {"defense": "fp"})
    assert "different victims" not in footnote(box.draw(same))
    other = make({"defense": "ft"}, {"defense": "fp"}, {"defense": "fp", "victim": "w"})
    assert "The boxes of different defenses rest on different victims and draws" in footnote(box.draw(other))


def test_runs_of_other_options_are_no_runs_of_the_method() -> None:
    other = {"defense_options": '{"epochs": 5}', "asr": 0.9}
    found = pick.pick(make({}, {}, other))
    assert len(found.runs) == 2
    assert "1 with options not the method's own left out (ft)" in found.notes
    assert len(pick.pick(make({}, {}, other), own=False).runs) == 3


def test_points_keep_inside_their_width() -> None:
    offsets = box.spread(50, 0.4)
    assert np.abs(offsets).max() <= 0.2
    assert len(set(offsets.round(6))) == 50


def test_a_split_needs_two_values_and_a_known_column() -> None:
    with pytest.raises(ConfigError, match=r"split by attack: these runs have 1 \(badnet\)"):
        box.draw(make({}), "attack")
    with pytest.raises(ConfigError, match="Did you mean regime"):
        box.draw(make({}), "regimes")


def test_static_and_dynamic_come_from_the_attacks_own_class() -> None:
    runs = make(
        {}, {"attack_options": json.dumps({"_target_": "backdoor_bench.attack.wanet.WaNet"})},
        {"attack_options": json.dumps({"_target_": "os.system"})},
    ).ok  # fmt: skip
    assert box.consistency(runs) == ["static", "dynamic", None]


# -- scatter ---------------------------------------------------------------------------------------------------------


def test_density_counts_the_cell_and_its_eight_neighbours() -> None:
    x, y = np.array([0.5, 0.6, 1.5, 3.5, 9.0]), np.array([0.5, 0.5, 1.5, 0.5, 9.0])
    assert scatter.density(x, y, 1.0).tolist() == [3, 3, 3, 1, 1]


def test_better_compares_where_both_were_run() -> None:
    rows = [
        {"defense": "fp", "victim": "a", "asr": 0.5, "rdr": 0.5, "arr": 0.02},
        {"defense": "fp", "victim": "b", "asr": 0.1, "rdr": 0.1, "arr": 0.02},
        # On b alone fp is better; over all its runs it would not be.
        {"defense": "mine", "victim": "b", "asr": 0.2, "rdr": 0.2, "arr": 0.02},
        {"defense": "yours", "victim": "a", "asr": 0.4, "rdr": 0.5, "arr": 0.02},
        {"defense": "oracle", "victim": "a", "asr": 0.0, "rdr": 0.0, "arr": 0.0, "assumes": "trigger"},
        {"defense": "elsewhere", "victim": "c", "asr": 0.0, "rdr": 0.0, "arr": 0.0},
    ]
    assert scatter.better(make(*rows).ok, "fp") == {"yours": 1}


def test_medians_and_their_rectangles() -> None:
    records = make(
        {"defense": "fp", "asr": 0.6, "rdr": 0.5, "arr": 0.02}, {"defense": "fp", "asr": 0.8, "rdr": 0.7, "arr": 0.04},
        {"defense": "ft", "asr": 0.9, "rdr": 0.9, "arr": 0.01},
    )  # fmt: skip
    assert scatter.medians(records.ok).loc["fp"].tolist() == pytest.approx([0.7, 0.6, 0.03, 2])
    figure = scatter.draw_medians(records)
    corners = [patch.get_bbox().max.tolist() for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    assert corners == [pytest.approx([70, 60]), pytest.approx([90, 90])]
    assert "Below fp in all three medians, over the victims and draws that both have: none" in footnote(figure)


# -- lines -----------------------------------------------------------------------------------------------------------


def test_clean_ratio_draws_means_of_what_was_swept() -> None:
    records = make(
        {"clean_ratio": 0.01, "asr": 0.8}, {"clean_ratio": 0.1, "asr": 0.2}, {"clean_ratio": 0.1, "asr": 0.4},
        {"defense": "fp"}, {"clean_ratio": None, "spc": 10}, {"clean_ratio": 0.05, "poisoning_ratio": 0.01, "asr": 0.0},
    )  # fmt: skip
    figure = curve.draw_clean_ratio(records)
    assert lines(figure) == {style.look("ft").color: [(1.0, 80.0), (10.0, 30.0)]}
    assert "3 runs" in footnote(figure)
    assert "1 at samples per class not shown" in footnote(figure)
    assert "2 at a single one of the clean ratios not shown" in footnote(figure)


@pytest.mark.parametrize(("first", "second", "axis"), [(0.995, 1.0, (95.25, 100.25)), (0.8, 0.81, (78, 83))])
def test_a_few_images_do_not_fill_the_axis_of_accuracy(first: float, second: float, axis: tuple[float, float]) -> None:
    records = make({"clean_ratio": 0.01, "acc": first}, {"clean_ratio": 0.1, "acc": second})
    assert curve.draw_clean_ratio(records).axes[1].get_ylim() == pytest.approx(axis, abs=0.01)
    far = make({"clean_ratio": 0.01, "acc": 0.2}, {"clean_ratio": 0.1, "acc": 0.9})
    assert np.ptp(curve.draw_clean_ratio(far).axes[1].get_ylim()) < 80


def test_poisoning_ratio_has_the_victims_too_and_weak_ones() -> None:
    records = make(
        {"poisoning_ratio": 0.01, "victim": "a", "before_asr": 0.3, "asr": 0.1, "weak_attack": True},
        {"poisoning_ratio": 0.1, "victim": "b", "before_asr": 0.9, "asr": 0.2},
    )  # fmt: skip
    assert lines(curve.draw_poisoning_ratio(records)) == {
        style.look("ft").color: [(1.0, 10.0), (10.0, 20.0)], style.GREY: [(1.0, 30.0), (10.0, 90.0)],
    }  # fmt: skip


def test_sensitivity_reads_the_option_from_the_records() -> None:
    def options(k: float) -> str:
        return json.dumps({"stages": {"prune": {"k": k}}})

    records = make(
        {"defense_options": options(0.01), "asr": 0.7}, {"defense_options": options(0.1), "asr": 0.3},
        {"defense_options": options(0.1), "attack": "blended"},
    )  # fmt: skip
    figure = curve.draw_sensitivity(records, "defense.stages.prune.k")
    assert lines(figure) == {style.look("badnet").color: [(0.01, 70.0), (0.1, 30.0)]}
    assert "1 run at a single value not shown" in footnote(figure)
    with pytest.raises(ConfigError, match=r"Did you mean defense\.stages\.prune\.k"):
        curve.draw_sensitivity(records, "defense.stages.prune.kk")
    with pytest.raises(ConfigError, match=r"recipe\.epochs is 10 in these runs"):
        curve.draw_sensitivity(records, "recipe.epochs")


def test_words_are_not_joined_by_a_line() -> None:
    records = make(*({"defense_options": json.dumps({"norm": norm})} for norm in ("global", "per_tensor")))
    figure = curve.draw_sensitivity(records, "defense.norm")
    assert figure.axes[0].get_lines()[0].get_linestyle() == "None"
    assert [tick.get_text() for tick in figure.axes[1].get_xticklabels()] == ["global", "per_tensor"]


def test_options_by_name() -> None:
    runs = make({"defense_options": json.dumps({"stages": {"a": {"list": [1, 2]}}})}, {"defense_options": None}).ok
    assert option.values(runs, "defense.stages.a.list").tolist() == ["[1, 2]", None]
    assert option.values(runs, "attack.alpha").tolist() == [0.2, 0.2]
    assert option.values(runs, "recipe.epochs").tolist() == [10, 10]
    assert option.values(runs, "attack.poisoning_ratio").tolist() == [0.1, 0.1]
    other = make({}, {"defense_options": json.dumps({"epochs": 5, "stages": {"prune": {"k": 0.05}}})}).ok
    assert option.rest(other, "defense.epochs").nunique() == 1
    assert option.rest(other, "defense.stages.prune.k").nunique() == 2


def test_budget_is_the_share_that_the_stages_report() -> None:
    reports = [{"pruned": 5, "entries": 50}, {"zeroed": 30, "weights": 60, "neurons": 7}, {"loss": 1.0}]
    shares = curve.shares(make({}, {}, {}, stages=[(n, "s", report) for n, report in enumerate(reports)]).stages)
    assert shares.to_numpy().tolist() == [["k0", 0.1, "entries", "s"], ["k1", 0.5, "weights", "s"]]

    def options(k: int, lr: float = 0.1) -> str:
        return json.dumps({"stages": {"mask": {"k": k}, "finetune": {"lr": lr}}})

    rows = [{"asr": 0.9 - 0.4 * n, "defense_options": options(n)} for n in range(2)]
    stages = [(n, "mask", {"pruned": 10 + 10 * n, "entries": 100}) for n in range(2)]
    figure = curve.draw_budget(make(*rows, stages=stages))
    assert lines(figure) == {style.look("ft").color: [(10.0, 90.0), (20.0, 50.0)]}
    with pytest.raises(ConfigError, match="no defense was run with several pruning budgets"):
        curve.draw_budget(make({}, stages=[(0, "mask", {"pruned": 1, "entries": 2})]))
    # Another rate of the fine-tuning after it is no other budget, though the share differs by chance.
    rows = [{"defense_options": options(0, lr)} for lr in (0.1, 0.2)]
    with pytest.raises(ConfigError, match="no defense was run with several pruning budgets"):
        curve.draw_budget(make(*rows, stages=stages))


# -- bars ------------------------------------------------------------------------------------------------------------


def test_architectures_side_by_side() -> None:
    records = make(
        {"asr": 0.2}, {"asr": 0.4}, {"architecture": "vgg19_bn", "asr": 0.9}, {"asr": 0.0, "poisoning_ratio": 0.01}
    )
    heights = [patch.get_height() for patch in bar.draw_architecture(records).axes[0].patches]
    assert heights == pytest.approx([30, 90])
    with pytest.raises(ConfigError, match="differ in nothing else, and these have preact_resnet18"):
        bar.draw_architecture(make({}))


def test_time_is_never_pooled_over_machines() -> None:
    records = make({"defense_seconds": 10}, {"defense_seconds": 30}, {"device": "cuda", "defense_seconds": 1})
    figure = bar.draw_time(records)
    assert [panel.get_title() for panel in figure.axes] == ["cpu", "cuda"]
    assert [panel.patches[0].get_width() for panel in figure.axes] == [20, 1]


# -- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_cut_and_no_panel_is_empty(name: str, many: Records) -> None:
    figure = draw(name, many, "defense.stages.prune.k")
    figure.draw_without_rendering()
    drawn, page = figure.get_tightbbox(figure.canvas.get_renderer()), figure.get_size_inches()  # type: ignore[attr-defined]
    assert min(drawn.min) > -0.03
    assert drawn.max[0] < page[0] + 0.03
    assert drawn.max[1] < page[1] + 0.03
    assert all(panel.has_data() for panel in figure.axes)
    for words in figure.texts:
        assert not any(words.get_window_extent().overlaps(legend.get_window_extent()) for legend in figure.legends)
    for panel in figure.axes:
        ticks = [
            tick.get_window_extent() for tick in panel.get_xticklabels() if tick.get_text() and not tick.get_rotation()
        ]
        assert not any(one.overlaps(other) for one, other in pairwise(ticks))
    assert "runs" in footnote(figure)
    if name.startswith("box") or name in ("medians", "time"):
        assert "not to be ranked" in footnote(figure)


def test_the_command(tmp_path: Path, many: Records, capsys: pytest.CaptureFixture[str]) -> None:
    to_parquet(many, tmp_path / "records.parquet")
    given = [str(tmp_path / "records.parquet"), "--out", str(tmp_path / "out"), "--formats", "svg"]
    assert command.main(["medians", "time", "attack=badnet", *given]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["medians.svg", "time.svg"]
    assert command.main(["median", *given]) == 1
    assert command.main(["sensitivity", *given]) == 1
    assert command.main(["box", "no/such/place"]) == 1
    assert command.main(["box_by_attack", "attack=badnet", *given]) == 1
    errors = capsys.readouterr().err
    assert "unknown figure 'median'. Did you mean medians?" in errors
    assert "sensitivity needs --parameter NAME" in errors
    assert "no store, folder or file no/such/place" in errors
    assert "error: split by attack: these runs have 1 (badnet)" in errors


def test_all_figures_at_once_say_which_have_nothing_to_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = command.write(make({}), list(FIGURES), tmp_path, ["svg"], strict=False)
    assert {path.stem for path in made} == {"box", "density", "medians", "time"}
    assert "clean_ratio: a line needs one defense and attack at two clean ratios" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="none of the figures has anything to show"):
        command.write(make({"defense": None}), ["box"], tmp_path, ["svg"], strict=False)


def test_the_gallery_shows_every_figure_and_analysis() -> None:
    docs = Path(__file__).parents[2] / "docs"
    page = (docs / "gallery.md").read_text()
    for name in [*FIGURES, *ANALYSES]:
        shown = [path for path in (docs / "gallery").glob("*.png") if path.stem.split("_defense.")[0] == name]
        assert shown, f"docs/gallery has no picture of {name}"
        assert all(f"gallery/{path.name}" in page and path.stat().st_size < 150_000 for path in shown)
