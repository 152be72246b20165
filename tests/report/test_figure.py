"""Figures show the numbers of the records, say what they leave out, and never come out empty or cut."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch

from backdoor_bench.analysis.base import ANALYSES
from backdoor_bench.errors import ConfigError, StoreError
from backdoor_bench.report.figure import __main__ as command
from backdoor_bench.report.figure import box, pick, style
from backdoor_bench.report.figure.draw import FIGURES, draw
from backdoor_bench.report.frame import Records, to_parquet
from tests.report.figures import footnote, make

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
