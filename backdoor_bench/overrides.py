"""What a person types, made ready for Hydra: names checked, constants under swept groups rewritten."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf

from backdoor_bench import timm_source
from backdoor_bench.errors import ConfigError, unknown

FACTORS = ("width", "blocks")
"""Options that only networks of our own have."""
OPTIONAL = ("attack", "defense", "sweep")
"""Groups that a run may do without: Hydra wants a plus before their choice."""
NAMED = (*OPTIONAL, "dataset", "model", "preset", "logger")
"""Groups whose names a person knows by heart and may type alone."""
VALUED = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
          "--info", "-i", "--experimental-rerun", "--shell-completion")  # fmt: skip
"""Hydra's flags with a value behind them."""


def prepare(arguments: Sequence[str], *places: Path) -> list[str]:
    """The arguments to give to Hydra.

    ``places`` are the folders of configuration groups. Group choices that do not exist and misspelt groups are refused
    with close matches, words that are no ``NAME=VALUE`` with what to type. In a multirun, a constant under a swept
    group (``-m +attack=a,b attack.target_label=1``) becomes ``choice(...)``: Hydra applies constants before the swept
    groups exist, and would refuse it. In a sweep by name, attack and defense are such groups, and
    ``sweep.only.AXIS=VALUES`` becomes an entry of one mapping, for an axis may have dots of its own. ``attack=NAME`` is
    taken as ``+attack=NAME``.

    Raises:
        ConfigError: an unknown name.
    """
    plain = tuple(f"{group}=" for group in OPTIONAL)  # not the word alone, as in `--cfg job -p defense`
    arguments = [f"+{argument}" if argument.startswith(plain) else argument for argument in arguments]
    flags = [argument for argument in arguments if argument.startswith("-") and "=" not in argument]
    grid = any(argument.startswith(("+sweep=", "hydra/sweeper=grid")) for argument in arguments)
    multirun = grid or "-m" in flags or "--multirun" in flags
    arguments = _with_options(arguments, grid)
    folders = [*places, *_extra_folders(arguments)]
    _check_words(arguments, folders)
    parser = OverridesParser.create()
    parsed: list[Override | None] = []
    for position, argument in enumerate(arguments):
        if argument.startswith("-") or (position and arguments[position - 1] in ("--config-dir", "-cd")):
            parsed.append(None)
            continue
        try:
            parsed.append(parser.parse_overrides([argument])[0])
        except HydraException:
            _check_quotes(argument, parser)
            parsed.append(None)  # Hydra explains it better than we could
    overrides = [override for override in parsed if override is not None]
    for override in overrides:
        _check(override, folders, grid)
    _check_factors(overrides, folders)
    swept = {_root(override) for override in overrides if override.is_sweep_override() and _is_group(override, folders)}
    if grid:
        swept |= {"attack", "defense"}
    return [
        _as_sweep(argument, override) if override is not None and multirun and _depends(override, swept, grid) else
        argument for argument, override in zip(arguments, parsed, strict=True)
    ]  # fmt: skip


def is_plain(arguments: Sequence[str]) -> bool:
    """Whether prepared arguments say nothing but one run's options: no flag, no sweep, nothing of Hydra's own."""
    foreign = ("-", "sweep=", "hydra")
    return not any(argument.lstrip("+~").startswith(foreign) or "${hydra:" in argument for argument in arguments)


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


def _with_options(arguments: Sequence[str], grid: bool) -> list[str]:
    """``sweep.only.AXIS=VALUES`` gathered into one mapping; as it may be written itself, ``sweep.only={AXIS:VALUES}``.

    Raises:
        ConfigError: an option of sweeps without a sweep.
    """
    narrowing = [a.removeprefix("sweep.only.") for a in arguments if a.startswith("sweep.only.")]
    first = next((argument for argument in arguments if argument.startswith("sweep.")), None)
    if first is not None and not grid:
        raise ConfigError(f"{first}: only a sweep has this option; add +sweep=NAME, or hydra/sweeper=grid to -m")
    kept = [f"++{a}" if a.startswith("sweep.only=") else a for a in arguments if not a.startswith("sweep.only.")]
    pairs = ",".join(f"{axis}:{values}" for axis, _, values in (text.partition("=") for text in narrowing))
    return [*kept, f"++sweep.only={{{pairs}}}"] if narrowing else kept


def _check_quotes(argument: str, parser: OverridesParser) -> None:
    """Refuse a value that is one only in quotes, such as a path with an umlaut, and say how to write it."""
    name, equals, value = argument.partition("=")
    quoted = f"{name}='{value}'"
    if not equals or re.search(r"""[\[\]{}()'"$\\,]""", value):
        return
    try:
        parser.parse_overrides([quoted])
    except HydraException:
        return
    raise ConfigError(f'{argument}: such a value needs quotes of its own; type "{quoted}"')


