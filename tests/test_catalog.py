"""The catalogue says what conf/ and the classes say, and the page of the documentation is that."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_object
from rich.console import Console

from backdoor_bench import catalog
from backdoor_bench import config as configuration
from backdoor_bench.catalog import __main__ as command

PAGE = Path(__file__).resolve().parent.parent / "docs" / "catalog.md"


@pytest.fixture(scope="module")
def found() -> dict[str, list[catalog.Entry]]:
    return {what: catalog.entries(what) for what in catalog.GROUPS}


def entry(found: dict[str, list[catalog.Entry]], what: str, name: str) -> catalog.Entry:
    return next(entry for entry in found[what] if entry.name == name)


def test_every_leaf_of_conf_is_in_it(found) -> None:
    for what, group in catalog.GROUPS.items():
        leaves = sorted(path.stem for path in (configuration.directory() / group).glob("*.yaml"))
        assert [entry.name for entry in found[what]] == leaves


def test_the_page_is_not_stale(found) -> None:
    again = "run: python -m backdoor_bench.catalog --out docs/catalog.md"
    assert PAGE.read_text() == catalog.markdown(found), f"docs/catalog.md is not what conf/ says; {again}"


def test_every_entry_names_a_source_and_a_class(found) -> None:
    for kind in found.values():
        for one in kind:
            assert one.source, f"{one.choose}: its YAML begins without a comment"
            assert get_object(one.code) is not None


def test_taxonomy_is_the_class_s_own(found) -> None:
    for attack in found["attacks"]:
        assert attack.facts == asdict(get_object(attack.code).taxonomy)


def test_takes_and_gives_are_the_class_s_own(found) -> None:
    for stage in found["stages"]:
        kind = get_object(stage.code)
        takes = [port.kind.__name__ + ("" if port.required else " (optional)") for port in kind.ports()]
        gives = kind.gives()
        assert stage.facts == {"takes": takes, "gives": gives.__name__ if gives else None}, stage.name


def test_lengths_have_their_published_values(found) -> None:
    options = {option.name: option for option in entry(found, "defenses", "unibp").options}
    assert options["epochs"].default == 20
    assert options["stages.masked_finetune.epochs"].default == "(as defense.epochs)"
    assert options["stages.prune.noise"].default == 0.01  # the defense's, not the stage's 0.0
    assert options["stages.mask.k"].note.startswith("of what k_mode says")
    assert entry(found, "defenses", "unibp").stages["mask"] == "bn_fisher"


def test_a_class_among_the_options_and_its_arguments(found) -> None:
    options = {option.name: option.default for option in entry(found, "stages", "adversarial_mask_official").options}
    assert (options["optimizer"], options["optimizer.lr"], options["batch_size"]) == ("torch.optim.SGD", 0.2, 128)


def test_oracles_say_what_they_assume(found) -> None:
    assert entry(found, "defenses", "gradprune_oracle").facts["assumes"] == ["trigger"]


def test_what_must_be_given_says_so(found) -> None:
    options = {option.name: option.default for option in entry(found, "models", "torchvision").options}
    assert options["name"] == "(must be given)"


def test_terminal_shows_every_name(found) -> None:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    catalog.terminal(found, console)
    text = console.export_text()
    for kind in found.values():
        assert all(one.name in text for one in kind)


def test_json_of_one_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["attacks", "--format", "json"]) == 0
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert list(said) == ["attacks"]
    assert {"name": "delta", "default": 40.0, "note": "amplitude in 8-bit steps"} in next(
        attack["options"] for attack in said["attacks"] if attack["name"] == "sig"
    )


def test_unknown_kind_and_unwritable_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["atacks"]) == 1
    assert "'atacks' is no kind; expected attacks, defenses" in capsys.readouterr().err
    assert command.main(["attacks", "--out", "/proc/no/page.md"]) == 1
    assert "cannot write /proc/no/page.md" in capsys.readouterr().err


def test_it_starts_without_torch() -> None:
    code = (
        "import sys; from backdoor_bench import catalog; catalog.entries('attacks'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
