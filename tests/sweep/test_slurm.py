"""The SLURM script, with SLURM's commands replaced by ones that say what they were asked."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "slurm" / "sweep.sbatch"


def submit(folder: Path, left: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The script as the batch job of two nodes with ``left`` of its time limit."""
    for name, body in {
        "scontrol": "echo node7; echo node8",
        "squeue": f"echo '{left}'",
        "srun": 'printf "%s\\n" "$@"',
    }.items():
        path = folder / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "123456", "SLURM_NNODES": "2",
        "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_CPUS_PER_TASK": "32", "SLURM_GPUS_ON_NODE": "4",
    }  # fmt: skip
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("left", "budget"),
    [
        ("8:00:00", ["sweep.budget=28500s"]),
        ("1-00:10:00", ["sweep.budget=86700s"]),
        ("30:00", ["sweep.budget=1500s"]),
        ("5:00", ["sweep.budget=150s"]),
        ("UNLIMITED", []),
    ],
)
def test_one_ray_over_all_nodes_and_a_budget_within_the_time_limit(
    tmp_path: Path, left: str, budget: list[str]
) -> None:
    done = submit(tmp_path, left, "+sweep=unibp_table1", "store_dir=/shared/my store")
    assert done.returncode == 0, done.stderr
    asked = done.stdout.splitlines()
    assert asked[:3] == ["--nodes=2", "--ntasks=2", "--kill-on-bad-exit=0"]
    start = asked.index("ray")
    assert asked[start : start + 10] == [
        "ray", "symmetric-run", "--address", "node7:23456", "--min-nodes", "2", "--num-cpus", "32", "--num-gpus", "4",
    ]  # fmt: skip
    assert asked[start + 10 :] == [
        "--", "python", "-m", "backdoor_bench", "+sweep=unibp_table1", "store_dir=/shared/my store",
        "hydra/launcher=ray", "hydra.launcher.init.address=auto", *budget,
    ]  # fmt: skip


def test_without_a_sweep_it_says_how_to_call_it(tmp_path: Path) -> None:
    done = submit(tmp_path, "30:00")
    assert done.returncode == 2
    assert "usage: sbatch sweep.sbatch +sweep=NAME" in done.stderr
