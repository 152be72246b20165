"""Every record counts once; what cannot be read is named and counted; filters say what they do not know."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from backdoor_bench.errors import ConfigError
from backdoor_bench.experiment import RECORD_FORMAT
from backdoor_bench.report import frame, pool, reading
from tests.report.conftest import Write


def reasons(records: frame.Records) -> dict[str, str]:
    return {Path(skip.path).parent.name: skip.kind for skip in records.skipped}


def test_a_record_is_a_row(write: Write, folder: Path) -> None:
    write()
    records = frame.load([folder])
    run = records.runs.iloc[0]
    assert (run.key, run.attack, run.defense, run.width, run.regime) == ("k0", "badnet", "ft", 64, "clean 5%")
    assert (run.acc, run.before_asr, run.der) == (0.88, 0.95, 0.815)
    assert (run.victim_epochs, run.defense_epochs, run.defense_seconds, run.peak_mib) == (100, 20, 2.0, 120.0)
    assert pd.isna(run.spc)
    assert not run.weak_attack
    stage = records.stages.iloc[0]
    assert (stage.key, stage.position, stage.stage, stage.asr) == ("k0", 0, "finetune", 0.3)
    assert json.loads(stage.report) == {"a": 1}
    assert records.notes() == ["1 run, 1 victim"]


def test_a_victim_alone_has_no_regime(write: Write, folder: Path) -> None:
    write(defense=None, der=None)
    run = frame.load([folder]).runs.iloc[0]
    assert pd.isna(run.defense)
    assert pd.isna(run.regime)
    assert pd.isna(run.defense_seconds)
    assert math.isnan(run.der)


def test_it_reads_the_records_that_are_written_now() -> None:
    assert reading.READS == RECORD_FORMAT


def test_what_cannot_be_read_is_named_counted_and_left_out(write: Write, folder: Path) -> None:
    write(key="good")
    half = write(key="half")
    half.write_text(half.read_text()[:300])
    altered = write(key="altered")
    altered.write_text(altered.read_text().replace('"acc": 0.88', '"acc": 0.99'))
    nan = write(key="nan")
    nan.write_text(nan.read_text().replace('"asr": 0.3', '"asr": NaN'))
    write(key="newer", format=RECORD_FORMAT + 1)
    write(key="none", format=None)
    write(key="text", acc="0.9")
    write(key="seven", acc=7.0)
    write(key="both", asr=0.7, ra=0.7)
    write(key="lost", acc=None)
    write(key="odd", status="maybe")
    (folder / "runs" / "empty").mkdir()
    (folder / "runs" / "empty" / "0001.json").write_text("[]")
    (folder / "runs" / "good" / ".0002.json.tmp").write_text("{")  # another process is writing it
    records = frame.load([folder])
    assert list(records.runs.key) == ["good"]
    assert records.runs.acc.mean() == 0.88
    assert reasons(records) == {
        "half": "damaged", "altered": "damaged", "empty": "damaged", "nan": "not a number", "text": "not a number",
        "newer": "other version", "none": "other version", "seven": "out of range", "both": "out of range",
        "lost": "incomplete", "odd": "incomplete",
    }  # fmt: skip
    notes = "\n".join(records.notes())
    assert "3 files skipped (damaged)" in notes
    assert "and 2 more" in notes
    assert f"format {RECORD_FORMAT + 1}, and this version reads up to {RECORD_FORMAT}: update it" in notes


def test_a_run_counts_once_by_its_latest_good_attempt(write: Write, folder: Path, tmp_path: Path) -> None:
    write(key="k1", attempt=1, acc=0.5)
    write(key="k1", attempt=2, acc=0.6, started="2026-01-02T00:00:00Z")
    write(key="k1", attempt=3, status="failed", reason="no disk", started="2026-01-03T00:00:00Z")
    copy = tmp_path / "copy.json"
    copy.write_bytes((folder / "runs" / "k1" / "0002.json").read_bytes())
    records = frame.load([folder, copy])
    assert list(records.runs.acc) == [0.6]
    assert len(records.stages) == 1
    assert list(records.repeated.values()) == [1, 2, 0]
    assert "1 copies of records not counted again" in records.notes()
    assert "2 earlier attempts not counted again" in records.notes()


def test_a_failed_run_is_a_row_with_its_reason_and_in_no_mean(write: Write, folder: Path) -> None:
    write()
    write(key="k1", status="failed", reason="x" * 1000, acc=0.1)
    records = frame.load([folder])
    failed = records.runs[records.runs.status == "failed"].iloc[0]
    assert math.isnan(failed.acc)
    assert len(failed.reason) == reading.LONGEST
    assert list(records.ok.acc) == [0.88]
    assert "1 failed" in records.notes()


@pytest.mark.parametrize(
    ("filters", "keys"),
    [
        (["attack=sig"], ["k1"]),
        (["attack=sig,badnet", "defense=ft"], ["k0", "k1", "k3"]),
        (["attack=none"], ["k2"]),
        (["spc=10"], ["k3"]),
        (["clean_ratio=0.05", "attack=badnet"], ["k0"]),
        (["regime=spc 10"], ["k3"]),
        (["weak_attack=true"], ["k1"]),
        ({"acc": "0.88", "attack": "badnet"}, ["k0", "k3"]),
    ],
)
def test_filters(write: Write, folder: Path, filters: list[str], keys: list[str]) -> None:
    write()
    write(key="k1", attack="sig", weak_attack=True)
    write(key="k2", attack=None, poisoning_ratio=None)
    write(key="k3", spc=10, clean_ratio=None)
    assert list(frame.load([folder], filters).runs.key) == keys


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (["atack=badnet"], "unknown column 'atack'. Did you mean attack"),
        (["attack=badnt"], "unknown attack in these records 'badnt'. Did you mean badnet? Known: badnet, sig."),
        (["badnet"], "'badnet' is no filter; expected COLUMN=VALUE"),
        (["clean_ratio=five"], "clean_ratio=five: expected a number or none"),
        (["attack=sig", "defense=fp"], "no record fits attack=sig defense=fp; each value occurs, but not together"),
    ],
)
def test_filters_that_do_not_fit_say_why(write: Write, folder: Path, filters: list[str], message: str) -> None:
    write()
    write(key="k1", attack="sig")
    write(key="k2", defense="fp")
    with pytest.raises(ConfigError) as error:
        frame.load([folder], filters)
    assert message in str(error.value)


def test_without_records_it_says_what_to_run(folder: Path, write: Write) -> None:
    with pytest.raises(
        ConfigError, match=r"no store, folder or file .* make one first: python -m backdoor_bench \+attack"
    ):
        frame.load([folder])
    folder.mkdir()
    with pytest.raises(ConfigError, match=r"make one first: python -m backdoor_bench \+attack=badnet"):
        frame.load([folder])
    write().write_text("{")
    with pytest.raises(ConfigError, match=r"1 file skipped; the first: .*not a whole JSON file"):
        frame.load([folder])


def test_several_processes_read_what_one_reads(write: Write, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(7):
        write(key=f"k{number}", repetition=number, acc=0.8 + number / 100)
    write(key="half").write_text("{")
    alone = frame.load([folder])
    monkeypatch.setattr(pool, "FEWEST", 1)
    monkeypatch.setattr(pool, "CHUNK", 2)
    monkeypatch.setattr(pool, "_cores", lambda: 2)
    together = frame.load([folder])
    pd.testing.assert_frame_equal(together.runs, alone.runs)
    pd.testing.assert_frame_equal(together.stages, alone.stages)
    assert together.skipped == alone.skipped
    assert len(alone.runs) == 7


def test_parquet_gives_back_the_same_frames(write: Write, folder: Path, tmp_path: Path) -> None:
    write()
    write(key="k1", defense=None, attack=None, poisoning_ratio=None, asr=None, ra=None)
    write(key="k2", status="failed", reason="no disk")
    records = frame.load([folder])
    frame.to_parquet(records, tmp_path / "all.parquet")
    again = frame.load([tmp_path / "all.parquet"])
    pd.testing.assert_frame_equal(again.runs, records.runs)
    pd.testing.assert_frame_equal(again.stages, records.stages)
    assert [path.name for path in tmp_path.glob("*.tmp")] == []


def test_a_compacted_store_reads_new_records_and_forgets_removed_ones(write: Write, folder: Path) -> None:
    write()
    gone = write(key="k1", repetition=1)
    frame.compact(folder)
    gone.unlink()
    write(key="k2", repetition=2)
    assert list(frame.load([folder]).runs.key) == ["k0", "k2"]


def test_a_damaged_compacted_file_is_said_and_not_needed(write: Write, folder: Path) -> None:
    write()
    frame.compact(folder).write_bytes(b"PAR1")
    records = frame.load([folder])
    assert list(records.runs.key) == ["k0"]
    assert "read from 1 single files instead" in records.notes()[-1]
    with pytest.raises(ConfigError, match="holds no records"):
        frame.load([folder / frame.COMPACTED])


def test_a_parquet_file_of_something_else_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(ConfigError, match="holds no records: not written by this version's to_parquet"):
        frame.load([tmp_path / "other.parquet"])


def test_a_report_needs_no_torch() -> None:
    code = (
        "import sys; import backdoor_bench.report.__main__, backdoor_bench.report.frame; print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_a_network_that_came_as_a_file_is_neither_clean_nor_ours(write: Write, folder: Path) -> None:
    write(key="k1", given={"sha256": "0" * 64}, attack=None, asr=None, ra=None)
    write(key="k2", given={"sha256": "0" * 64}, attack="badnet")
    assert list(frame.load([folder]).runs.attack) == ["unknown (given file)", "badnet (given file)"]
