"""W&B from records: runs read back from offline folders, sent once; the dashboard as a spec. No account, no network."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from backdoor_bench.errors import ConfigError
from backdoor_bench.report import __main__ as report
from backdoor_bench.report import wandb as command
from backdoor_bench.report import wandb_dashboard
from backdoor_bench.tracking import wandb_content, wandb_runs
from backdoor_bench.tracking.wandb_runs import WandbRuns
from tests.read_wandb import read
from tests.report.conftest import RECORD, Write, changed

COUNTS = {"before": {"0": 95, "3": 5}, "after": {"0": 30, "1": 60, "3": 10}}


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without a W&B account."""
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    for name in ("WANDB_API_KEY", "BACKDOOR_BENCH_WANDB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


def sent(folder: Path) -> dict[str, Any]:
    return {(run := read(place)).id: run for place in (folder / "logs" / "wandb").glob("offline-run-*")}


def test_a_run_per_victim_with_its_cells_and_no_duplicates(
    write: Write, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(key="k0", repetition=0, asr=0.2, triggered_as=COUNTS)
    write(key="k1", repetition=1, asr=0.4)
    write(key="k2", defense="clp", status="failed", reason="DivergedError: NaN")
    write(key="k3", victim="v1", attack="wanet")
    assert report.main(["wandb", "--upload", str(folder), "--dir", str(folder / "logs")]) == 0
    runs = sent(folder)
    assert set(runs) == {"victim-v0", "victim-v1"}
    run = runs["victim-v0"]
    assert (run.group, run.job_type, run.exit_code) == ("badnet", "victim", 0)
    cells = {row["run"]: row for row in run.tables["cells"]}
    assert [cells[key]["asr"] for key in ("k0", "k1", "k2")] == [0.2, 0.4, None]
    assert (cells["k2"]["status"], cells["k2"]["reason"]) == ("failed", "DivergedError: NaN")
    assert run.summary["defenses"]["ft"]["asr"] == pytest.approx(0.3)
    assert run.summary["defenses"]["ft"]["n"] == 2
    assert (run.summary["runs"], run.summary["failed"], run.summary["asr"]) == (3, 1, 0.95)
    assert [(row["stage"], row["asr"]) for row in run.tables["stages"][:2]] == [("victim", 0.95), ("finetune", 0.3)]
    assert run.tables["triggered_as"][0] == {"run": "k0", "defense": "ft", "class": 0, "before": 95, "after": 30}
    assert "k2" not in {row["run"] for row in run.tables["triggered_as"]}
    # Again: nothing. One record more: its victim alone, in the place of the earlier folder.
    assert report.main(["wandb", "--upload", str(folder), "--dir", str(folder / "logs")]) == 0
    assert "0 W&B runs written to offline/backdoor_bench, 2 were there already" in capsys.readouterr().err
    write(key="k4", repetition=2, asr=0.35)
    assert report.main(["wandb", "--upload", str(folder), "--dir", str(folder / "logs")]) == 0
    assert "1 W&B runs written" in capsys.readouterr().err
    assert len(list((folder / "logs" / "wandb").glob("offline-run-*"))) == 2
    assert len(sent(folder)["victim-v0"].tables["cells"]) == 4


def test_a_run_per_run_with_filters(write: Write, folder: Path) -> None:
    write(key="k0", triggered_as=COUNTS)
    write(key="k1", repetition=1)
    arguments = ["--upload", "--per", "run", "--group", "mine", "repetition=0", str(folder), "--dir"]
    assert command.main([*arguments, str(folder / "logs")]) == 0
    (run,) = sent(folder).values()
    assert (run.id, run.group, run.project) == ("run-k0", "mine", "backdoor_bench")
    for name in ("acc", "asr", "ra", "der", "arr", "rdr", "poisoning_ratio", "architecture", "dataset", "attack",
                 "defense", "seed", "repetition"):  # fmt: skip
        assert run.summary[name] == RECORD[name], name
    assert [row["asr"] for row in run.history if "asr" in row] == [0.95, 0.3]
    assert {row["class"]: row["after"] for row in run.tables["triggered_as"]} == {0: 30, 1: 60, 3: 10}
    assert set(run.tags) == {"cifar10", "preact_resnet18", "badnet", "made_up"}


def test_a_killed_process_leaves_no_duplicate(write: Write, folder: Path) -> None:
    write(key="k0")
    arguments = ["--upload", "--per", "run", str(folder), "--dir", str(folder / "logs")]
    half = folder / "logs" / "wandb" / "offline-run-20200101_000000-run-k0"
    half.mkdir(parents=True)  # begun, and not in the ledger
    (folder / "logs" / "wandb" / wandb_runs.LEDGER).write_text('{"to": "offline/backdoor_bench", "id": "run')
    assert command.main(arguments) == 0
    assert not half.exists()
    assert set(sent(folder)) == {"run-k0"}
    assert command.main(arguments) == 0
    assert len(list((folder / "logs" / "wandb").glob("offline-run-*"))) == 1


def test_online_without_an_account_is_one_sentence(
    write: Write, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(key="k0")
    assert command.main(["--upload", "--online", str(folder)]) == 1
    said = capsys.readouterr().err
    assert "no W&B account is known here: run `wandb login` or set WANDB_API_KEY" in said
    assert "Traceback" not in said
    monkeypatch.setenv("BACKDOOR_BENCH_WANDB_OFFLINE", "false")
    assert command.main([]) == 1


def test_online_runs_resume_under_their_ids(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is asked of W&B, with a stand-in for it: no test reaches the network."""
    asked: list[dict[str, Any]] = []

    class Run(SimpleNamespace):
        def log(self, *_: Any, **__: Any) -> None: ...
        def finish(self, *_: Any, **__: Any) -> None: ...

    def init(**options: Any) -> Run:
        asked.append(options)
        return Run(summary={}, dir=str(tmp_path))

    stand_in = ModuleType("wandb")
    stand_in.__dict__.update(
        init=init, login=lambda **_: True, Table=dict, Settings=dict, Image=str, Error=type("Error", (Exception,), {})
    )
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    runs = WandbRuns(tmp_path, entity="me", offline=False)
    content = wandb_content.of_run(RECORD)
    assert runs.send(content)
    assert not runs.send(content)
    assert WandbRuns(tmp_path, entity="you", offline=False).send(content)  # another place has not got it
    assert [(one["id"], one["resume"], one["mode"], one["entity"]) for one in asked] == [
        ("run-k0", "allow", "online", "me"), ("run-k0", "allow", "online", "you"),
    ]  # fmt: skip


def test_what_differs_among_a_defense_s_cells_is_said() -> None:
    longer = changed({"key": "k1", "config__defense__epochs": 50})
    content = wandb_content.of_victim([RECORD, longer])
    said = {row[0]: row[content.tables["cells"].columns.index("differs")] for row in content.tables["cells"].rows}
    assert said == {"k0": "epochs=20", "k1": "epochs=50"}


def test_an_earlier_victim_has_no_counts_before() -> None:
    counts = {"before": None, "after": {"2": 7}}
    table = wandb_content.of_run(RECORD | {"triggered_as": counts}).tables["triggered_as"]
    assert list(table.rows) == [[2, None, 7]]


def test_unknown_grouping_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"logger\.per=cell: expected victim or run"):
        WandbRuns(tmp_path, per="cell")


def test_dashboard_as_a_file(tmp_path: Path) -> None:
    pytest.importorskip("wandb_workspaces")
    out = tmp_path / "board.json"
    assert report.main(["wandb", "--project", "p", "--out", str(out)]) == 0
    spec = json.loads(out.read_text())
    text = json.dumps(spec["workspace"])
    for wanted in ("All cells of all victims", "Leaderboard", "defenses.unibp.asr", "stage/unibp/asr", "triggered_as",
                   "your-entity/backdoor_bench_box", "your-entity/backdoor_bench_scatter", "Scatter Plot"):  # fmt: skip
        assert wanted in text, wanted
    assert spec["charts"]["backdoor_bench_box"]["mark"]["type"] == "boxplot"


def test_the_leaderboard_holds_blind_defenses_on_attacks_that_work() -> None:
    pytest.importorskip("wandb_workspaces")
    blind, knowing = wandb_dashboard.by_assumption()
    assert "gradprune_oracle" in knowing
    assert {"ft", "gradprune"} <= set(blind)
    board = next(s for s in wandb_dashboard.workspace("p", "me").sections if s.name == "Leaderboard")
    bars = {
        panel.title: {metric.name for metric in panel.metrics} for panel in board.panels if hasattr(panel, "metrics")
    }
    (apart,) = [names for title, names in bars.items() if "not to be ranked" in title]
    assert apart == {f"defenses.{name}.asr" for name in knowing}
    assert not any(
        "oracle" in name for title, names in bars.items() if "not to be ranked" not in title for name in names
    )
    for doubt in ("weak_attack", "victim_at_chance"):
        summary = wandb_content.of_victim([RECORD | {doubt: True}]).summary
        assert "defenses" not in summary
        assert summary["unranked"]["ft"]["n"] == 1


def test_panels_ask_for_what_runs_hold() -> None:
    """The dashboard's keys are those of the runs: a renamed one would leave a panel empty."""
    pytest.importorskip("wandb_workspaces")
    victim, run = wandb_content.of_victim([RECORD]), wandb_content.of_run(RECORD)
    text = json.dumps(wandb_dashboard.spec("p")["workspace"])
    assert set(victim.summary["defenses"]["ft"]) >= {"acc", "asr", "der"}
    assert all(f"stage/ft/{name}" in victim.history[0] and f"stage/ft/{name}" in text for name in ("acc", "asr", "ra"))
    assert {"defense_seconds", "victim_seconds", "der"} <= set(run.summary)
    assert {"asr", "acc", "rdr", "arr", "der", "defense"} <= set(victim.tables["cells"].columns)
