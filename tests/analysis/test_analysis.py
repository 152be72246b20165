"""Every analysis from configuration to files, on a tiny victim; and what the command refuses."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from backdoor_bench.analysis import __main__ as command
from backdoor_bench.analysis import activations, bn_shift, margin, tac, triggers, tsne, unlearning
from backdoor_bench.analysis.base import ANALYSES
from backdoor_bench.analysis.study import Study
from backdoor_bench.bench import Bench
from backdoor_bench.errors import ConfigError
from backdoor_bench.metric import Evaluator
from backdoor_bench.report.figure import style
from backdoor_bench.store import Store

MODULES = {
    "triggers": triggers, "bn_shift": bn_shift, "tsne": tsne, "activations": activations, "tac": tac,
    "unlearning": unlearning, "margin": margin,
}  # fmt: skip
Composed = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def kept() -> Iterator[dict[str, Any]]:
    """The study that all tests of this file look at."""
    return {}


@pytest.fixture
def study(compose: Composed, kept: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Study:
    """BadNets on digits, and what CLP made of it."""
    if not kept:
        configs = {name: compose("+attack=badnet", *([f"+defense={name}"] if name else []))
                   for name in (None, "clp", "anp", "tsbd", "fp")}  # fmt: skip
        bench = Bench(Store(tmp_path_factory.mktemp("analysis")))
        kept["study"] = Study(configs.__getitem__, bench, ["clp"], 60)
    return kept["study"]


def test_every_analysis_is_listed() -> None:
    assert set(MODULES) == set(ANALYSES)
    here = {path.stem for path in Path(command.__file__).parent.glob("*.py")}
    assert here - {"__init__", "__main__", "base", "study"} == set(ANALYSES)


@pytest.mark.parametrize("name", ANALYSES)
def test_from_victim_to_files(name: str, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(margin, "STEPS", 2)
    monkeypatch.setattr(margin.maximum_margin, "__defaults__", (2, margin.RATE))
    finding = MODULES[name].analyse(study)
    made = command.write(name, study, finding, tmp_path, ["png"])
    assert sorted(path.suffix for path in made) == [".csv", ".json", ".png"]
    facts = json.loads((tmp_path / f"{name}.json").read_text())
    assert facts["victim"] == study.plan.victim_key
    assert facts["sees_trigger"] is (name not in ("bn_shift", "margin"))
    with (tmp_path / f"{name}.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(finding.rows()) > 0
    with style.printed():
        figure = finding.draw()
        style.footnote(figure, [*study.caption(), *finding.notes()])
    figure.draw_without_rendering()
    drawn, page = figure.get_tightbbox(figure.canvas.get_renderer()), figure.get_size_inches()  # type: ignore[attr-defined]
    assert min(drawn.min) > -0.03
    assert drawn.max[0] < page[0] + 0.03
    assert drawn.max[1] < page[1] + 0.03
    assert all(panel.has_data() or not panel.axison for panel in figure.axes)


def test_triggered_images_are_the_clean_ones_with_the_trigger(study: Study) -> None:
    clean, triggered = study.untriggered, study.triggered
    assert torch.equal(clean.labels, triggered.data.labels)
    assert (triggered.attack_labels != clean.labels).all()
    changed = (clean.images != triggered.data.images).any(1)
    assert changed[:, -4:, -4:].any()
    assert not changed[:, :-4].any()


def test_a_purified_network_is_made_once_and_found_again(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    first = study.networks["clp"]
    again = Study(study.compose, study.bench, ["clp"], 60)
    capsys.readouterr()
    second = again.networks["clp"]
    assert "making and keeping it" not in capsys.readouterr().err
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())
    key = study.bench.plan(study.compose("clp")).key
    record = study.bench.store.record(key)
    assert record is not None
    evaluator: Evaluator = study.bench.evaluator(study.plan, study.data, study.victim.trigger)
    assert evaluator.measure(second).acc == record["acc"]


def test_the_victim_itself_is_not_changed(study: Study) -> None:
    before = {key: value.clone() for key, value in study.victim.network.state_dict().items()}
    tac.analyse(study)
    unlearning.analyse(study)
    assert all(torch.equal(value, before[key]) for key, value in study.victim.network.state_dict().items())


def test_marked_points_are_spread_over_the_test_images(study: Study) -> None:
    """Stored test sets are often sorted by class: the first ones would all be of one."""
    labels, found = study.triggered.data.labels, tsne.analyse(study).true
    assert [found[0], found[-1]] == [int(labels[0]), int(labels[-1])]
    assert len(found) == 12


def test_poison_unlearning_forgets_the_trigger(study: Study) -> None:
    found = unlearning.analyse(study)
    wanted = study.data.num_classes * 0  # the target label of the victim
    assert found.images == int((study.defender("tsbd")[1].train.labels != wanted).sum())
    assert not torch.equal(found.joined("clean"), found.joined("poison"))


def test_without_an_attack_there_is_one_sentence(compose: Composed, study: Study) -> None:
    clean = Study({None: compose()}.__getitem__, study.bench, (), 60)
    for name in ("triggers", "tsne", "activations", "tac", "unlearning"):
        with pytest.raises(ConfigError, match=r"needs a trigger, .* add \+attack=NAME"):
            MODULES[name].analyse(clean)
    found = bn_shift.analyse(clean).summary()["wasserstein_distance"]["victim"]
    assert found == {"mean": 0, "variance": 0, "gamma": 0, "beta": 0}


def test_a_victim_by_its_key(compose: Composed, study: Study) -> None:
    key = study.plan.victim_key
    same = Study({None: compose(f"victim={key}")}.__getitem__, study.bench, (), 60)
    assert same.plan.victim_key == key
    assert torch.equal(same.triggered.data.images, study.triggered.data.images)
    assert set(bn_shift.analyse(same).networks) == {style.CLEAN, "victim"}


def test_a_victim_from_a_file(compose: Composed, study: Study, tmp_path: Path) -> None:
    file = tmp_path / "suspect.safetensors"
    save_file({key: value.contiguous() for key, value in study.victim.network.state_dict().items()}, file)
    configs = {name: compose(f"victim={file}", *([f"+defense={name}"] if name else [])) for name in (None, "clp")}
    given = Study(configs.__getitem__, study.bench, ["clp"], 60)
    found = bn_shift.analyse(given)
    assert list(found.networks) == ["victim", "clp"]
    assert found.summary()["from"] == "victim"
    assert found.summary()["wasserstein_distance"]["clp"]["mean"] == 0


def test_what_belongs_to_whom() -> None:
    words = ["dataset=cifar10", "+attack=badnet", "+defense=ft,unibp", "defense.epochs=3"]
    assert command.split(words) == (["dataset=cifar10", "+attack=badnet"], ["ft", "unibp"], ["defense.epochs=3"])
    composer = command.Composer(["+attack=badnet"], ["ft", "unibp"], ["defense.epochs=3"])
    assert [composer(name)["defense"]["epochs"] for name in ("ft", "unibp", "tsbd")] == [3, 3, 20]
    assert "defense" not in composer(None)
    with pytest.raises(ConfigError, match="each defense once"):
        command.split(["+defense=ft,ft"])
    with pytest.raises(ConfigError, match=r"add \+defense=NAME"):
        command.split(["defense.epochs=3"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trigger"], "unknown analysis 'trigger'. Did you mean triggers"),
        (["tac", "+attack=badnett"], "unknown attack 'badnett'. Did you mean badnet"),
        (["tac", "+attack=badnet", "+defense=unibbp"], "unknown defense 'unibbp'. Did you mean unibp"),
        (["tac", "--formats", "gif"], "--formats gif: expected some of svg,pdf,png"),
        (["tac", "nonsense=1"], "nonsense"),
        (["tac", "--images", "1"], "--images 1: expected 2 or more"),
    ],
)
def test_refused_in_one_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command.main([*arguments, "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_without_matplotlib_no_work_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert command.main(["triggers", "+attack=badnet", f"store_dir={tmp_path / 'store'}"]) == 1
    assert capsys.readouterr().err == (
        "error: analyses need matplotlib; install it with pip install 'backdoor_bench[report]'\n"
    )
    assert not (tmp_path / "store").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["recipe.epochs=1", "recipe.width=2", "device=cpu", f"store_dir={tmp_path / 'store'}"]
    given: Mapping[str, Any] = {"--out": tmp_path / "out", "--formats": "png", "--images": 50}
    options = [str(word) for pair in given.items() for word in pair]
    assert command.main(["triggers", "+attack=badnet", *small, *options]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "triggers.csv",
        "triggers.json",
        "triggers.png",
    ]
    said = capsys.readouterr().err
    assert "the victim is not in" in said
    assert "training and keeping it" in said
