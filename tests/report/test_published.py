"""The shipped figures, what follows from them, and when a cell of ours may stand beside one of theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from backdoor_bench.errors import ConfigError
from backdoor_bench.report import beside, frame, published, summary
from backdoor_bench.report.layout import Table
from tests.report.conftest import Write


def row(name: str, **where: Any) -> dict[str, Any]:
    _, rows = published.table(name)
    for column, value in where.items():
        rows = rows[rows[column] == value]
    assert len(rows) == 1
    return rows.iloc[0].to_dict()


def test_the_figures_are_all_there() -> None:
    results = published.read("results")
    assert len(results) == 1080
    assert dict(results.paper.value_counts()) == {
        "unibp": 340, "unit": 389, "gradprune": 176, "tsbd": 118, "survey": 57,
    }  # fmt: skip
    assert "unibp_1" in published.names()
    assert "survey_6" not in published.names()  # it holds parameters, no metrics


@pytest.mark.parametrize(
    ("name", "clean", "attack", "defense", "printed", "again"),
    [
        ("unibp_1", "ratio:0.1", "badnet", "unibp", 98.99, 96.26),
        ("unibp_1", "ratio:0.1", "sbl", "unibp", 97.88, 92.53),
        ("unibp_1", "ratio:0.05", "label_consistent", "fst", 1.00, 100.00),
        ("unibp_2", "ratio:0.05", "combat", "unibp", 74.77, 82.22),
        ("unibp_1", "ratio:0.05", "average", "ft", 57.51, 67.41),
        ("unibp_1", "ratio:0.05", "average", "anp", 60.48, 70.38),
    ],
)
def test_known_slips_are_recomputed(
    name: str, clean: str, attack: str, defense: str, printed: float, again: float
) -> None:
    found = row(name, clean_data=clean, attack=attack, defense=defense)
    assert found["der_mean"] == printed
    assert found["recomputed_der"] == pytest.approx(again, abs=0.011)


def test_what_agrees_is_not_recomputed() -> None:
    for name in ("tsbd_7", "tsbd_8"):
        _, rows = published.table(name)
        assert rows.der_mean.notna().sum() >= 32
        assert rows[rows.attack != "average"].recomputed_der.isna().all()


def test_unit_averages() -> None:
    assert row("unit_1", attack="average", defense="seam")["recomputed_asr"] == pytest.approx(8.25, abs=0.005)
    assert pd.isna(row("unit_1", attack="average", defense="nad")["recomputed_acc"])


def test_every_published_name_has_its_object() -> None:
    """A new row in results.csv must say whether ours is the same."""
    results, objects = published.read("results"), published.read("objects")
    known = set(zip(objects.paper, objects.kind, objects.name, strict=True))
    for kind in ("architecture", "attack", "defense"):
        named = results[(results.paper != "survey") & results[kind].notna() & (results[kind] != "none")]
        assert {(r.paper, kind, getattr(r, kind)) for r in named.itertuples()} <= known
    assert set(objects.same) == {"yes", "likely", "no"}
    doubtful = objects[(objects.same != "yes") | objects.when.notna()]
    assert doubtful[doubtful.kind != "setting"].why.notna().all()


def test_shipped_settings_name_what_exists() -> None:
    results, settings = published.read("results"), published.read("settings")
    pairs = set(zip(results.paper, results.defense, strict=True)) | {(p, "victim") for p in results.paper}
    assert set(zip(settings.paper, settings.method, strict=True)) <= pairs
    objects = published.read("objects")
    varied = objects[objects.kind == "setting"]
    assert set(zip(varied.paper, varied.name, strict=True)) <= set(zip(results.paper, results.setting, strict=True))


@pytest.mark.parametrize(
    ("condition", "fits"),
    [("a=1", True), ("a=2|1.0", True), ("a=2", False), ("b=none", True), ("c=none", True), ("a=none", False),
     ("d=SGD", True), ("a=*", True), ("b=*", False), ("a=1; d=Adam", False), ("e=true", False), ("e=True", True)],
)  # fmt: skip
def test_conditions(condition: str, fits: bool) -> None:
    options = {"a": 1.0, "b": None, "d": "torch.optim.SGD", "e": True}
    assert published.holds(condition, options) is fits


def cells(folder: Path) -> pd.DataFrame:
    return summary.cells(frame.load([folder]).runs)


def line(table: Table, *first: str) -> tuple[str, ...]:
    """The main text of a row's cells, found by its first cells; the last cell whole."""
    found = [r for r in table.rows if tuple(c[0] if c else "" for c in r.cells[: len(first)]) == first]
    assert len(found) == 1
    *cells, last = found[0].cells
    return (*(cell[0] if cell else "" for cell in cells), " ".join(last))


