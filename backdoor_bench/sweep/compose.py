"""Many configurations of one campaign, each composed by Hydra at most once per distinct part, then put together.

Hydra takes about 0.1 s to compose a run, and a campaign has 100,000. So each distinct choice of everything but attack
and defense is composed once, each distinct attack once and each distinct defense once, all unresolved; every top-level
node is then resolved once per distinct content of the nodes that it interpolates. Where an attack's or a defense's
files reach beyond their own node, that run is composed as a whole instead.

The configurations share their nodes: they are to be read, not changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from backdoor_bench.config import NOT_OF_A_RUN
from backdoor_bench.errors import ConfigError
from backdoor_bench.sweep.grid import NONE, Point, Value, root
from backdoor_bench.sweep.interpolation import references

PARTS = ("attack", "defense")


class Node:
    """An unresolved top-level node; the same object for the same content.

    Attributes:
        raw: plain containers with interpolations as they stand.
        reads: names of the top-level nodes that it interpolates, or None where that cannot be told.
    """

    __slots__ = ("raw", "reads")

    def __init__(self, name: str, raw: Any) -> None:
        self.raw = raw
        self.reads = references(raw, (name,))


class Composer:
    """The configurations of one campaign.

    Args:
        loader: Hydra's, with the search path of the command.
        constants: overrides that all runs share.
        config_name: the primary configuration.
    """

    def __init__(self, loader: ConfigLoader, constants: Sequence[str] = (), config_name: str = "config") -> None:
        self._loader, self._name, self._constants = loader, config_name, list(constants)
        self._interned: dict[tuple[str, str], Node] = {}
        self._bases: dict[tuple[str, ...], dict[str, Node]] = {}
        self._parts: dict[tuple[str, tuple[str, ...]], Node | None] = {}
        self._separate: dict[tuple[str, tuple[str, ...]], bool] = {}
        self._lists: dict[tuple[str, ...], Sequence[Any]] = {}
        self._wholes: dict[tuple[str, ...], dict[str, Node]] = {}
        self._resolved: dict[tuple[Any, ...], Any] = {}
        self._templates: dict[tuple[int, ...], tuple[dict[str, Any], frozenset[str]]] = {}
        self._options: dict[str, list[str]] = {}
        self._written: dict[tuple[str, str], str] = {}
        self.composed = 0
        """How often Hydra was asked."""
        first = self._load(())
        self.choices: dict[str, str | None] = dict(OmegaConf.to_container(first.hydra.runtime.choices))  # type: ignore[arg-type]
        self._first = self._nodes(first)
        self.scalars = {name for name, node in self._first.items() if not isinstance(node.raw, (dict, list))}
        """Top-level options that are no containers."""

    def config(self, point: Point) -> dict[str, Any]:
        """The resolved configuration of one run, as :func:`backdoor_bench.config.plain` makes it.

        Raises:
            ConfigError: Hydra or OmegaConf refuses it.
        """
        base: list[str] = []
        parts: dict[str, list[str]] = {}
        scalars: dict[str, Value] = {}
        for name, value in point.items():
            place = root(name)
            if place in PARTS:
                if point.get(place, NONE) != NONE:
                    parts.setdefault(place, []).append(self._override(name, value))
            elif name in self.scalars and not isinstance(value, (list, str)):
                scalars[name] = value
            else:
                base.append(self._override(name, value))
        nodes = self._put_together(tuple(base), {name: tuple(given) for name, given in parts.items()})
        return self._resolve(nodes, scalars)

    def options(self, name: str) -> list[str]:
        """The names of a group."""
        if name not in self._options:
            self._options[name] = list(self._loader.get_group_options(name))
        return self._options[name]

    def is_group(self, name: str) -> bool:
        return bool(self.options(name.lstrip("+").split("@")[0]))

    def has(self, axis: str) -> bool:
        """Whether an axis outside attack and defense overrides something that is there."""
        if axis.startswith(("+", "~")) or self.is_group(axis):
            return True
        container: Any = {name: node.raw for name, node in self._first.items()}
        for part in axis.split("."):
            if not isinstance(container, dict) or part not in container:
                return False
            container = container[part]
        return True

    # -- parts -----------------------------------------------------------------------------------------------------

    def _put_together(self, base: tuple[str, ...], parts: Mapping[str, tuple[str, ...]]) -> dict[str, Node]:
        if base not in self._bases:
            self._bases[base] = self._nodes(self._load(base)) if base else self._first
        nodes = dict(self._bases[base])
        for name, given in parts.items():
            node = self._part(name, given, base)
            if node is None or name in nodes:
                return self._whole((*base, *(override for part in parts.values() for override in part)))
            nodes[name] = node
        return nodes

    def _part(self, name: str, given: tuple[str, ...], base: tuple[str, ...]) -> Node | None:
        """An attack's or a defense's own node, or None if it cannot be told apart from the rest."""
        if (name, given) not in self._parts:
            config = self._load((*base, *given))
            alone = self._is_separate(name, given, base)
            self._parts[name, given] = self._nodes(config)[name] if alone else None
        return self._parts[name, given]

    def _is_separate(self, name: str, given: tuple[str, ...], base: tuple[str, ...]) -> bool:
        """Whether the files of a part fill its own node and change nothing else."""
        files = tuple(override for override in given if self._is_choice(override))
        if (name, files) not in self._separate:
            self._separate[name, files] = self._fill_alone(name, files, base)
        return self._separate[name, files]

    def _is_choice(self, override: str) -> bool:
        """Whether it chooses files, rather than sets a value."""
        return self.is_group(override.lstrip("+~").partition("=")[0])

    def _fill_alone(self, name: str, given: tuple[str, ...], base: tuple[str, ...]) -> bool:
        # Hydra lets no nested defaults list interpolate the choices of other groups: it can only override them.
        before = {(d.config_path, d.package) for d in self._defaults(base)}
        for default in self._defaults((*base, *given)):
            if (default.config_path, default.package) in before:
                continue
            package = default.package or ""
            if package != name and not package.startswith(f"{name}."):
                return False
            found = self._loader.repository.load_config(default.config_path)  # type: ignore[attr-defined]
            if found is None or any(d.is_override() for d in found.defaults_list or ()):
                return False
        return True

    def _whole(self, overrides: tuple[str, ...]) -> dict[str, Node]:
        if overrides not in self._wholes:
            self._wholes[overrides] = self._nodes(self._load(overrides))
        return self._wholes[overrides]

    def _load(self, overrides: Iterable[str]) -> Any:
        self.composed += 1
        try:
            return self._loader.load_configuration(self._name, [*self._constants, *overrides], RunMode.RUN)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_first_line(error)) from error

    def _defaults(self, overrides: tuple[str, ...]) -> Sequence[Any]:
        if overrides not in self._lists:
            found = self._loader.compute_defaults_list(self._name, [*self._constants, *overrides], RunMode.RUN)
            self._lists[overrides] = list(found.defaults)
        return self._lists[overrides]

    def _nodes(self, config: Any) -> dict[str, Node]:
        raw = OmegaConf.to_container(config, resolve=False)
        assert isinstance(raw, dict)
        return {str(name): self._intern(str(name), value) for name, value in raw.items() if name not in NOT_OF_A_RUN}

    def _intern(self, name: str, raw: Any) -> Node:
        key = (name, json.dumps(raw, default=repr))
        if key not in self._interned:
            self._interned[key] = Node(name, raw)
        return self._interned[key]

    def _override(self, name: str, value: Value) -> str:
        key = (name, repr(value))
        if key not in self._written:
            new = not name.startswith(("+", "~")) and "." not in name and self.is_group(name)
            self._written[key] = f"{'+' if new and name not in self.choices else ''}{name}={text(value)}"
        return self._written[key]

    # -- resolving -------------------------------------------------------------------------------------------------

    def _resolve(self, nodes: Mapping[str, Node], scalars: Mapping[str, Value]) -> dict[str, Any]:
        combination = tuple(id(node) for node in nodes.values())
        if combination not in self._templates:
            resolved = {name: self._resolved_node(name, nodes) for name in nodes}
            read = frozenset[str]().union(*(self._closure(name, nodes) - {name} for name in nodes))
            self._templates[combination] = resolved, read
        template, read = self._templates[combination]
        if read.isdisjoint(scalars):  # nothing interpolates them: they are set as they are
            return {**template, **scalars}
        changed = {**nodes, **{name: self._intern(name, value) for name, value in scalars.items()}}
        return {name: self._resolved_node(name, changed) for name in changed}

    def _resolved_node(self, name: str, nodes: Mapping[str, Node]) -> Any:
        closure = sorted(self._closure(name, nodes))
        key = (name, *(id(nodes[other]) for other in closure))
        if key not in self._resolved:
            config = OmegaConf.create({other: nodes[other].raw for other in closure})
            try:
                value: Any = config[name]
                if OmegaConf.is_config(value):
                    value = OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
            except OmegaConfBaseException as error:
                raise ConfigError(_first_line(error)) from error
            self._resolved[key] = value
        return self._resolved[key]

    def _closure(self, name: str, nodes: Mapping[str, Node]) -> set[str]:
        """The node itself and every node that it reads, directly or not."""
        found, front = {name}, [name]
        while front:
            reads = nodes[front.pop()].reads
            new = set(nodes) - found if reads is None else (reads & nodes.keys()) - found
            found |= new
            front.extend(new)
        return found


def text(value: Any) -> str:
    """A value in Hydra's grammar for overrides."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(text(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{name}:{text(item)}' for name, item in value.items())}}}"
    if not isinstance(value, str):
        return repr(value)
    try:
        (parsed,) = OverridesParser.create().parse_overrides([f"x={value}"])
        plain = not parsed.is_sweep_override()
    except HydraException:
        plain = False
    if plain:
        return value
    quoted = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{quoted}'"


def _first_line(error: Exception) -> str:
    """Hydra's own words without the lines about where in Hydra it happened."""
    lines = [line for line in str(error).splitlines() if line.strip() and "full_key" not in line]
    return "; ".join(line.strip() for line in lines[:2] if not line.startswith(("Set the env", "object_type")))
