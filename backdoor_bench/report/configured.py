"""The options that a method has as configured: what Hydra composes from ``conf/`` for a record's set, network, preset.

So a label says the same in every table, whatever else is in it. ``conf/`` of this version is asked; where it does not
have a record's data set, preset or method (a plugin's, a removed one), there is no answer.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

import yaml  # type: ignore[import-untyped]

from backdoor_bench import config as configuration
from backdoor_bench import timm_source
from backdoor_bench.errors import ConfigError
from backdoor_bench.report import reading

if TYPE_CHECKING:
    from backdoor_bench.sweep.compose import Composer


@cache
def defense(dataset: str, preset: str, name: str) -> str | None:
    """The ``defense_options`` of a run with nothing overridden, or None where ``conf/`` cannot say."""
    return _options("defense_options", dataset=dataset, preset=preset, defense=name)


@cache
def attack(dataset: str, preset: str, architecture: str, name: str | None) -> tuple[str, str] | None:
    """``attack_options`` and ``victim_options`` of a victim with nothing overridden; ``name`` None: a clean one."""
    place = {"dataset": dataset, "preset": preset, "model": architecture}
    if name is not None:
        place["attack"] = name
    given, trained = _options("attack_options", **place), _options("victim_options", **place)
    return None if trained is None or (given is None and name is not None) else (given or "{}", trained)


def _options(column: str, preset: str, **place: str) -> str | None:
    chosen = _preset(preset)
    known = (name in _names(group) or name.startswith(timm_source.PREFIX) for group, name in place.items())
    if chosen is None or not all(known):
        return None
    try:
        return reading.Rows().options(_composer().config({**place, **chosen}))[column]
    except ConfigError:  # it needs more than a name, as a folder of images does
        return None


@cache
def _names(group: str) -> frozenset[str]:
    return frozenset(path.stem for path in (configuration.directory() / group).glob("*.yaml"))


@cache
def _preset(name: str) -> dict[str, Any] | None:
    """The overrides that choose a preset, by the name in records, which may hold the preset's own values."""
    for path in sorted((configuration.directory() / "preset").glob("*.yaml")):
        written = yaml.safe_load(path.read_text())
        pattern = str(written.get("preset", written).get("name", path.stem))
        # scale_w${preset.width}_e${preset.epochs} is scale_w(?P<width>.+)_e(?P<epochs>.+)
        parts = re.split(r"\$\{preset\.(\w+)\}", pattern)
        regular = "".join(f"(?P<{part}>.+)" if n % 2 else re.escape(part) for n, part in enumerate(parts))
        found = re.fullmatch(regular, name)
        if found:
            values = {f"preset.{option}": yaml.safe_load(text) for option, text in found.groupdict().items()}
            return {"preset": path.stem, **values}
    return None


@cache
def _composer() -> Composer:
    from backdoor_bench.suspect.composed import loader
    from backdoor_bench.sweep.compose import Composer

    return Composer(loader())
