"""A grid as a sweep file writes it: axes, further blocks, what to leave out; and the points that it stands for.

Nothing here composes a configuration: a point is a mapping of override names to values.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache, cached_property, lru_cache
from itertools import product
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString, Transformer
from hydra.errors import HydraException

from backdoor_bench.errors import ConfigError, unknown

Value = str | int | float | bool | None | list[Any]
Point = Mapping[str, Value]

NONE = "none"
"""``attack: none`` is a clean network, ``defense: none`` the row without one."""

REGIME = frozenset({"spc", "clean_ratio", "clean_from", "repetition"})
"""Axes that mean nothing without a defense."""


@dataclass(frozen=True)
class Setting:
    """Overrides of the runs that fit: a paper's own settings of one method."""

    when: Mapping[str, tuple[Value, ...]]
    then: Mapping[str, Value]


@dataclass(frozen=True)
class Grid:
    """Blocks of axes, each a product, together one set of points.

    Args:
        blocks: axes by override name; a point's values stand in the order of the axes.
        exclude: a point that fits all of a line is left out.
        settings: see :class:`Setting`; later ones win.
    """

    blocks: Sequence[Mapping[str, tuple[Value, ...]]]
    exclude: Sequence[Mapping[str, tuple[Value, ...]]] = ()
    settings: Sequence[Setting] = ()
    only: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)

    @classmethod
    def read(
        cls, axes: Mapping[str, Any], extra: Sequence[Mapping[str, Any]] = (),
        exclude: Sequence[Mapping[str, Any]] = (), settings: Sequence[Mapping[str, Any]] = (),
    ) -> Grid:  # fmt: skip
        """From what a sweep file says.

        ``axes``: values of each override, as a list or in Hydra's own words (``range(10)``, ``0.1,0.05``). ``extra``:
        further blocks, which have the same axes except for what they name; null takes an axis away. ``exclude``: lines
        of values. ``settings``: ``{when: values, set: overrides}``.

        Raises:
            ConfigError: it is not of this form.
        """
        first = {str(name): values(name, given) for name, given in axes.items()}
        blocks = [first]
        for block in extra:
            changed = {str(name): values(name, given) for name, given in block.items() if given is not None}
            blocks.append({name: v for name, v in {**first, **changed}.items() if block.get(name, ...) is not None})
        lines = []
        for line in settings:
            if set(line) != {"when", "set"}:
                raise ConfigError(f"settings: expected lines of when and set, got {', '.join(map(str, line))}")
            when = {str(name): values(name, given) for name, given in line["when"].items()}
            lines.append(Setting(when, {str(name): value for name, value in line["set"].items()}))
        left_out = [{str(name): values(name, given) for name, given in line.items()} for line in exclude]
        grid = cls(blocks, left_out, lines)
        for where in [*left_out, *(line.when for line in lines)]:
            for name in where:
                if name not in grid.axes:
                    raise unknown("axis in exclude or settings", name, grid.axes)
        return grid

    @cached_property
    def axes(self) -> dict[str, tuple[Value, ...]]:
        """Every axis with all its values, in order of appearance."""
        found: dict[str, dict[str, Value]] = {}
        for block in self.blocks:
            for name, given in block.items():
                known = found.setdefault(name, {})
                for value in given:
                    known.setdefault(_key(value), value)
        return {name: tuple(known.values()) for name, known in found.items()}

    def with_axes(self, axes: Mapping[str, Sequence[Value]], constants: Collection[str] = ()) -> Grid:
        """Axes from the command line take the place of those of the same name; no setting overrides what was typed."""
        blocks = [{**block, **{name: tuple(given) for name, given in axes.items()}} for block in self.blocks]
        typed = {*axes, *constants}
        settings = [replace(s, then={n: v for n, v in s.then.items() if n not in typed}) for s in self.settings]
        return replace(self, blocks=blocks, settings=settings)

    def with_names(self, groups: Mapping[str, Iterable[str]]) -> Grid:
        """Patterns (``"*"``) become the names of their group that fit."""

        def spelled(axis: str, given: tuple[Value, ...]) -> tuple[Value, ...]:
            names = sorted(groups.get(axis.split("@")[0], ()))
            found: list[Value] = []
            for value in given:
                pattern = isinstance(value, str) and any(sign in value for sign in "*?[") and bool(names)
                new = [name for name in names if fnmatchcase(name, str(value))] if pattern else [value]
                found.extend(name for name in new if name not in found)
            return tuple(found)

        return replace(self, blocks=[{a: spelled(a, given) for a, given in block.items()} for block in self.blocks])

    def narrowed(self, only: Mapping[str, Any]) -> Grid:
        """``sweep.only``: the points that have one of these values of each named axis.

        Raises:
            ConfigError: no such axis, or a value that the axis does not have.
        """
        axes, wanted = self.axes, {}
        for name, given in only.items():
            if name not in axes:
                raise unknown("axis in sweep.only", name, axes)
            wanted[name] = values(name, given)
            for value in wanted[name]:
                if not _in(value, axes[name]):
                    raise unknown(f"value in sweep.only.{name}", _text(value), [_text(v) for v in axes[name]])
        return replace(self, only={**self.only, **wanted})

    def points(self) -> Iterator[dict[str, Value]]:
        """The points, each once, in the order of the file.

        Where there is no attack, its axes mean nothing, and likewise a defense's and the regime's: such points are one.
        """
        seen: set[tuple[Any, ...]] = set()
        for block in self.blocks:
            names = list(block)
            for choice in product(*block.values()):
                point = meaningful(dict(zip(names, choice, strict=True)))
                key = tuple((name, _key(value)) for name, value in sorted(point.items()))
                if key in seen:
                    continue
                seen.add(key)
                if any(fits(point, line) for line in self.exclude) or not self._wanted(point):
                    continue
                yield point

    def settings_of(self, point: Point) -> dict[str, Value]:
        """The further overrides of a point."""
        found: dict[str, Value] = {}
        for setting in self.settings:
            if fits(point, setting.when):
                found |= setting.then
        return found

    def _wanted(self, point: Point) -> bool:
        # A row without a defense has no repetition: narrowing the repetitions keeps it.
        return all(name not in point or _in(point[name], given) for name, given in self.only.items())


