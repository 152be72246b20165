"""The capability table: what a cell says, and that the table follows from the cells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from backdoor_bench import capability
from backdoor_bench.capability import Cell, Cells
from backdoor_bench.errors import BenchError
from backdoor_bench.stage import DefenderView

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def cells(tmp_path: Path) -> Cells:
    return Cells(tmp_path)


def test_a_defense_that_works(cells: Cells) -> None:
    assert cells.run("clp", "preact_resnet18") == Cell("clp", "preact_resnet18", "works")


def test_a_defense_that_is_refused_says_what_is_missing_and_what_to_use(cells: Cells) -> None:
    cell = cells.run("clp", "vgg11")
    assert cell.status == "refused"
    assert cell.reason is not None
    assert "clp needs conv-BatchNorm2d pairs in the network, and TorchvisionNetwork (VGG) has none" in cell.reason
    assert "use another defense, e.g. ft" in cell.reason


def test_a_defense_that_fails_is_no_reason_to_stop(cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("out of luck\nand of words")

    monkeypatch.setattr(Cells, "_purify", fails)
    assert cells.run("ft", "preact_resnet18") == Cell("ft", "preact_resnet18", "failed", "RuntimeError: out of luck")


def test_a_purified_network_that_cannot_be_stored_does_not_work(
    defender_view: DefenderView, network: nn.Module
) -> None:
    node = {"_target_": "backdoor_bench.model.preact_resnet18.PreActResNet18", "width": 2}
    assert capability.what_is_wrong(network, node, defender_view) is None
    network.register_forward_hook(lambda _, __, logits: logits + 1)  # not in its description, not in its tensors
    assert "other logits when it is stored" in str(capability.what_is_wrong(network, node, defender_view))
    network.register_forward_hook(lambda _, __, logits: logits * torch.inf)
    assert "not finite" in str(capability.what_is_wrong(network, node, defender_view))


def test_every_length_is_the_least() -> None:
    lengths = capability.least_lengths()
    assert {"finetune_epochs", "unit_steps", "anp_iterations", "tsbd_unlearn_epochs", "gradprune_rounds"} <= set(
        lengths
    )
    assert not any(name.endswith(("batch_size", "_lr")) for name in lengths)
    assert {least for name, least in lengths.items() if name.endswith("images")} == {2}
    others = {name: least for name, least in lengths.items() if not name.endswith("images")}
    assert {name for name, least in others.items() if least != 1} == set(capability.LONGER)


def test_what_is_wanted() -> None:
    defenses, models = capability.wanted([])
    assert {"unit", "clp"} <= set(defenses)
    assert {"vit_b_16", "timm:convnext_atto"} <= set(models)
    assert not {"timm", "torchvision"} & set(models)
    assert capability.wanted(["defense=clp,ft", "model=timm:resnet18"]) == (["clp", "ft"], ["timm:resnet18"])
    for only, message in (("attack=badnet", "unknown part of --only"), ("model=vgg12", "unknown model 'vgg12'")):
        with pytest.raises(BenchError, match=message):
            capability.wanted([only])


CELLS = [
    Cell("clp", "small", "works"),
    Cell("clp", "large", "refused", "clp needs what large has not"),
    Cell("ft", "small", "works"),
    Cell("ft", "large", "failed", "RuntimeError: no"),
]


def test_the_table_by_hand_and_back(tmp_path: Path) -> None:
    capability.write({(cell.defense, cell.model): cell for cell in CELLS}, tmp_path)
    text = (tmp_path / "capability.md").read_text()
    assert "| `large` | refused [1](#reasons) | failed [2](#reasons) |\n| `small` | works | works |" in text
    assert "1. clp needs what large has not\n2. RuntimeError: no\n" in text
    assert "2 works, 1 refused, 1 failed." in text
    read = capability.read(tmp_path / "capability.json")
    assert sorted(read.values(), key=str) == sorted(CELLS, key=str)
    before = (tmp_path / "capability.json").read_bytes()
    capability.write(dict(reversed(read.items())), tmp_path)  # in another order: the same bytes
    assert (tmp_path / "capability.json").read_bytes() == before
    assert capability.read(tmp_path / "nothing.json") == {}


def test_the_command_keeps_the_cells_it_was_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def run(self: Cells, defense: str, model: str) -> Cell:
        asked.append((defense, model))
        return Cell(defense, model, "works")

    monkeypatch.setattr(Cells, "run", run)
    capability.write({("clp", "vgg11"): Cell("clp", "vgg11", "refused", "no BatchNorm2d")}, tmp_path)
    chosen = ["--out", str(tmp_path), "--only", "defense=clp", "model=vgg11,preact_resnet18"]
    assert capability.main([*chosen, "--missing"]) == 0
    assert asked == [("clp", "preact_resnet18")]
    assert capability.read(tmp_path / "capability.json")["clp", "vgg11"].status == "refused"
    assert capability.main(chosen) == 0
    assert asked[1:] == [("clp", "preact_resnet18"), ("clp", "vgg11")]  # the smaller network first
    assert capability.read(tmp_path / "capability.json")["clp", "vgg11"].status == "works"
    assert capability.main([*chosen[:2], "--only", "model=vgg12"]) == 1


def test_the_committed_table_follows_from_its_cells(tmp_path: Path) -> None:
    cells = capability.read(DOCS / "capability.json")
    capability.write(cells, tmp_path)
    table, made_by = ((DOCS / "capability.md").read_text(), (tmp_path / "capability.md").read_text())
    assert table.splitlines()[4:] == made_by.splitlines()[4:]  # above stand the versions that it was made with
    assert {defense for defense, _ in cells} <= set(capability.leaves("defense"))
    assert {model for _, model in cells} <= set(capability.models())
    assert [cell for cell in cells.values() if cell.status == "failed"] == []
    assert all(cell.reason for cell in cells.values() if cell.status != "works")
    assert json.loads((DOCS / "capability.json").read_text())["made_by"] == "python -m backdoor_bench.capability"
