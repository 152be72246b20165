"""The command: formats by name or by file ending, published tables, and one sentence for what goes wrong."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from backdoor_bench.report.__main__ import main
from tests.report.conftest import Write


@pytest.fixture
def store(write: Write, folder: Path) -> str:
    write()
    write(key="k1", attack="sig", victim="v1")
    return str(folder)


def test_the_terminal(store: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main([store, "--metrics", "acc,der", "attack=badnet"]) == 0
    text = capsys.readouterr().out
    assert "1 run, 1 victim" in text
    assert "81.50" in text  # DER
    assert "sig" not in text
    assert "unibp, Table 1" in text


@pytest.mark.parametrize(
    ("name", "part"),
    [("a.md", "# Results"), ("a.tex", r"\begin{tabular}"), ("a.csv", "dataset,variant"), ("a.html", "<!doctype html>")],
)
def test_the_ending_chooses_the_format(store: str, tmp_path: Path, name: str, part: str) -> None:
    assert main([store, "--out", str(tmp_path / "new" / name)]) == 0
    assert part in (tmp_path / "new" / name).read_text()


def test_a_page_for_each_set_of_records(store: str, write: Write, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (folder / "README.md").write_text("how")
    write(key="k2", repetition=1, asr=0.1)
    (other / "runs" / "k2").mkdir(parents=True)
    (folder / "runs" / "k2" / "0001.json").rename(other / "runs" / "k2" / "0001.json")
    assert main([store, str(other), "--pages", "--out", str(tmp_path / "docs" / "results.md")]) == 0
    top = (tmp_path / "docs" / "results.md").read_text()
    assert "[store](results/store.md): 2 runs, 2 victims; [how it was made](../store/README.md)" in top
    assert "[other](results/other.md): 1 run, 1 victim\n" in top
    assert "3 runs, 2 victims" in top
    assert "## Summary" in top
    assert "### Medians: cifar10, preact_resnet18 width 64, preset made\\_up" in top.replace("preact\\_", "preact_")
    for name, asr in (("store", "30.00"), ("other", "10.00")):
        page = (tmp_path / "docs" / "results" / f"{name}.md").read_text()
        assert "- Below: [Summary](#summary), [Measured](#measured), [Beside published figures]" in page
        assert asr in page
        assert ("| 10.00" in page) is (name == "other")


def test_pages_need_several_sources_and_a_file(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([store, "--pages", "--format", "markdown"]) == 1
    assert "--pages makes a page of each of several sources" in capsys.readouterr().err


def test_parquet_of_cells_and_of_runs(store: str, tmp_path: Path) -> None:
    assert main([store, "--out", str(tmp_path / "cells.parquet")]) == 0
    assert "asr_mean" in pd.read_parquet(tmp_path / "cells.parquet")
    assert main([store, "--runs", "--out", str(tmp_path / "runs.parquet")]) == 0
    assert list(pd.read_parquet(tmp_path / "runs.parquet").key) == ["k0", "k1"]


def test_a_published_table_with_and_without_records(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([store, "--table", "unibp_1", "--format", "markdown"]) == 0
    assert "| ours<br>ACC | ASR | DER | n |" in capsys.readouterr().out
    monkeypatch.setenv("BACKDOOR_BENCH_STORE", str(tmp_path / "none"))
    assert main(["--table", "unibp_1", "--format", "markdown"]) == 0
    assert "No run of ours corresponds" in capsys.readouterr().out
    assert main(["--table", "list"]) == 0
    assert "gradprune_1" in capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["atack=badnet"], "unknown column 'atack'. Did you mean attack"),
        (["--metrics", "asrr"], "unknown metric 'asrr'. Did you mean asr"),
        (["--format", "parquet"], "--format parquet needs a file"),
        (["--table", "unibp_1", "--format", "csv"], "--table is printed as terminal, markdown or latex"),
        (["--table", "unibp1"], "unknown published table 'unibp1'. Did you mean unibp_1"),
        (["--out", "/proc/none/a.md"], "cannot write /proc/none/a.md"),
    ],
)
def test_errors_are_one_sentence(
    store: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([store, *arguments]) == 1
    said = capsys.readouterr().err.replace("\n", " ")
    assert message in said
    assert "Traceback" not in said


def test_without_records_it_says_what_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty")]) == 1
    assert "make one first: python -m backdoor_bench +attack=badnet" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(("name", "ours"), [("pandas", False), ("backdoor_bench.report.nothing", True)])
def test_only_a_package_that_is_missing_is_called_missing(
    name: str, ours: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ModuleNotFoundError("none", name=name)

    monkeypatch.setattr("backdoor_bench.report.__main__._report", fail)
    if ours:
        with pytest.raises(ModuleNotFoundError):
            main([])
    else:
        assert main([]) == 1
        assert "reports need pandas; install it with: pip install 'backdoor_bench[report]'" in capsys.readouterr().err
