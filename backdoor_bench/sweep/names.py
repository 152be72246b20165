"""The names that a grid uses: what exists, what is known but not there yet, and what is misspelt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from backdoor_bench.errors import unknown
from backdoor_bench.sweep.compose import PARTS, Composer
from backdoor_bench.sweep.grid import NONE, Grid, Point, Value, root

NAMED = ("dataset", "model", *PARTS)


@cache
def planned() -> dict[str, tuple[str, ...]]:
    """Names of the five papers by group, whether they exist here or not; ``option``: names of overrides."""
    loaded = OmegaConf.to_container(OmegaConf.load(Path(__file__).with_name("known.yaml")))
    assert isinstance(loaded, dict)
    return {str(group): tuple(names) for group, names in loaded.items()}


class Names:
    """What of a grid is not there yet.

    Raises:
        ConfigError: an axis or a name that is neither there nor known, with close matches. Nothing but the methods
            that the grid names has been composed by then.
    """

    def __init__(self, grid: Grid, composer: Composer) -> None:
        self._composer = composer
        self._lacking: dict[tuple[str, Value], str] = {}
        for axis, given in grid.axes.items():
            self._check_names(axis, given)
        for axis in grid.axes:
            self._check_axis(axis, {name: grid.axes.get(name, ()) for name in NAMED})
        for setting in grid.settings:
            for axis, value in setting.then.items():
                self._check_names(axis, (value,))
                self._check_axis(axis, {name: setting.when.get(name, grid.axes.get(name, ())) for name in NAMED})

    def lacking(self, point: Point) -> str | None:
        """The first thing of a point that does not exist yet, in words: ``defense nad``."""
        if not self._lacking:
            return None
        for axis, value in point.items():
            words = self._lacking.get((axis, value)) if not isinstance(value, list) else None
            words = words or self._lacking.get((axis, None))
            if words:
                return words
        return None

    def _check_names(self, axis: str, given: Iterable[Value]) -> None:
        group = _group(axis)
        if not self._composer.is_group(group):
            return
        existing, known = self._composer.options(group), planned().get(group, ())
        for value in given:
            name = str(value)
            if name in existing or value is None or ":" in name or (group in PARTS and name == NONE):
                continue
            if name not in known:
                raise unknown(group.split("/")[-1], name, {*existing, *known})
            self._lacking[axis, value] = f"{group} {name}"

    def _check_axis(self, axis: str, chosen: Mapping[str, Iterable[Value]]) -> None:
        """Whether an axis overrides something that is there, in a configuration with one of the chosen methods."""
        if axis in NAMED or axis.startswith(("+", "~")):
            return
        place, path = root(axis), axis.split("@")[-1].split(".")
        if place not in PARTS and (self._composer.has(axis) or axis in self._composer.choices):
            return
        found: set[str] = set()
        if place in NAMED:
            usable = [value for value in chosen[place] if value != NONE and (place, value) not in self._lacking]
            if not usable and place in PARTS:
                return  # none of its methods is there yet, so nothing can be said
            for value in usable or [None]:
                node = self._composer.config({place: value} if value is not None else {}).get(place)
                if _reaches(node, path[1:]):
                    return
                found |= {f"{place}.{leaf}" for leaf in _leaves(node)}
        if axis in planned()["option"]:
            self._lacking[axis, None] = f"option {axis}"
            return
        raise unknown("axis", axis, found or {*self._composer.scalars, *NAMED, *self._composer.choices})


def _group(axis: str) -> str:
    return axis.lstrip("+").split("@")[0]


def _reaches(node: Any, path: Iterable[str]) -> bool:
    for part in path:
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def _leaves(node: Any) -> Iterator[str]:
    for name, value in node.items() if isinstance(node, dict) else ():
        if isinstance(value, dict):
            yield from (f"{name}.{leaf}" for leaf in _leaves(value))
        elif not name.startswith("_"):
            yield name
