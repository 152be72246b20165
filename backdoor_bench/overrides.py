"""What a person types, made ready for Hydra: names checked, constants under swept groups rewritten."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from backdoor_bench import timm_source
from backdoor_bench.errors import ConfigError, unknown

FACTORS = ("width", "blocks")
"""Options that only networks of our own have."""
OPTIONAL = ("attack", "defense", "sweep")
"""Groups that a run may do without: Hydra wants a plus before their choice."""
NULL = "${oc.decode:null}"
"""A null that Hydra's ``choice(...)`` takes."""
NAMED = (*OPTIONAL, "dataset", "model", "preset", "logger")
"""Groups whose names a person knows by heart and may type alone."""
PLACED = {"stage": "stage@defense.stages.prune", "schedule": "schedule@recipe.scheduler"}
"""Groups that are chosen for a place of the configuration, with such a place."""
FOREIGN = ("--config", "-cn", "-cp", "-cd", "hydra.searchpath=")
"""What brings configurations that are not ours, and may need or read options that ours do not."""
VALUED = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
          "--info", "-i", "--experimental-rerun", "--shell-completion")  # fmt: skip
"""Hydra's flags with a value behind them."""


def prepare(arguments: Sequence[str], *places: Path) -> list[str]:
    """The arguments to give to Hydra.

    ``places`` are the folders of configuration groups. Group choices that do not exist and misspelt groups are refused
    with close matches, words that are no ``NAME=VALUE`` with what to type. In a multirun, a constant under a swept
    group (``-m +attack=a,b attack.target_label=1``) becomes ``choice(...)``: Hydra applies constants before the swept
    groups exist, and would refuse it. In a sweep by name, attack, defense, dataset and model are such groups, and
    ``sweep.only.AXIS=VALUES`` becomes an entry of one mapping, for an axis may have dots of its own. ``attack=NAME`` is
    taken as ``+attack=NAME``, and ``+dataset=NAME`` as ``dataset=NAME``.

    Raises:
        ConfigError: an unknown name.
    """
    plain = tuple(f"{group}=" for group in OPTIONAL)  # not the word alone, as in `--cfg job -p defense`
    arguments = [f"+{argument}" if argument.startswith(plain) else argument for argument in arguments]
    own = not any(argument.startswith(FOREIGN) for argument in arguments)
    if own:
        always = tuple(f"+{group}=" for group in _always(places[0]) if (places[0] / group).is_dir())
        arguments = [argument.removeprefix("+") if argument.startswith(always) else argument for argument in arguments]
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
        if own:
            _check_root(override, places[0], arguments)
    _check_factors(overrides, folders)
    _check_once(overrides)
    if multirun and not any(argument.startswith("hydra/sweeper=") for argument in arguments):
        _check_ends(overrides)
    swept = {_root(override) for override in overrides if override.is_sweep_override() and _is_group(override, folders)}
    if grid:
        swept |= {"attack", "defense", "dataset", "model"}
    return [
        _as_sweep(argument, override) if override is not None and multirun and _depends(override, swept, grid) else
        argument for argument, override in zip(arguments, parsed, strict=True)
    ]  # fmt: skip


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


def flags_last(arguments: Sequence[str]) -> list[str]:
    """Options, then flags with what stands behind them: Hydra's parser takes options in one place only."""
    pairs = list(zip(["", *arguments], arguments, strict=False))
    flags = [word for before, word in pairs if word.startswith("-") or _has_value(before)]
    return [word for before, word in pairs if not word.startswith("-") and not _has_value(before)] + flags


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
    return ("." in package or (grid and package in ("attack", "defense"))) and package.split(".")[0] in swept


def _as_sweep(argument: str, override: Override) -> str:
    name, _, value = argument.partition("=")
    if override.value() is None:
        value = "none" if override.key_or_group in ("attack", "defense") else NULL
    return f"{name}=choice({value})"


