"""The model card lies beside what it is of."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from torch import Tensor

from backdoor_bench import output, table
from backdoor_bench.errors import ConfigError
from backdoor_bench.suspect import export


@pytest.mark.parametrize(
    ("file", "card"), [("a.safetensors", "a.md"), ("a.ts", "a.ts.md"), ("a.pt2", "a.pt2.md"), ("a.1.ts", "a.1.ts.md")]
)
def test_its_name(file: str, card: str) -> None:
    assert output.card_of(Path("out", file)) == Path("out", card)


def test_weights_and_a_program_of_one_name_each_keep_their_own(network, image_set, tmp_path: Path) -> None:
    images: Tensor = image_set.images[:2].float() / 255
    for file in ("out.safetensors", "out.ts"):
        export.write(network, export.check_target(tmp_path / file), f"# {file}", images)
    cards = {path.name: path.read_text() for path in tmp_path.glob("*.md")}
    assert cards == {"out.md": "# out.safetensors", "out.ts.md": "# out.ts"}
    (tmp_path / "out.ts").unlink()
    with pytest.raises(ConfigError, match=r"out\.ts\.md is there already"):
        export.check_target(tmp_path / "out.ts")


def test_the_printed_table_names_it() -> None:
    measured = {"acc": 0.9, "asr": None, "ra": None}
    record = {
        "attack": None, "defense": "ft", "assumes": [], "variant": "digits", "architecture": "a", "before": measured,
        "victim_was": "given", "victim_seconds": None, "stages": [], "preset": "default", "exported": "out/a.ts",
        **measured,
    }  # fmt: skip
    written = io.StringIO()
    table.print_run(record, "0001.json", Console(file=written, width=120))
    assert "exported: out/a.ts, model card: out/a.ts.md\n" in written.getvalue()
