"""What is shipped: the wheel works without the checkout, the lock names no host, the bounds keep bad releases out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the environment's hatchling, so without a download."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_carries_configuration_and_sweeps(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for source, target in (("conf", "backdoor_bench/conf"), ("multirun_sweeps", "backdoor_bench/multirun_sweeps")):
        files = {path.relative_to(ROOT / source) for path in (ROOT / source).rglob("*.yaml")}
        assert {f"{target}/{file.as_posix()}" for file in files} <= names
    assert "backdoor_bench/__main__.py" in names
    assert "backdoor_bench/sweep/known.yaml" in names
    plugins = {name for name in names if name.startswith("hydra_plugins/")}
    assert plugins == {f"hydra_plugins/backdoor_bench_{kind}/__init__.py" for kind in ("launcher", "sweeper")}
    assert not {name.split("/")[0] for name in names} & {"tests", "benchmarks", "conf", "data", "store"}


def run_from_wheel(wheel: Path, folder: Path, *arguments: str) -> str:
    """``python -m backdoor_bench`` with the unpacked wheel, from a folder that has nothing of the checkout."""
    site, elsewhere = folder / "site", folder / "elsewhere"
    zipfile.ZipFile(wheel).extractall(site)
    elsewhere.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "backdoor_bench", *arguments],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(site), "BACKDOOR_BENCH_STORE": str(elsewhere / "store")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_command_finds_its_configuration_in_the_wheel(wheel: Path, tmp_path: Path) -> None:
    said = run_from_wheel(wheel, tmp_path, "--cfg", "all", "+attack=badnet", "+defense=ft")
    assert "_target_: backdoor_bench.attack.badnet.BadNet" in said
    assert f"path: {tmp_path / 'site' / 'backdoor_bench' / 'conf'}" in said


@pytest.mark.slow
def test_a_sweep_is_planned_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    said = run_from_wheel(wheel, tmp_path, "+sweep=smoke", "sweep.plan=true", "sweep.only.defense=[ft]",
                          "sweep.only.attack=[badnet]")  # fmt: skip
    assert "smoke: 1 run over 1 victim;" in said


@pytest.mark.slow
@pytest.mark.ci
def test_whole_run_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    said = run_from_wheel(wheel, tmp_path, "+attack=badnet", "+defense=ft", "recipe.epochs=1", "defense.epochs=1")
    assert "purified" in said
    assert len(list(tmp_path.glob("elsewhere/store/runs/*/*.json"))) == 1


def test_lock_names_no_host() -> None:
    text = LOCK.read_text()
    assert not re.findall(r"(?i).*(?:https?:|//|@ |index|find-links|\.org|\.com|\.io).*", text)


def test_lock_pins_and_hashes_everything() -> None:
    lines = LOCK.read_text().splitlines()
    pinned = [position for position, line in enumerate(lines) if re.match(r"[a-z0-9]", line)]
    assert len(pinned) > 50
    for position in pinned:
        assert re.match(r"[a-z0-9][a-z0-9.-]*==[^ ]+( ; .+)? \\$", lines[position]), lines[position]
        assert lines[position + 1].strip().startswith("--hash=sha256:")


def _locked() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"(?m)^([a-z0-9.-]+)==([^ ;]+)", LOCK.read_text()):
        found.setdefault(name, set()).add(version)
    return found


def test_lock_fits_the_bounds() -> None:
    """Every dependency of pyproject is in the lock, in a version that pyproject allows: ``make lock`` was run."""
    locked, extras = _locked(), PROJECT["optional-dependencies"]
    for line in [*PROJECT["dependencies"], *(line for extra in extras.values() for line in extra)]:
        wanted = Requirement(line)
        if wanted.name == PROJECT["name"]:
            continue  # an extra made of the others
        versions = locked[wanted.name.lower().replace("_", "-")]
        assert all(wanted.specifier.contains(version) for version in versions), (line, versions)


def test_lock_pins_the_torch_we_run() -> None:
    assert _locked()["torch"] == {"2.11.0"}
    assert _locked()["torchvision"] == {"0.26.0"}


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("lightning", ["2.6.4", "2.6.6"], ["2.6.2", "2.6.3", "2.5.0", "2.7.0"]),  # 2.6.2 and 2.6.3 were malicious
        ("torch", ["2.11.0"], ["2.10.0", "3.0.0"]),
        ("torchvision", ["0.26.0"], ["0.25.0"]),
        ("hydra-core", ["1.3.8"], ["1.3.2", "1.4.0"]),
        ("omegaconf", ["2.3.1"], ["2.4.0"]),
    ],
)
def test_bounds(name: str, good: list[str], bad: list[str]) -> None:
    (wanted,) = (r.specifier for r in map(Requirement, PROJECT["dependencies"]) if r.name == name)
    assert all(wanted.contains(version) for version in good)
    assert not any(wanted.contains(version) for version in bad)
