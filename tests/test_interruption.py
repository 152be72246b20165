"""Ctrl-C at any moment of the command is one line and status 130."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

AT_AN_IMPORT = """
import os, runpy, signal, sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
sys.argv[0] = "backdoor_bench"
runpy.run_module("backdoor_bench", run_name="__main__")
"""
IN_A_FIT = """
import os, runpy, signal, sys
from contextlib import contextmanager
from backdoor_bench import progress
@contextmanager
def track(title, total, unit="epoch"):
    yield lambda note: os.kill(os.getpid(), signal.SIGINT)
progress.track = track
sys.argv[0] = "backdoor_bench"
runpy.run_module("backdoor_bench", run_name="__main__")
"""
RUN = ("+attack=badnet", "recipe.epochs=2", "recipe.width=2")


def command(folder: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["hydra", "hydra.core.hydra_config", "numpy", "torch", "torch.nn", "lightning"])
def test_while_modules_are_imported(tmp_path: Path, name: str) -> None:
    done = command(tmp_path, AT_AN_IMPORT.format(name=name), *RUN)
    assert (done.stderr, done.returncode) == (
        "interrupted: what is done is kept, the same command goes on from there\n", 130,
    )  # fmt: skip


@pytest.mark.parametrize("multirun", [(), ("-m",)])
def test_in_the_middle_of_a_training(tmp_path: Path, multirun: tuple[str, ...]) -> None:
    done = command(tmp_path, IN_A_FIT, *multirun, *RUN)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("interrupted: what is done is kept")
    assert not list(tmp_path.glob("store/victims/*")) + list(tmp_path.glob("store/locks/*"))
