"""What the figures show are the numbers of the records."""

from __future__ import annotations

import json

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from backdoor_bench.errors import ConfigError
from backdoor_bench.report.figure import bar, curve, option, scatter, style
from tests.report.figures import footnote, lines, make

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