def _check_words(arguments: Sequence[str], folders: Sequence[Path]) -> None:
    """Refuse what has no ``NAME=VALUE``, of which Hydra says ``missing EQUAL``, and options with dashes."""
    groups = {group: _names(group, folders) for group in NAMED}
    for before, word, after in zip(["", *arguments], arguments, [*arguments[1:], ""], strict=False):
        name, is_set, value = word.lstrip("+-").partition("=")
        if word.startswith("--") and (is_set or name in groups):
            if not _has_value(word.partition("=")[0]):
                raise ConfigError(f"{word}: options have no dashes; expected {_typed(name, value or 'NAME')}")
        elif word.startswith(("-", "~")) or _has_value(before):
            continue
        elif is_set and word.endswith(","):
            rest = after if after and "=" not in after else "VALUE"
            raise ConfigError(f"{word}: a space ends a value; expected {word}{rest}")
        elif not is_set:
            raise ConfigError(f"{word}: expected NAME=VALUE{_advice(before, name, groups)}")


def _has_value(word: str) -> bool:
    """Whether a word is a flag of Hydra's, shortened or not, with a value behind it."""
    return word in VALUED or (word.startswith("--") and any(flag.startswith(word) for flag in VALUED))


def _advice(before: str, name: str, groups: Mapping[str, Collection[str]]) -> str:
    """What else to type than a name alone."""
    if before.endswith("="):
        return f"; a space ends a value: type {before}{name}"
    if name in groups:
        return f", as in {_typed(name, min(groups[name]))}"
    found = [_typed(group, name) for group, names in groups.items() if name in names]
    if found:
        return f"; type {' or '.join(found)}"
    every = {known: group for group, names in groups.items() for known in names}
    close = [_typed(every[known], known) for known in difflib.get_close_matches(name, every, n=3)]
    return f". Did you mean {' or '.join(close)}?" if close else ", as in +attack=badnet or seed=1"


def _typed(group: str, name: str) -> str:
    return f"{'+' if group in OPTIONAL else ''}{group}={name}"


def _names(group: str, folders: Sequence[Path]) -> set[str]:
    return {path.stem for base in folders for path in (base / group).glob("*.yaml")}


def _depends(override: Override, swept: set[str], grid: bool) -> bool:
    """Whether a constant lies inside a node that only exists once a swept group is chosen, or chooses it."""
    if override.is_sweep_override() or override.is_delete():
        return False
    package = override.package or override.key_or_group
    return ("." in package or grid) and package.split(".")[0] in swept


def _as_sweep(argument: str, override: Override) -> str:
    name, _, value = argument.partition("=")
    return f"{name}=choice({value})"


def _check(override: Override, folders: Sequence[Path], grid: bool = False) -> None:
    group, root = override.key_or_group, _root(override)
    if root == "hydra":
        return  # Hydra's own groups, of which most options lie elsewhere
    groups = {folder.name for base in folders for folder in base.iterdir() if folder.is_dir()} - {"hydra"}
    if not _is_group(override, folders):
        if override.is_add() and "." not in group and not override.is_delete():
            close = difflib.get_close_matches(root, groups, n=1)
            if close:
                raise unknown("group", root, groups)
        return
    known = _names(group, folders)
    for name in _choices(override):
        if group == timm_source.GROUP and name.startswith(timm_source.PREFIX):
            from backdoor_bench.model.timm import require  # seconds, which the run itself would take

            require(name)
        elif grid and group in ("attack", "defense") and name == "none":
            continue
        elif name not in known and name not in ("null", "None", "") and "${" not in name:
            raise unknown(group.split("/")[-1], name, known)


def _check_factors(overrides: Sequence[Override], folders: Sequence[Path]) -> None:
    """Refuse a width or depth of a network that has none; Hydra would advise to add it."""
    chosen = [name for override in overrides if override.key_or_group == "model" for name in _choices(override)]
    given = {override.key_or_group for override in overrides if not override.is_delete()}
    for factor in [factor for factor in FACTORS if f"model.{factor}" in given]:
        files = [file for base in folders for file in base.glob("model/*.yaml")]
        having = sorted({file.stem for file in files if factor in OmegaConf.load(file)})
        for name in chosen:
            if name not in having:
                raise ConfigError(f"{name} is as published, without model.{factor}; {', '.join(having)} have one")


def _choices(override: Override) -> list[str]:
    """The values of a choice or of a sweep over choices, as text; none of a pattern, which fits what is there."""
    if isinstance(override.value(), Glob):
        return []
    values = override.sweep_string_iterator() if override.is_sweep_override() else [override.get_value_element_as_str()]
    return [re.sub(r"\\(.)", r"\1", str(value).split("=")[-1].strip("'\"")) for value in values]


def _is_group(override: Override, folders: Sequence[Path]) -> bool:
    return any((base / override.key_or_group).is_dir() for base in folders)


def _root(override: Override) -> str:
    return (override.package or override.key_or_group).split(".")[0].split("/")[0]


def _extra_folders(arguments: Sequence[str]) -> list[Path]:
    found = []
    for position, argument in enumerate(arguments):
        if argument in ("--config-dir", "-cd") and position + 1 < len(arguments):
            found.append(Path(arguments[position + 1]))
        elif argument.startswith("--config-dir="):
            found.append(Path(argument.partition("=")[2]))
    for folder in found:
        if not folder.is_dir():
            raise ConfigError(f"--config-dir {folder}: no such folder")
    return found
