"""Composing ``conf`` from inside somebody else's program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.version import VersionBase
from omegaconf import DictConfig

from backdoor_bench import config as configuration


@cache
def compose(*overrides: str) -> DictConfig:
    """``conf`` with these overrides, unresolved; copy it before changing it.

    No working directory is changed and nothing is written. The caller may be inside a Hydra application: its global
    state is put back.
    """
    with _apart():
        return hydra.compose("config", list(overrides))


def loader() -> ConfigLoader:
    """Hydra's loader of ``conf``, for many configurations (:class:`backdoor_bench.sweep.compose.Composer`)."""
    with _apart() as hydra_:
        return hydra_.config_loader()


@contextmanager
def _apart() -> Iterator[GlobalHydra]:
    """Hydra looking into ``conf``, its global state put back afterwards."""
    kinds = (GlobalHydra, VersionBase)
    before = {kind: Singleton._instances.pop(kind, None) for kind in kinds}
    try:
        with hydra.initialize_config_dir(str(configuration.directory()), version_base="1.3"):
            yield GlobalHydra.instance()
    finally:
        for kind, instance in before.items():
            Singleton._instances.pop(kind, None)
            if instance is not None:
                Singleton._instances[kind] = instance
