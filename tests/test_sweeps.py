"""Sweeps by name: files of multirun_sweeps/ that start a multirun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from backdoor_bench import config

SWEEPS = config.directory("multirun_sweeps")
NAMES = sorted(path.stem for path in (SWEEPS / "sweep").glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_a_sweep_names_only_what_exists(name: str) -> None:
    params = OmegaConf.load(SWEEPS / "sweep" / f"{name}.yaml").hydra.sweeper.params
    for group in ("dataset", "preset", "+attack", "+defense", "model"):
        for value in str(params.get(group, "")).split(","):
            assert not value or (config.directory() / group.lstrip("+") / f"{value}.yaml").is_file()


def test_a_sweep_starts_from_its_name_alone(tmp_path: Path) -> None:
    (tmp_path / "mine" / "sweep").mkdir(parents=True)
    (tmp_path / "mine" / "sweep" / "two.yaml").write_text(
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params: {+attack: badnet, seed: '0,1'}\n"
    )
    command = [sys.executable, "-m", "backdoor_bench", "--config-dir", "mine", "+sweep=two"]
    done = subprocess.run(
        [*command, "recipe.epochs=1", "recipe.width=2"], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 jobs" in done.stdout


def test_an_unknown_sweep_is_refused(tmp_path: Path) -> None:
    from backdoor_bench.errors import ConfigError
    from backdoor_bench.overrides import prepare

    with pytest.raises(ConfigError, match=r"unknown sweep 'core_evidens'\. Did you mean core_evidence"):
        prepare(["+sweep=core_evidens"], config.directory(), SWEEPS)


def test_the_search_path_reaches_them() -> None:
    with hydra.initialize_config_dir(str(config.directory()), version_base="1.3"):
        chosen = hydra.compose("config", [f"hydra.searchpath=[file://{SWEEPS}]", f"+sweep={NAMES[0]}"])
    assert chosen.dataset.name