def meaningful(point: Mapping[str, Value]) -> dict[str, Value]:
    """The point without what does not apply to it: options of an attack or a defense that is ``none``."""
    found = dict(point)
    for group in ("attack", "defense"):
        if group in found and found[group] in (None, NONE):
            found = {name: value for name, value in found.items() if root(name) != group} | {group: NONE}
            if group == "defense":
                found = {name: value for name, value in found.items() if name not in REGIME}
    return found


def of_victim(point: Point) -> dict[str, Value]:
    """What of a point determines its victim."""
    return {name: value for name, value in point.items() if root(name) != "defense" and name not in REGIME}


@cache
def root(axis: str) -> str:
    """The part of the configuration that an override changes: ``stage@defense.stages.mask`` is of ``defense``."""
    return axis.lstrip("+~").split("@")[-1].split(".")[0].split("/")[0]


def fits(point: Point, line: Mapping[str, tuple[Value, ...]]) -> bool:
    return all(name in point and _in(point[name], given) for name, given in line.items())


def values(axis: str, given: Any) -> tuple[Value, ...]:
    """The values of an axis: a list, one value, or a text in Hydra's grammar for sweeps.

    Raises:
        ConfigError: there is none, or it is a mapping.
    """
    if isinstance(given, str):
        given = _parsed(axis, given)
    found = tuple(given) if isinstance(given, (list, tuple)) else (given,)
    if not found or isinstance(given, Mapping):
        raise ConfigError(f"axis {axis}: expected a list of values, e.g. [0.05, 0.1], or range(10); got {given!r}")
    if axis.lstrip("+") in ("attack", "defense"):
        found = tuple(NONE if value is None else value for value in found)
    return found


def _parsed(axis: str, text: str) -> Any:
    try:
        (override,) = OverridesParser.create().parse_overrides([f"x={text}"])
    except HydraException:
        return text  # no grammar of Hydra's, then a value as it stands
    if not override.is_sweep_override():
        plain = override.value()
        return text if isinstance(plain, (str, dict, QuotedString)) or plain is None else plain
    if not override.is_discrete_sweep():
        raise ConfigError(f"axis {axis}: {text} has no end; expected values, e.g. [0.05, 0.1], or range(10)")
    found = list(override.sweep_iterator(transformer=Transformer.identity))
    return [value.text if isinstance(value, QuotedString) else value for value in found]


def _in(value: Value, given: Iterable[Value]) -> bool:
    wanted = _key(value)
    return any(_key(other) == wanted for other in given)


def _key(value: Any) -> str:
    """One spelling per value: 0.10 and "0.1" are one, so are 5 and 5.0."""
    return str(value) if isinstance(value, list) else _spelling(value)


@lru_cache(maxsize=None, typed=True)  # asked of the same few values for each of 100,000 points
def _spelling(value: Any) -> str:
    try:
        return repr(float(value)) if not isinstance(value, bool) else str(value)
    except (TypeError, ValueError):
        return str(value)


def _text(value: Value) -> str:
    return "null" if value is None else str(value)
