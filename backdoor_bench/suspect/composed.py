"""Composing ``conf`` from inside somebody else's program."""

from __future__ import annotations

from functools import cache

import hydra
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
    kinds = (GlobalHydra, VersionBase)
    before = {kind: Singleton._instances.pop(kind, None) for kind in kinds}
    try:
        with hydra.initialize_config_dir(str(configuration.directory()), version_base="1.3"):
            return hydra.compose("config", list(overrides))
    finally:
        for kind, instance in before.items():
            Singleton._instances.pop(kind, None)
            if instance is not None:
                Singleton._instances[kind] = instance
