"""Plain weights are read, however they were wrapped, tensor for tensor."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from backdoor_bench.suspect.fit import fit
from backdoor_bench.suspect.read import Refused, read_state_dict, read_weights


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def assert_same(read: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert read.keys() == expected.keys()
    for name, value in expected.items():
        assert read[name].dtype == value.dtype
        assert torch.equal(read[name], value), name


def wrapped(network: nn.Module) -> dict[str, Any]:
    state = network.state_dict()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    poison = {"original_index": np.arange(5), "poison_indicator": np.array([0.0, 1.0]), "label": np.int64(3)}
    return {
        "state dict": state,
        "plain dict": dict(state),
        "state_dict": {"epoch": 3, "state_dict": state, "optimizer": optimizer.state_dict(), "best": np.float64(0.5)},
        "net, acc, epoch": {"net": state, "acc": 93.1, "epoch": 9},
        "model_state_dict": {"model_state_dict": state},
        "DataParallel": {f"module.{name}": value for name, value in state.items()},
        "DataParallel inside": {"model": {f"module.{name}": value for name, value in state.items()}},
        "torch.compile": {f"_orig_mod.{name}": value for name, value in state.items()},
        "both": {f"_orig_mod.module.{name}": value for name, value in state.items()},
        "BackdoorBench": {
            "model_name": "preactresnet18", "num_classes": 10, "model": state, "data_path": "../data/cifar10",
            "img_size": (32, 32, 3), "clean_data": "cifar10", "bd_train": poison, "bd_test": {"names": np.array(["a"])},
        },
        "sizes beside": {"state_dict": state, "size": torch.Size([1, 2]), "dtype": torch.float32},
    }  # fmt: skip


WRAPPINGS = list(wrapped(nn.Linear(1, 1)))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_common_wrappings_are_opened(wrapping, zipped, plain, tmp_path) -> None:
    path = tmp_path / "x.pth"
    torch.save(wrapped(plain)[wrapping], path, _use_new_zipfile_serialization=zipped)
    assert_same(read_state_dict(path), plain.state_dict())


def test_a_wrapping_of_the_scripts_own_is_a_prefix(plain, tmp_path, capsys) -> None:
    """As WaNet's code saves: tensors of the attack beside a network under a name of its own."""
    state, optimizer = plain.state_dict(), torch.optim.SGD(plain.parameters(), lr=0.1).state_dict()
    torch.save({"netC": state, "optimizerC": optimizer, "noise_grid": torch.ones(1, 4, 4, 2)}, tmp_path / "x.pth.tar")
    read = read_state_dict(tmp_path / "x.pth.tar")
    assert_same(
        read, {**{f"netC.{name}": value for name, value in state.items()}, "noise_grid": torch.ones(1, 4, 4, 2)}
    )
    fresh = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    fit(fresh, read, "x.pth.tar")
    assert_same(fresh.state_dict(), state)
    said = capsys.readouterr().err
    assert "left aside what is no tensor: optimizerC" in said
    assert "left aside noise_grid" in said


def test_safetensors_and_a_link_to_it(plain, tmp_path) -> None:
    """Download caches are made of links."""
    path, link = tmp_path / "blob", tmp_path / "model.safetensors"
    safetensors.torch.save_file(plain.state_dict(), path, {"format": "pt"})
    link.symlink_to(path)
    found = read_weights(link)
    assert_same(found.tensors, plain.state_dict())
    assert found.metadata == {"format": "pt"}
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_parameters_halves_and_shared_memory(plain, tmp_path) -> None:
    shared = torch.arange(6.0)
    tensors = {
        "parameter": nn.Parameter(torch.ones(2)), "half": torch.ones(3).half(), "bfloat": torch.ones(3).bfloat16(),
        "tied": shared, "too": shared, "part": shared[2:4], "turned": shared.view(2, 3).t(), "none": torch.empty(0),
        "count": torch.tensor(7), "flag": torch.tensor([True]),
    }  # fmt: skip
    torch.save(tensors, tmp_path / "x.pt")
    read = read_state_dict(tmp_path / "x.pt")
    assert_same(read, {name: value.detach() for name, value in tensors.items()})
    assert read["tied"].data_ptr() == read["too"].data_ptr()


def test_a_lightning_checkpoint(tmp_path) -> None:
    """As a Trainer writes it, hyperparameters and loop states beside."""

    class Module(LightningModule):
        def __init__(self, lr: float = 0.1) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.model = nn.Linear(2, 2)

        def training_step(self, batch: Tensor, _: int) -> Tensor:
            return self.model(batch).sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Module()
    trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                      enable_model_summary=False, accelerator="cpu")  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(torch.ones(2, 2)))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    assert_same(read_state_dict(tmp_path / "x.ckpt"), OrderedDict(module.state_dict()))


def test_what_is_left_aside_or_chosen_is_said(tmp_path, capsys) -> None:
    torch.save({"w": torch.ones(1), "epoch": 3}, tmp_path / "x.pt")
    assert list(read_state_dict(tmp_path / "x.pt")) == ["w"]
    assert "left aside what is no tensor: epoch" in capsys.readouterr().err
    torch.save({"model": {"w": torch.ones(1)}, "state_dict": {"v": torch.ones(1)}}, tmp_path / "y.pt")
    assert list(read_state_dict(tmp_path / "y.pt")) == ["v"]
    assert "holds state_dict and model; taking state_dict" in capsys.readouterr().err


def test_torch_load_is_asked_for_weights_only_and_asked_once(plain, tmp_path, monkeypatch) -> None:
    """Explicitly, as the environment can turn the default off; a refusal is the end of it."""
    asked = []

    def load(*_: Any, **options: Any) -> Any:
        asked.append(options["weights_only"])
        raise RuntimeError("refused\nat length")

    torch.save(plain.state_dict(), tmp_path / "x.pt")
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(Refused, match=r"torch.load with weights_only=True refuses it \(refused\)"):
        read_state_dict(tmp_path / "x.pt")
    assert asked == [True]


def test_the_numpy_names_are_allowed_only_while_a_file_is_read(plain, tmp_path) -> None:
    before = set(torch.serialization.get_safe_globals())  # a list in an order that changes
    torch.save({"model": plain.state_dict(), "index": np.arange(3)}, tmp_path / "x.pt")
    read_state_dict(tmp_path / "x.pt")
    assert set(torch.serialization.get_safe_globals()) == before


def test_a_missing_file_is_one_sentence(tmp_path) -> None:
    with pytest.raises(Refused, match="cannot be read: No such file or directory"):
        read_state_dict(Path(tmp_path / "no.pt"))