def heads(table: Table) -> list[str]:
    return [f"{column.group} {column.name}".strip() for column in table.columns]


@pytest.mark.parametrize("names", ["abcd", "dcba"])
def test_of_our_settings_the_nearest_to_the_published_stands_beside(write: Write, folder: Path, names: str) -> None:
    """UniBP prints FT at rate 0.002 on all clean images; most of our runs are at another rate, one is at both."""
    stage, train = "config__defense__stages__finetune__optimizer__lr", "config__defense__use_validation"
    for key in names[:2]:
        write(key=key, repetition=ord(key), asr=0.5, ra=0.1, **{stage: 0.01})
    write(key=names[2], asr=0.1, **{train: "train"})
    write(key=names[3], asr=0.3)
    table = beside.table("unibp_1", cells(folder))
    found = dict(zip(heads(table), line(table, "5 %", "badnet", "ft"), strict=True))
    assert (found["ours ASR"], found["ours n"]) == ("10.00", "1")
    assert found["remarks"].index("ASR 30.00") < found["remarks"].index("ASR 50.00, n = 2")


def test_victims_nearest_to_the_published_come_first(write: Write, folder: Path) -> None:
    for key, preset, epochs in (("a", "first", 5), ("b", "second", 100)):
        write(key=key, victim=key, preset=preset, config__recipe__epochs=epochs, asr=epochs / 200, ra=0.1)
    row_ = row("unibp_1", clean_data="ratio:0.05", attack="badnet", defense="ft")
    assert [m.cell["preset"] for m in published.Ours(cells(folder)).matches(row_)] == ["second", "first"]


def test_what_a_row_varies_is_no_difference(write: Write, folder: Path) -> None:
    """TSBD's Table 8 varies the fine-tuning's rate; its own rate is another row's."""
    write(defense="tsbd", config__defense__stages={"activeness_finetune": {"optimizer": {"lr": 0.1}}})
    for name, said in (("tsbd_8", False), ("tsbd_7", True)):
        _, rows = published.table(name)
        rows = rows[(rows.attack == "badnet") & (rows.defense == "tsbd") & (rows.clean_data == "ratio:0.05")]
        matches = [m for r in rows.to_dict("records") for m in published.Ours(cells(folder)).matches(r)]
        assert len(matches) == 1
        assert ("optimizer.lr 0.1 (published 0.01)" in " ".join(matches[0].settings)) is said


def test_ours_stands_beside_with_the_difference(write: Write, folder: Path) -> None:
    write()
    table = beside.table("unibp_1", cells(folder))
    names = heads(table)
    found = dict(zip(names, line(table, "5 %", "badnet", "ft"), strict=True))
    assert (found["published ACC"], found["published ASR"], found["published DER"]) == ("88.69", "2.22", "95.28")
    assert (found["ours ACC"], found["ours ASR"], found["ours n"]) == ("88.00", "30.00", "1")
    assert (found["ours - published ACC"], found["ours - published ASR"]) == ("-0.69", "+27.78")
    victim = dict(zip(names, line(table, "5 %", "badnet", "victim"), strict=True))
    assert victim["ours - published ASR"] == "-0.45"
    other = dict(zip(names, line(table, "10 %", "badnet", "ft"), strict=True))  # another amount of clean data
    assert other["ours ACC"] == other["ours - published ACC"] == ""


def test_where_the_setting_differs_is_said(write: Write, folder: Path) -> None:
    write(variant="cifar10 (jpeg)", preset="evidence", config__model__width=16, config__recipe__epochs=10,
          config__defense__stages__finetune__optimizer__lr=0.01)  # fmt: skip
    notes = "\n".join(beside.table("unibp_1", cells(folder)).notes)
    assert "width 16 (published 64), epochs 10 (published 100), pixels cifar10 (jpeg), preset evidence" in notes
    assert "ft: finetune.optimizer.lr 0.01 (published 0.002)" in notes
    assert "batch_size" not in notes  # it is the published one


def test_another_object_shows_words_and_no_difference(write: Write, folder: Path) -> None:
    write(architecture="resnet18_cifar")
    table = beside.table("unit_1", cells(folder))
    found = dict(zip(heads(table), line(table, "badnet", "ft"), strict=True))
    assert found["published ASR"]
    assert found["ours ASR"] == "30.00"
    assert found["ours - published ACC"] == found["ours - published ASR"] == "-"
    assert found["remarks"].startswith("other trigger [")
    assert any("UNIT's patch is a 5x5 flower picture" in note for note in table.notes)


