"""Test sets of an attack's own: measured at every point, recorded, printed, and never seen by a defense."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from backdoor_bench import experiment
from backdoor_bench import records as export
from backdoor_bench.attack.wanet import WaNet
from backdoor_bench.bench import Bench
from backdoor_bench.dataset import ImageSet
from backdoor_bench.experiment import Outcome
from backdoor_bench.metric import Measurement
from backdoor_bench.remeasure import remeasure
from backdoor_bench.store import Store, files
from backdoor_bench.table import print_run

RUN = ("+attack=wanet", "+defense=ft", "save_purified=true", "dataset.max_test=60")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def done(store: Store, compose: Callable[..., dict[str, Any]]) -> Outcome:
    """Run by the first test that asks, found by the others."""
    return experiment.run(compose(*RUN), Bench(store))


def test_a_record_has_them_wherever_something_was_measured(done: Outcome, store: Store) -> None:
    record = json.loads(json.dumps(done.record))
    states = [record["before"], *record["stages"], record]
    assert [list(state["extra"]) for state in states] == [["float_asr", "noise_acc"]] * 3
    assert record["extra"] == record["stages"][-1]["extra"]
    assert all(0 <= state["extra"]["noise_acc"] <= 1 for state in states)
    victim = store.load("victims", record["victim"])
    assert victim is not None
    assert victim.manifest["measured"]["extra"] == record["before"]["extra"]
    again = remeasure(store, record["key"])
    assert again.pairs[-1] == ("noise_acc", record["extra"]["noise_acc"], record["extra"]["noise_acc"])


def test_table_and_csv_show_them(done: Outcome, store: Store, tmp_path: Path) -> None:
    written = io.StringIO()
    print_run(done.record, done.path, Console(file=written, width=160))
    assert "RA % ┃ FLOAT ASR % ┃ NOISE ACC % ┃ seconds" in written.getvalue()
    row = next(line for line in written.getvalue().splitlines() if "purified" in line)
    assert f"{100 * done.record['extra']['noise_acc']:.2f}" in row
    export.write(store, tmp_path / "out.csv", {"attack": "wanet"})
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [*export.COLUMNS, "float_asr", "noise_acc"]
    assert [float(row["noise_acc"]) for row in (rows[0], rows[-1])] == [
        done.record[when]["noise_acc"] if when == "extra" else done.record[when]["extra"]["noise_acc"]
        for when in ("before", "extra")
    ]


def test_float_asr_is_that_of_triggered_images_before_they_are_rounded(
    done: Outcome, store: Store, compose: Callable[..., dict[str, Any]]
) -> None:
    bench = Bench(store)
    plan = bench.plan(compose(*RUN))
    data = bench.data(plan)
    victim = bench.victim(plan, data)
    assert victim.trigger is not None
    kept = data.test[data.test.labels != 0]
    with torch.inference_mode():
        predicted = victim.network(victim.trigger(kept.images / 255)).argmax(1)
    assert done.record["before"]["extra"]["float_asr"] == int((predicted == 0).sum()) / len(kept)


def test_a_defense_never_sees_them(
    done: Outcome, store: Store, compose: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The purified network keeps its bits whatever they hold, and none of their images is in the defender's view."""
    purified = store.load("purified", done.record["key"])
    assert purified is not None
    sets: list[ImageSet] = []

    def other(attack: WaNet, test: ImageSet, *_: Any) -> dict[str, ImageSet]:
        draws = torch.Generator().manual_seed(3)
        noise = torch.randint(0, 256, test.images.shape, dtype=torch.uint8, generator=draws)
        sets.append(ImageSet(noise, test.labels.flip(0)))
        return {"noise_acc": sets[-1], "empty_acc": sets[-1][torch.zeros(0, dtype=torch.int64)]}

    monkeypatch.setattr(WaNet, "test_sets", other)
    bench = Bench(store)
    plan = bench.plan(compose(*RUN))
    data = bench.data(plan)
    victim = bench.victim(plan, data)
    network, final = experiment.purify(
        plan, bench, data, victim, bench.evaluator(plan, data, victim.trigger), {"stages": []}
    )
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, purified.tensors["network"][name]), name
    # The victim was stored with one of the two: it is measured again, and what has no image is null.
    assert sets
    for measured, when in ((victim.measurement, done.record["before"]), (final, done.record)):
        assert measured.extra["empty_acc"] is None
        assert measured.extra["noise_acc"] != when["extra"]["noise_acc"]


def test_a_victim_stored_before_they_were_measured_is_measured_again(
    done: Outcome, store: Store, compose: Callable[..., dict[str, Any]]
) -> None:
    path = store.root / "victims" / done.record["victim"] / "manifest.json"
    kept = path.read_text()
    manifest = files.read_json(path)
    del manifest["measured"]["extra"]
    path.write_text(json.dumps(files.seal(manifest)))
    try:
        bench = Bench(store)
        plan = bench.plan(compose(*RUN))
        measured = bench.victim(plan, bench.data(plan)).measurement
    finally:
        path.write_text(kept)
    assert measured.fractions == done.record["before"]


def test_what_has_none_is_recorded_as_ever() -> None:
    assert Measurement(0.5).fractions == {"acc": 0.5, "asr": None, "ra": None}
    assert Measurement(0.5).describe() == {"acc": 0.5, "asr": None, "ra": None, "triggered_as": None}
