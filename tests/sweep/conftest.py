"""A composer over the project's own configuration, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra

from backdoor_bench import config
from backdoor_bench.sweep.compose import Composer

SMALL = ("device=cpu", "trainer.precision=32-true")


def make_loader() -> ConfigLoader:
    with hydra.initialize_config_dir(str(config.directory()), version_base="1.3"):
        return GlobalHydra.instance().config_loader()


@pytest.fixture(scope="session")
def composer() -> Composer:
    """One for all tests: what it composed for one is there for the next."""
    return Composer(make_loader(), SMALL)


@pytest.fixture
def make_composer(tmp_path: Path) -> Callable[..., Composer]:
    """One with further overrides, over a store of the test's own."""
    return lambda *overrides: Composer(make_loader(), [*SMALL, f"store_dir={tmp_path / 'store'}", *overrides])
