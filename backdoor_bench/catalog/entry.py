"""The entries, from ``conf/`` and the classes that it names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf

from backdoor_bench import config as configuration
from backdoor_bench.catalog import leaf, source

GROUPS = {"attacks": "attack", "defenses": "defense", "stages": "stage", "datasets": "dataset", "models": "model"}
"""What a person asks for, and the configuration's group."""
CHOICE = {"attack": "+attack={}", "defense": "+defense={}", "stage": "stage@defense.stages.NAME={}",
          "dataset": "dataset={}", "model": "model={}"}  # fmt: skip
FACTS = ("assumes", "requires", "instead")
_HIDDEN = {"_target_", "_partial_", "name", *FACTS}
_LENGTH = re.compile(r"\$\{length:\s*\w+\s*,\s*([^}]*)\}")


@dataclass(frozen=True)
class Option:
    """One hyper-parameter: its name as on the command line below the entry, its default, the YAML's comment."""

    name: str
    default: Any
    note: str = ""


@dataclass(frozen=True)
class Entry:
    """One method, data set or network.

    Args:
        name: as on the command line.
        choose: the override that chooses it.
        source: the comment at the top of its YAML: the paper, and what is not as published.
        summary: first line of the class's docstring, or of its module's.
        code: where the class is, as ``backdoor_bench.attack.wanet.WaNet``.
        facts: taxonomy of an attack; assumes, requires and instead of a defense; takes and gives of a stage.
        stages: of a defense: name to leaf of ``conf/stage``.
        options: in the YAML's order. A length that presets and recipes may shorten has its published value.
    """

    name: str
    choose: str
    source: str
    summary: str
    code: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    stages: Mapping[str, str] = field(default_factory=dict)
    options: Sequence[Option] = ()


def entries(what: str) -> list[Entry]:
    """All entries of a kind, a key of :data:`GROUPS`, by name."""
    folder = configuration.directory() / GROUPS[what]
    with hydra.initialize_config_dir(str(folder.parent), version_base="1.3"):
        return [_entry(path) for path in sorted(folder.glob("*.yaml"))]


def _entry(path: Path) -> Entry:
    group = path.parent.name
    composed = OmegaConf.to_container(hydra.compose(f"{group}/{path.stem}"), resolve=False)
    assert isinstance(composed, dict)
    node, notes = composed[group], dict(leaf.notes(path))
    target = str(node["_target_"])
    options = [Option(name, _shown(value), notes.get(name, "")) for name, value in _flat(node)]
    options.sort(key=lambda option: option.name.startswith("stages."))  # a defense's own first
    steps = leaf.stages(path)
    summary = (
        "" if target == "backdoor_bench.defense.Defense" else source.summary(target)
    )  # its stages say what it does
    return Entry(
        path.stem, CHOICE[group].format(path.stem), leaf.head(path), summary, target, _facts(group, target, node),
        steps, options,
    )  # fmt: skip


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Options by dotted name; a class that is an option (an optimiser) stands under the option's own name."""
    for key, value in node.items():
        if key in _HIDDEN and not (key == "name" and value == "???"):
            continue
        if isinstance(value, Mapping):
            if "_target_" in value and not str(value["_target_"]).startswith("backdoor_bench."):
                yield f"{prefix}{key}", str(value["_target_"])
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(value: Any) -> Any:
    """``${length:NAME,VALUE}`` as the value, which is the published one; other interpolations say where they look."""
    if isinstance(value, list):
        return [_shown(item) for item in value]
    if not isinstance(value, str) or value == "???":
        return "(must be given)" if value == "???" else value
    published = _LENGTH.fullmatch(value)
    if published:
        return yaml.safe_load(published[1])
    return re.sub(r"\$\{\.*([^}:]*)\}", r"(as \1)", value)


def _facts(group: str, target: str, node: Mapping[str, Any]) -> dict[str, Any]:
    if group == "attack":
        return source.taxonomy(target)
    if group == "defense":
        return {name: node.get(name, []) for name in FACTS}
    return source.ports(target) if group == "stage" else {}
