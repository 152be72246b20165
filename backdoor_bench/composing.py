"""What a command would run, composed before Hydra's own main is asked: misspelt options are told with close matches."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig

from backdoor_bench.errors import ConfigError, unknown


def is_plain(arguments: Sequence[str]) -> bool:
    """Whether prepared arguments say nothing but one run's options: no flag, no sweep, nothing of Hydra's own."""
    foreign = ("-", "sweep=", "hydra")
    return not any(argument.lstrip("+~").startswith(foreign) or "${hydra:" in argument for argument in arguments)


def shared(arguments: Sequence[str], sweeps: Path) -> list[str]:
    """The options that all runs of a command have, flags or not; [] where other configurations than ours are named.

    Of a multirun those of its first job, of a sweep by name what is no axis of it: to see whether they exist.
    """
    flags = {argument for argument in arguments if argument.startswith("-")}
    if not flags <= {"-m", "--multirun", "--cfg", "-c", "--resolve", "--package", "-p"}:
        return []
    given = [a for a in arguments if not a.startswith(("-", "hydra")) and ("=" in a or a.startswith("~"))]
    if any(argument.startswith(("+sweep=", "hydra/sweeper=grid")) for argument in arguments):
        try:
            parsed = OverridesParser.create().parse_overrides(given)
        except HydraException:
            return []
        constants = [a for a, override in zip(given, parsed, strict=True) if not override.is_sweep_override()]
        return [f"hydra.searchpath=[file://{sweeps}]", *constants]
    return first_job(given)


def first_job(arguments: Sequence[str]) -> list[str]:
    """The options of a multirun's first job: of each sweep its first value; [] where only Hydra can list them."""
    given = [argument for argument in arguments if not argument.startswith("-")]
    if not is_plain(given):
        return []
    try:
        parsed = OverridesParser.create().parse_overrides(given)
        return [
            f"{override.get_key_element()}={next(override.sweep_string_iterator())}"
            if override.is_sweep_override() else argument for argument, override in zip(given, parsed, strict=True)
        ]  # fmt: skip
    except (HydraException, StopIteration):
        return []


def compose_run(arguments: Sequence[str], conf: Path) -> DictConfig | None:
    """The configuration of one run, from plain arguments; None where Hydra itself is to say what is wrong with them.

    Raises:
        ConfigError: a misspelt option, which Hydra would advise to add under that name.
    """
    misspelt: list[str] = []
    with initialize_config_dir(str(conf), version_base="1.3"):
        while True:
            try:
                node = compose("config", [a for a in arguments if a.partition("=")[0] not in misspelt])
                break
            except ConfigCompositionException as error:
                found = re.match(r"Could not override '([\w.]+)'", str(error))
            except HydraException:
                found = None
            if found is None or found[1] in misspelt:
                return None
            misspelt.append(found[1])
    if not misspelt:
        return node
    path: list[str] = []
    for part in misspelt[0].split("."):
        where = ".".join(path)
        if not isinstance(node, DictConfig):
            raise ConfigError(f"{misspelt[0]}: {where} is one value, {node}, without options of its own")
        if part not in node:
            if part in ("attack", "defense") and not path:
                raise ConfigError(f"{misspelt[0]}: no {part} is chosen; add +{part}=NAME")
            raise unknown(f"option of {where}" if where else "option", part, map(str, node))
        node = node[part]
        path.append(part)
    return None
