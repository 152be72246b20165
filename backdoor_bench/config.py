"""The configuration: where it lies, what its interpolations mean, how its nodes become objects."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from backdoor_bench import timm_source
from backdoor_bench.errors import BenchError, ConfigError, root_cause

if TYPE_CHECKING:
    from backdoor_bench.training import Recipe

HERE = Path(__file__).resolve().parent

NOT_OF_A_RUN = ("hydra", "sweep")
"""Nodes that say how runs are started, not what they are: in no key and no record."""


@cache
def directory(name: str = "conf") -> Path:
    """``conf`` or ``multirun_sweeps``: inside an installed package, else beside it in a checkout."""
    for candidate in (HERE / name, HERE.parent / name):
        if candidate.is_dir():
            return candidate
    raise ConfigError(f"no folder '{name}' in {HERE} or {HERE.parent}; install the package again")


def register_resolvers() -> None:
    """``${length:NAME,PUBLISHED}``: how long a method works, from the preset, else the recipe, else as published."""

    def length(name: str, published: Any, *, _root_: DictConfig) -> Any:
        for group in ("preset", "recipe"):
            value = OmegaConf.select(_root_, f"{group}.lengths.{name}")
            if value is not None:
                return value
        return published

    OmegaConf.register_new_resolver("length", length, replace=True)


def plain(config: DictConfig) -> dict[str, Any]:
    """Everything resolved, as plain dicts and lists.

    Raises:
        ConfigError: an interpolation of what is not there.
    """
    try:
        container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        place = f"{error.full_key}: " if error.full_key else ""
        raise ConfigError(f"{place}{str(error).splitlines()[0]}") from error
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items() if key not in NOT_OF_A_RUN}


def make(node: dict[str, Any], **extra: Any) -> Any:
    """Instantiate a node of the user's own configuration; nested nodes first, containers as plain Python."""
    try:
        return instantiate(node, _convert_="all", **extra)
    except Exception as error:
        cause = root_cause(error)
        if isinstance(cause, BenchError):
            raise cause from None
        if isinstance(cause, (TypeError, ValueError)):
            raise ConfigError(f"{node.get('_target_')}: {cause}") from error
        raise


def make_recipe(node: dict[str, Any]) -> Recipe:
    """The training part of ``conf/recipe``; see :func:`training_part`."""
    from backdoor_bench.training import Recipe  # seconds of imports that a misspelt name need not wait for

    recipe = make(training_part(node))
    assert isinstance(recipe, Recipe)
    return recipe


def training_part(node: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without ``width`` and ``lengths``, which are read by interpolation elsewhere."""
    return {key: value for key, value in node.items() if key not in ("width", "lengths")}


register_resolvers()
timm_source.register()
