"""What purify() gives back as files: weights, programs, cards."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

import backdoor_bench
from backdoor_bench.errors import ConfigError, IncompatibleError, UntrustedError
from backdoor_bench.stage.clip import Clip
from tests.api.own import FAST, Own, assert_same, own, state

# -- saving ----------------------------------------------------------------------------------------------------------


def test_added_modules_survive_saving_and_loading(bounded, images, tmp_path) -> None:
    """UNIT's bounds, one behind a function: into a fresh network, outputs equal."""
    clips = [name for name, module in bounded.network.named_modules() if isinstance(module, Clip)]
    assert len(clips) == 2
    path = bounded.save(tmp_path / "out.safetensors")
    fresh = Own()
    before = state(fresh)
    loaded = backdoor_bench.load_purified(path, fresh)
    assert_same(state(fresh), before)
    assert_same(state(loaded), state(bounded.network))
    inputs = (images - 0.4) / 0.2 * 3
    with torch.no_grad():
        assert torch.equal(loaded(inputs), bounded.network(inputs))
        without = Own().eval()
        without.load_state_dict(bounded.network.state_dict(), strict=False)
        assert not torch.allclose(without(inputs), loaded(inputs))  # the bounds do something


READ_PROGRAMS = """
import sys, torch
folder = sys.argv[1]
inputs = torch.load(f"{folder}/inputs.pt", weights_only=True)
for name, program in (
    ("ts", torch.jit.load(f"{folder}/out.ts")), ("pt2", torch.export.load(f"{folder}/out.pt2").module()),
):
    torch.save([program(inputs).detach(), program(inputs[:1]).detach()], f"{folder}/{name}.outputs")
assert "backdoor_bench" not in sys.modules
"""


@pytest.mark.slow
@pytest.mark.ci
def test_programs_agree_with_the_network(bounded, images, tmp_path) -> None:
    """TorchScript and .pt2, bounds included, for any number of images, without a class of ours."""
    inputs = (images[:7] - 0.4) / 0.2 * 3
    torch.save(inputs, tmp_path / "inputs.pt")
    for suffix in ("ts", "pt2"):
        bounded.save(tmp_path / f"out.{suffix}", replace=True)
    command = [sys.executable, "-W", "ignore", "-c", READ_PROGRAMS, str(tmp_path)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    with torch.no_grad():
        expected = bounded.network(inputs)
    for suffix in ("ts", "pt2"):
        several, one = torch.load(tmp_path / f"{suffix}.outputs", weights_only=True)
        torch.testing.assert_close(several, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one, expected[:1], atol=1e-5, rtol=1e-4)


def test_a_program_moves_with_its_weights(bounded, images, tmp_path) -> None:
    """To another dtype here, as to another device: nothing stays behind, the bounds neither."""
    inputs = (images[:7] - 0.4) / 0.2 * 3
    program = torch.jit.load(bounded.save(tmp_path / "out.ts"))
    with torch.no_grad():
        torch.testing.assert_close(program.double()(inputs.double()).float(), bounded.network(inputs))
    assert {value.dtype for value in program.parameters()} == {torch.float64}


def test_the_card_says_what_was_done_and_what_could_not_be_measured(bounded, tmp_path) -> None:
    bounded.save(tmp_path / "out.safetensors")
    card = (tmp_path / "out.md").read_text()
    for words in (
        "# out.safetensors", "purified with `unit`", "Own, 4 classes", "mean [0.4, 0.4, 0.4]", "| bound |",
        "| tighten |",
        "36 to train, 4 to validate", f"| ACC % | {100 * bounded.before:.2f} | {100 * bounded.after:.2f} |",
        "ACC is over 4 clean images", "ASR and RA: not measured",
        "backdoor_bench.load_purified('out.safetensors', network)",
    ):  # fmt: skip
        assert words in card


def test_a_large_loss_of_accuracy_is_said(bounded) -> None:
    worse = replace(bounded, before=0.9, after=0.25)
    assert "warning: ACC fell by 65.0 points: train longer" in str(worse)
    assert "warning" not in str(replace(bounded, before=0.9, after=0.85))


def test_weights_without_additions_are_the_networks_own(images, labels, tmp_path) -> None:
    result = backdoor_bench.purify(own(), images, labels, "ft", **FAST)
    path = result.save(tmp_path / "out.safetensors")
    assert_same(safetensors.torch.load_file(path), state(result.network))
    with pytest.raises(ConfigError, match=r"is there already; choose another name, or .* replace=True"):
        result.save(path)
    result.save(path, replace=True)
    with pytest.raises(ConfigError, match=r"expected a name ending in .safetensors"):
        result.save(tmp_path / "out.onnx")
    with pytest.raises(ConfigError, match="there is no folder"):
        result.save(tmp_path / "no" / "out.ts")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.md", "out.safetensors"]


def altered(path: Path, about: str) -> None:
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors, path, {"backdoor_bench": about})


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ("not JSON", "metadata is none that this version"),
        ('{"format": 99, "additions": []}', "metadata is none that this version"),
        ('{"format": 1, "additions": [3]}', "metadata is none that this version"),
        ('{"format": 1, "additions": [{"site": "relu", "kind": "os.system", "settings": {}}]}', "none of the trusted"),
        ('{"format": 1, "additions": [{"site": "relu", "kind": "backdoor_bench.model.base.Network", "settings": {}}]}',
         "is no Added"),
    ],
)  # fmt: skip
def test_what_a_file_names_is_not_believed(about, message, bounded, tmp_path) -> None:
    path = bounded.save(tmp_path / "out.safetensors")
    altered(path, about)
    with pytest.raises(UntrustedError, match=message):
        backdoor_bench.load_purified(path, Own())


def test_a_file_for_another_network_is_refused(bounded, tmp_path) -> None:
    path = bounded.save(tmp_path / "out.safetensors")
    with pytest.raises(IncompatibleError, match=r"conv1.weight: expected \(8, 1, 3, 3\), came \(8, 3, 3, 3\)"):
        backdoor_bench.load_purified(path, Own(channels=1))
    with pytest.raises(ConfigError, match=r"hand over a network: load_purified\(path, network\)"):
        backdoor_bench.load_purified(path)