def test_a_condition_on_our_options_decides(write: Write, folder: Path) -> None:
    blended = {"_target_": "Blended", "poisoning_ratio": 0.1, "alpha": 0.2, "key_sha256": None}
    write(key="a", attack="blended", architecture="resnet18_cifar", config__attack={**blended, "key": "noise"})
    ours = published.Ours(cells(folder))
    (match,) = ours.matches(row("unit_1", attack="blended", defense="ft"))
    assert match.other == {}
    write(key="a", attack="blended", architecture="resnet18_cifar", config__attack={**blended, "key": "cartoon"})
    (match,) = published.Ours(cells(folder)).matches(row("unit_1", attack="blended", defense="ft"))
    assert list(match.other) == ["attack"]


def test_units_resnet18_is_the_cifar_one(write: Write, folder: Path) -> None:
    write(
        architecture="resnet18", attack="wanet", config__attack={"control_points": 4, "strength": 0.5, "cross_ratio": 2}
    )
    (match,) = published.Ours(cells(folder)).matches(row("unit_1", attack="wanet", defense="ft"))
    assert list(match.other) == ["architecture"]


def test_unibps_other_networks_start_from_imagenet(write: Write, folder: Path) -> None:
    asked = row("unibp_4", architecture="vgg19_bn", defense="none")
    for pretrained, other in ((False, ["architecture"]), (True, [])):
        write(architecture="vgg19_bn", config__model={"_target_": "VGG19BN", "pretrained": pretrained})
        (match,) = published.Ours(cells(folder)).matches(asked)
        assert list(match.other) == other


def test_the_published_gradprune_knows_the_trigger(write: Write, folder: Path) -> None:
    write(key="a", defense="gradprune_oracle", assumes=["trigger"], spc=10, clean_ratio=None)
    write(key="b", defense="gradprune", spc=10, clean_ratio=None)
    asked = row("gradprune_1", attack="badnet", defense="gradprune", clean_data="spc:10")
    found = {m.cell["defense"]: set(m.other) for m in published.Ours(cells(folder)).matches(asked)}
    assert found == {"gradprune_oracle": set(), "gradprune": {"defense"}}


def test_an_ablation_answers_only_the_row_that_asks_for_it(write: Write, folder: Path) -> None:
    stages = {"activeness_finetune": {"_target_": "x.ActivenessFinetune", "optimizer": {"lr": 0.01}}}
    other = {"activeness_finetune": {"_target_": "x.ActivenessFinetune", "optimizer": {"lr": 0.1}}}
    write(key="a", defense="tsbd", config__defense__stages=stages)
    write(key="b", defense="tsbd", config__defense__stages=stages, repetition=1)
    write(key="c", defense="tsbd", config__defense__stages=other)
    ours = published.Ours(cells(folder))
    asked = {"attack": "badnet", "defense": "tsbd"}
    (usual,) = ours.matches(row("tsbd_7", clean_data="ratio:0.05", **asked))
    assert usual.cell["n"] == 2
    (varied,) = ours.matches(row("tsbd_8", setting="ft_lr=0.1", **asked))
    assert varied.cell["defense_label"] == "tsbd [activeness_finetune.optimizer.lr=0.1]"
    assert list(ours.matches(row("tsbd_8", setting="ft_lr=0.001", **asked))) == []


def test_only_tables_with_something_of_ours_are_listed(write: Write, folder: Path) -> None:
    write(dataset="digits", variant="digits")
    assert list(beside.tables(cells(folder))) == []
    write(key="k1")
    found = {table.name: table for table in beside.tables(cells(folder))}
    assert "published_unibp_1" in found
    assert "published_unibp_2" not in found  # GTSRB
    assert all("ours ACC" in heads(table) for table in found.values())


def test_a_table_without_ours_is_printed_alone() -> None:
    table = beside.table("unibp_1")
    assert not any(head.startswith("ours") for head in heads(table))
    assert len(table.rows) == 84
    assert any("No run of ours corresponds" in note for note in table.notes)
    found = row("unibp_1", clean_data="ratio:0.1", attack="badnet", defense="unibp")
    assert found["recomputed_der"]


def test_every_table_can_be_made() -> None:
    for name in published.names():
        table = beside.table(name)
        assert table.rows
        assert {len(r.cells) for r in table.rows} == {len(table.columns)}


def test_a_table_may_be_called_as_its_sweep_and_says_how_to_fill_it() -> None:
    table = beside.table("unibp_table1")
    assert table.name == "published_unibp_1"
    assert any("python -m backdoor_bench +sweep=unibp_table1" in note for note in table.notes)


def test_an_unknown_table_names_close_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown published table 'unib_1'. Did you mean unibp_1"):
        published.table("unib_1")
