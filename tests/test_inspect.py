"""python -m backdoor_bench.inspect: what a file is, and whether it would call anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torchvision.models import resnet18

from backdoor_bench.inspect import main


class Touch:
    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.flag}",)


def look(capsys, path: Path, *options: str) -> tuple[int, str]:
    status = main([str(path), *options])
    return status, capsys.readouterr().out


def test_plain_weights_say_what_they_fit(network, tmp_path, capsys) -> None:
    """Format, sizes, wrapping, classes, architecture with its width; exit status 0."""
    path = tmp_path / "x.pt"
    torch.save({"epoch": 1, "state_dict": {f"module.{name}": v for name, v in network.state_dict().items()}}, path)
    status, said = look(capsys, path)
    assert status == 0
    for words in (
        "torch zip", "tensors    102 (86 float32, 16 int64)", "under state_dict.module",
        "classes    4", "model=preact_resnet18 model.width=2", "calls      none", "clean      plain weights",
        "state_dict.module.backbone.conv1.weight  float32 [2, 3, 3, 3]", "more (--all)",
    ):  # fmt: skip
        assert words in said
    assert "backbone.linear.bias  float32 [4]" not in said
    assert "backbone.linear.bias  float32 [4]" in look(capsys, path, "--all")[1]


def test_safetensors_of_torchvisions_network_without_our_names(tmp_path, capsys) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(resnet18(num_classes=4).state_dict(), path)
    status, said = look(capsys, path)
    assert status == 0
    assert "fits       model=resnet18\n" in said
    assert "classes    4" in said


def test_a_network_that_nearly_fits(tmp_path, capsys) -> None:
    weights = resnet18(num_classes=4).state_dict()
    weights["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    safetensors.torch.save_file(weights, tmp_path / "x.safetensors")
    _, said = look(capsys, tmp_path / "x.safetensors")
    assert "fits       no architecture" in said
    assert "model=resnet18 but for 1 of 122 tensors: backbone.conv1.weight: expected (64, 3, 7, 7), came" in said


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_calls_are_named_and_not_made(zipped, tmp_path, capsys) -> None:
    path, flag = tmp_path / "x.pt", tmp_path / "flag"
    torch.save({"w": torch.ones(2), "x": Touch(flag)}, path, _use_new_zipfile_serialization=zipped)
    status, said = look(capsys, path)
    assert status == 1
    assert "posix.system" in said
    assert "w  float32 [2]" in said
    assert "REFUSED" in said
    assert not flag.exists()


def test_nan_weights_random_bytes_and_programs_are_refused(tmp_path, capsys) -> None:
    torch.save({"w": torch.tensor([float("nan")])}, tmp_path / "nan.pt")
    assert look(capsys, tmp_path / "nan.pt")[0] == 1
    (tmp_path / "random").write_bytes(b"\x07" * 1000)
    status, said = look(capsys, tmp_path / "random")
    assert status == 1
    assert "not a model file that is known here" in said
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "x.ts")
    status, said = look(capsys, tmp_path / "x.ts")
    assert status == 1
    assert "TorchScript archive" in said


def test_the_command(tmp_path) -> None:
    """In a process of its own, from another folder; the module's name hides no library."""
    safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "x.safetensors")
    done = subprocess.run([sys.executable, "-m", "backdoor_bench.inspect", "x.safetensors"], cwd=tmp_path,
                          capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("x.safetensors: safetensors")
    assert main([str(tmp_path / "no.pt")]) == 1