def _check(override: Override, folders: Sequence[Path], grid: bool = False) -> None:
    group, value = override.key_or_group, override.value()
    if _root(override) == "hydra" or override.is_delete():
        return  # Hydra's own groups, of which most options lie elsewhere
    if not _is_group(override, folders):
        if isinstance(value, Glob):
            raise ConfigError(f"{override.input_line}: a pattern is for names of a group, as in +attack=glob(b*)")
        return
    known = _names(group, folders)
    if group in PLACED and override.package is None:
        place = PLACED[group]
        raise ConfigError(f"{override.input_line}: a {group} is chosen for its place, as in {place}={min(known)}")
    if isinstance(value, Glob) and not value.filter(sorted(known)):
        raise unknown(group, ", ".join(value.include), known)
    for name in _choices(override):
        if group == timm_source.GROUP and name.startswith(timm_source.PREFIX):
            from backdoor_bench.model.timm import require  # seconds, which the run itself would take

            require(name)
        elif group in ("attack", "defense") and name in ("none", "null", "None"):
            if not grid:
                raise ConfigError(
                    f"{group}={name}: a run without {group} leaves it out; beside others, hydra/sweeper=grid takes none"
                )
        elif name not in known and "${" not in name:
            raise unknown(group.split("/")[-1], name, known)


def constants(arguments: Sequence[str]) -> set[str]:
    """The names of the options that are typed with one value, as all jobs of a multirun have them."""
    found, parser = set(), OverridesParser.create()
    for argument in arguments:
        try:
            override = parser.parse_override(argument)
        except HydraException:
            continue  # a flag, or a path that needs quotes
        if not override.is_sweep_override():
            found.add(name_of(argument))
    return found


def name_of(argument: str) -> str:
    """The option that an override sets, adds or takes away: ``attack`` of ``+attack=badnet``."""
    return argument.partition("=")[0].lstrip("+~")


def _check_root(override: Override, conf: Path, arguments: Sequence[str]) -> None:
    """Refuse to take away what every run has, and to add what nothing reads; Hydra would do both and say nothing."""
    name, root, always = override.key_or_group, _root(override), _always(conf)
    if override.is_delete() and override.package is None and name in always:
        raise ConfigError(f"{override.input_line}: every run needs {name}; choose another, {name}=VALUE")
    groups = {folder.name for folder in conf.iterdir() if folder.is_dir()} | {"sweep"}
    new = override.is_add() or override.is_force_add()
    if new and root not in {*always, *groups} and not any(f"${{{root}" in argument for argument in arguments):
        close = difflib.get_close_matches(root, {*always, *groups}, n=1)
        kind, known = ("group", groups - {"hydra"}) if close and close[0] in groups else ("option", always)
        raise unknown(kind, root, known)


@cache
def _always(conf: Path) -> frozenset[str]:
    """The options and groups that every run has."""
    root = OmegaConf.load(conf / "config.yaml")
    chosen = [group for default in root.defaults if not isinstance(default, str) for group in default]
    return frozenset(name for name in map(str, [*root, *chosen]) if name.isidentifier()) - {"defaults", "hydra"}


def _check_once(overrides: Sequence[Override]) -> None:
    for group in OPTIONAL:
        given = [o for o in overrides if o.key_or_group == group and o.package is None and not o.is_delete()]
        if len(given) > 1:
            each = ",".join(name for override in given for name in _choices(override))
            lines = " and ".join(str(override.input_line) for override in given)
            advice = "one command does one sweep" if group == "sweep" else f"for a run with each: -m +{group}={each}"
            raise ConfigError(f"{lines}: {group} is chosen more than once; {advice}")


def _check_ends(overrides: Sequence[Override]) -> None:
    """Refuse values without end, of which Hydra's own sweeper makes a stack trace."""
    for override in overrides:
        if override.is_interval_sweep():
            name = override.get_key_element()
            raise ConfigError(f"{override.input_line}: that has no end; expected values, e.g. {name}=0.1,0.2")


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
