"""Records as CSV: a row per measured state, filters, and what is said where nothing fits."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from backdoor_bench.records import COLUMNS, main

STORE = Path(__file__).parents[1] / "docs" / "gallery" / "digits"


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_per_measured_state_and_one_for_the_run(tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    assert main([str(target), "--store-dir", str(STORE), "attack=badnet", "defense=unibp"]) == 0
    found = table(target)
    assert list(found[0]) == list(COLUMNS)
    runs = {row["key"]: [r for r in found if r["key"] == row["key"]] for row in found}
    for rows in runs.values():
        assert (rows[0]["stage"], rows[-1]["stage"]) == ("victim", "final")
        assert {(row["attack"], row["defense"]) for row in rows} == {("badnet", "unibp")}
        assert rows[-1]["acc"] == rows[-2]["acc"] != ""


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (["atack=badnet"], "unknown column 'atack'. Did you mean attack"),
        (["attack=nothing"], "no record in"),
        (["attack"], "error: attack: expected COLUMN=VALUE, as in dataset=cifar10"),
    ],
)
def test_what_does_not_fit_is_said_and_nothing_is_written(
    filters: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.csv"
    assert main([str(target), *filters, "--store-dir", str(STORE)]) == 1
    assert message in capsys.readouterr().err
    assert not target.exists()


def test_a_file_that_cannot_be_written_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["/proc/no/out.csv", "--store-dir", str(STORE)]) == 1
    assert "error: cannot write /proc/no/out.csv: No such file or directory; choose" in capsys.readouterr().err


def test_the_help_names_the_file_to_write(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "OUT.csv" in capsys.readouterr().out
