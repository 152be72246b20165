"""purify(): what a person with a model of their own hands over, and what comes back."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import safetensors.torch
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.version import VersionBase
from torch import Tensor, nn
from torch.nn import functional as F

import backdoor_bench
from backdoor_bench import config as configuration
from backdoor_bench.dataset import base as dataset_base
from backdoor_bench.errors import ConfigError, DataError, IncompatibleError, UntrustedError
from backdoor_bench.stage.clip import Clip
from backdoor_bench.suspect import handed

CLASSES = 4
FAST = {"epochs": 1, "device": "cpu", "precision": "32-true"}


class Own(nn.Module):
    """A network that knows nothing of this package; its second activation is a function."""

    def __init__(self, channels: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, 8, 3, 2), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, 2), nn.BatchNorm2d(8)
        self.relu, self.dropout, self.fc = nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.fc(self.dropout(x.mean((2, 3))))


def own(**options: Any) -> Own:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Own(**options).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    """40 noisy images of 16x16 whose class is their brightness, float in [0, 1]."""
    draws = torch.Generator().manual_seed(1)
    level = (torch.arange(40) % CLASSES / CLASSES).view(-1, 1, 1, 1)
    return level + torch.rand(40, 3, 16, 16, generator=draws) / CLASSES


@pytest.fixture(scope="module")
def labels() -> Tensor:
    return torch.arange(40) % CLASSES


@pytest.fixture(scope="module")
def bounded(images, labels) -> backdoor_bench.Purified:
    """A network with UNIT's bounds in it, which takes normalised images."""
    return backdoor_bench.purify(own(), images, labels, "unit", mean=[0.4] * 3, std=[0.2] * 3, **FAST)


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert not [name for name in first if not torch.equal(first[name], second[name])]


def test_it_trains_a_copy_and_says_what_it_did(images, labels, tmp_path, monkeypatch) -> None:
    """Your network, the working directory and the global random state stay as they are."""
    monkeypatch.chdir(tmp_path)
    network = own().train()
    network.conv1.weight.requires_grad_(False)
    before, random = state(network), torch.get_rng_state()
    result = backdoor_bench.purify(network, images, labels, "ft", **{**FAST, "epochs": 20})
    assert_same(state(network), before)
    assert network.training
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert list(tmp_path.iterdir()) == []
    assert type(result.network) is Own
    assert not result.network.training
    assert not torch.equal(result.network.conv1.weight, network.conv1.weight)  # purified, frozen or not
    assert [parameter.requires_grad for parameter in result.network.parameters()] == [False] + [True] * 9
    assert [stage.name for stage in result.stages] == ["finetune"]
    assert (result.train, result.validation) == (36, 4)
    assert result.before is not None
    assert result.after is not None
    for words in ("ft: 36 clean images to train, 4 to validate", "finetune", "ACC ", "% before", "ASR not measured"):
        assert words in str(result)


def test_a_result_depends_on_the_seed_alone(images, labels) -> None:
    """Also when threads ask at once. What they hand over is made before: that draws from torch's global generator."""
    results = []

    def work(network: Own) -> None:
        results.append(backdoor_bench.purify(network, images, labels, "ft", seed=3, **FAST))

    networks = [own(dropout=0.5) for _ in range(3)]
    work(networks[0])
    torch.rand(5)
    threads = [threading.Thread(target=work, args=(network,)) for network in networks[1:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    for result in results[1:]:
        assert_same(state(result.network), state(results[0].network))
    other = backdoor_bench.purify(own(dropout=0.5), images, labels, "ft", seed=4, **FAST)
    assert not torch.equal(other.network.fc.weight, results[0].network.fc.weight)


def test_inside_a_hydra_application_its_state_is_put_back(images, labels, tmp_path) -> None:
    from backdoor_bench.suspect.composed import compose

    compose.cache_clear()
    (tmp_path / "mine.yaml").write_text("own: 1\n")
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.2"):
        application, base = GlobalHydra.instance().hydra, VersionBase.instance().getbase()
        backdoor_bench.purify(own(), images, labels, "ft", **FAST)
        assert GlobalHydra.instance().hydra is application
        assert VersionBase.instance().getbase() == base
        assert hydra.compose("mine").own == 1
    assert not GlobalHydra.instance().is_initialized()


def test_arrays_and_bytes_and_floats_are_the_same_images(images, labels) -> None:
    stored = images.mul(255).round().to(torch.uint8)
    first = backdoor_bench.purify(own(), images, labels, "ft", **FAST)
    second = backdoor_bench.purify(own(), stored.numpy(), labels.tolist(), "ft", **FAST)
    assert_same(state(first.network), state(second.network))


def test_normalisation_is_for_the_work_and_not_in_what_comes_back(images, labels) -> None:
    """The same weights as where the network normalises by itself."""

    class Normalising(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = own()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner((x - 0.4) / 0.2)

    outside = backdoor_bench.purify(own(), images, labels, "ft", mean=[0.4] * 3, std=[0.2] * 3, **FAST).network
    inside = backdoor_bench.purify(Normalising(), images, labels, "ft", **FAST).network
    for name, value in inside.inner.state_dict().items():
        torch.testing.assert_close(outside.state_dict()[name], value)
    with torch.no_grad():
        torch.testing.assert_close(outside((images - 0.4) / 0.2), inside(images))
    assert not outside._forward_pre_hooks


def test_grey_images_for_a_network_of_one_channel(images, labels) -> None:
    network, grey = own(channels=1), images[:, :1]
    result = backdoor_bench.purify(network, grey, labels, "ft", mean=[0.4], std=[0.2], **FAST)
    assert result.network(grey).shape == (40, CLASSES)
    assert not torch.equal(result.network.conv1.weight, network.conv1.weight)


def test_halves_come_back_as_halves(images, labels) -> None:
    result = backdoor_bench.purify(own().half(), images, labels, "unit", **FAST)
    kinds = {name: value.dtype for name, value in result.network.state_dict().items() if value.is_floating_point()}
    assert {kind for name, kind in kinds.items() if "bound" not in name} == {torch.float16}
    assert result.network(images.half()).dtype == torch.float16


def test_a_wrapped_layer_keeps_its_dtype_and_stays_frozen(images, labels) -> None:
    """UNIT's bound around a layer with weights."""
    network = own().half()
    network.fc.requires_grad_(False)
    result = backdoor_bench.purify(network, images, labels, "unit", stages={"bound": {"sites": ["fc"]}}, **FAST)
    layer = result.network.get_submodule("fc.inner")
    assert {(value.dtype, value.requires_grad) for value in layer.parameters()} == {(torch.float16, False)}
    assert result.network(images.half()).dtype == torch.float16


def test_the_memory_format_comes_back(images, labels) -> None:
    for kept in (torch.channels_last, torch.contiguous_format):
        network = own().to(memory_format=kept)
        weight = backdoor_bench.purify(network, images, labels, "ft", **FAST).network.conv1.weight
        assert weight.stride() == network.conv1.weight.stride()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_caller_without_gradients(mode, images, labels) -> None:
    with mode():
        given = images + 0  # of inference_mode: a tensor that autograd does not know
        result = backdoor_bench.purify(own(), given, labels, "ft", **FAST)
        assert not torch.is_grad_enabled()
    expected = backdoor_bench.purify(own(), images, labels, "ft", **FAST)
    assert_same(state(result.network), state(expected.network))


def test_arrays_that_torch_cannot_share(images, labels, recwarn) -> None:
    """Read-only ones of a memory map, and channels in reverse."""
    stored = images.mul(255).round().to(torch.uint8).numpy()
    first = backdoor_bench.purify(own(), np.ascontiguousarray(stored[:, ::-1]), labels, "ft", **FAST)
    stored.setflags(write=False)
    second = backdoor_bench.purify(own(), stored[:, ::-1], labels, "ft", **FAST)
    backdoor_bench.purify(own(), stored, labels, "ft", **FAST)
    assert_same(state(first.network), state(second.network))
    assert not [warning for warning in recwarn if "not writable" in str(warning.message)]


def test_floats_become_bytes_in_pieces(images, labels, monkeypatch) -> None:
    whole = handed.image_set(images, labels)[0]
    monkeypatch.setattr(handed, "CHUNK", 7)
    assert torch.equal(handed.image_set(images, labels)[0].images, whole.images)
    assert torch.equal(whole.images, images.mul(255).round().to(torch.uint8))


def test_a_network_that_does_not_know_the_images_is_said(images, labels, capsys) -> None:
    """Trained on them, and shown what it was not trained on."""
    network = own()
    with torch.no_grad():  # the classes are levels of brightness: name the nearest
        for parameter in (network.conv1.weight, network.conv2.weight, network.fc.weight, network.fc.bias):
            parameter.zero_()
        network.conv1.weight[0, :, 1, 1] = network.conv2.weight[0, 0, 1, 1] = 1
        network.conv1.bias[0], network.conv2.bias[0] = 0, 0
        centres = (torch.arange(CLASSES) + 0.5) / CLASSES * 3
        network.fc.weight[:, 0], network.fc.bias[:] = 2 * centres, -centres.square()
    backdoor_bench.purify(network, images, labels, "ft", **FAST)
    assert "WARNING" not in capsys.readouterr().err
    backdoor_bench.purify(network, images, labels.roll(1), "ft", **FAST)
    assert re.search(
        r"WARNING: before any defense the network is right on \d+\.\d% of your 40 images, and answering the largest "
        r"class whatever is shown is on 25.0%\. Is the normalisation right", capsys.readouterr().err,
    )  # fmt: skip


def test_classes_without_an_image_are_said(images, labels, capsys) -> None:
    some = (labels == 0) | (labels == 2)
    backdoor_bench.purify(own(), images[some], labels[some], "ft", **FAST)
    assert "warning: 2 of the network's 4 classes have no image here (1, 3)" in capsys.readouterr().err


def test_images_that_would_fill_the_device_stay_on_the_host(images, labels, capsys, monkeypatch) -> None:
    monkeypatch.setattr(dataset_base, "free_memory", lambda device: 4 * 36 * 3 * 16 * 16 - 1)  # the share is a quarter
    backdoor_bench.purify(own(), images, labels, "ft", **FAST)
    said = capsys.readouterr().err
    assert said.count("they stay in host memory") == 1  # the 36 to train on, not the 4 to validate with


@pytest.mark.parametrize("wrap", [nn.DataParallel, pytest.param(torch.compile, marks=pytest.mark.slow)])
def test_wrappers_are_taken_off(wrap, images, labels, tmp_path) -> None:
    result = backdoor_bench.purify(wrap(own()), images, labels, "ft", **FAST)
    assert type(result.network) is Own
    loaded = backdoor_bench.load_purified(result.save(tmp_path / "out.safetensors"), wrap(Own()))
    assert type(loaded) is Own
    assert_same(state(loaded), state(result.network))


def test_options_nested_or_with_dots(images, labels) -> None:
    stages = {"mask": {"epochs": 1}, "prune": {"noise": 0.5}}
    nested = backdoor_bench.purify(own(), images, labels, stages=stages, augmentation={"flip": True}, **FAST)
    dotted = {"stages.mask.epochs": 1, "stages.prune.noise": 0.5, "augmentation.flip": True}
    assert_same(state(nested.network), state(backdoor_bench.purify(own(), images, labels, **dotted, **FAST).network))
    plain = backdoor_bench.purify(own(), images, labels, **{"stages.mask.epochs": 1}, **FAST)
    assert not torch.equal(nested.network.fc.weight, plain.network.fc.weight)


def test_all_images_to_train(images, labels) -> None:
    result = backdoor_bench.purify(own(), images, labels, "ft", use_validation="train", **FAST)
    assert (result.train, result.validation, result.before) == (40, 0, None)
    assert "ACC not measured: no image was held out" in result.summary()


class Tuple(Own):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class AuxiliaryInTraining(Own):
    def forward(self, x: Tensor) -> Any:
        return (super().forward(x), x) if self.training else super().forward(x)


class Maps(Own):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv1(x)


class Detached(Own):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Uncopied(Own):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("mine alone")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: Tuple(), "Tuple returns a tuple; expected logits alone"),
        (lambda: AuxiliaryInTraining(), "AuxiliaryInTraining, in train mode, returns a tuple"),
        (lambda: Maps(), r"returns torch.float32 of shape \(4, 8, 7, 7\) for 4 images"),
        (lambda: Detached(), "the logits of Detached have no gradient"),
        (lambda: Uncopied(), "cannot be copied .*mine alone"),
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(4)), "has layers that get their shapes in the first"),
        (lambda: own(channels=4), r"cannot be run on float images of shape \(4, 3, 16, 16\)"),
        (lambda: torch.jit.script(own()), "TorchScript program cannot be taken apart"),
        (lambda: {"weight": torch.ones(1)}, "expected an nn.Module that gives logits, got dict"),
        (lambda: nn.Flatten(), "parameters are on nowhere"),
        (lambda: own().to("meta"), "parameters are on meta"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, CLASSES)), "unibp needs BatchNorm2d"),
    ],
)  # fmt: skip
def test_a_network_that_cannot_be_is_refused(network, message, images, labels) -> None:
    with pytest.raises(IncompatibleError, match=message):
        backdoor_bench.purify(network(), images, labels, **FAST)


def test_grey_images_for_a_network_of_rgb_images_are_refused_with_what_to_do(images, labels) -> None:
    with pytest.raises(IncompatibleError, match=r"of shape \(4, 1, 16, 16\).*images\.expand\(-1, 3, -1, -1\)"):
        backdoor_bench.purify(own(), images[:, :1], labels, "ft", **FAST)


def test_probabilities_are_noticed(images, labels, capsys) -> None:
    backdoor_bench.purify(nn.Sequential(own(), nn.Softmax(1)), images, labels, "ft", **FAST)
    assert "seems to give probabilities" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x * 255, y), r"are in \[0.*, 25\d\]; if they are normalised"),
        (lambda x, y: (x - 0.5, y), r"float images are in \[0, 1\], these are in \[-0.5"),
        (lambda x, y: (x * np.nan, y), "float images are in"),
        (lambda x, y: (x.permute(0, 2, 3, 1), y), "put the channels first"),
        (lambda x, y: (x[0], y), r"expected \(N, 3, H, W\)"),
        (lambda x, y: (x.mul(255).int(), y), "expected uint8, or float in"),
        (lambda x, y: (["a", "b"], y), "images: expected a tensor or an array"),
        (lambda x, y: (x, y[:-1]), r"expected 40 whole numbers, one per image, got torch.int64 \(39,\)"),
        (lambda x, y: (x, y.float()), "whole numbers"),
        (lambda x, y: (x, y + 1), "the network has classes 0 to 3, these are 1 to 4"),
        (lambda x, y: (x, y - 1), "these are -1 to 2"),
        (lambda x, y: (x[:4], y[:4]), "4 images: expected two or more of a class"),
        (lambda x, y: (x[:0], y[:0]), "0 images"),
    ],
)
def test_images_that_cannot_be_are_refused(change, message, images, labels) -> None:
    with pytest.raises(DataError, match=message):
        backdoor_bench.purify(own(), *change(images, labels), "ft", **FAST)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"defense": "unibpp"}, "unknown defense 'unibpp'. Did you mean unibp"),
        ({"epochz": 3}, "unknown option of unibp 'epochz'. Did you mean epochs"),
        ({"stages": {"prune": {"rato": 1}}}, "unknown option of unibp 'stages.prune.rato'.*stages.prune.value"),
        ({"stages": {"prun": {"value": 1}}}, "unknown option of unibp 'stages.prun.value'. Did you mean stages.prune"),
        ({"mean": [0.5]}, r"mean=\[0.5\]: expected 3 numbers"),
        ({"std": [0.5, 0.5, 0.0]}, "expected positive numbers"),
        ({"mean": "imagenet"}, "mean=imagenet: expected 3 numbers, one per channel"),
        ({"seed": -1}, "seed=-1: expected a whole number of at least 0"),
        ({"device": "tpu"}, "device=tpu: expected auto"),
        ({"defense": "gradprune_oracle"}, "assumes the attacker's trigger, and purify"),
    ],
)
def test_options_that_do_not_exist_are_refused(options, message, images, labels) -> None:
    with pytest.raises((ConfigError, IncompatibleError), match=message):
        backdoor_bench.purify(own(), images, labels, **{**FAST, **options})


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


def test_a_network_of_several_devices_is_purified_on_one(images, capsys) -> None:
    """SyncBatchNorm, which training on several devices leaves behind."""
    network = nn.SyncBatchNorm.convert_sync_batchnorm(own())
    labels = torch.arange(40) % CLASSES
    result = backdoor_bench.purify(network, images, labels, "unibp", **FAST, **{"stages.mask.k": 0.2})
    expected = backdoor_bench.purify(own(), images, labels, "unibp", **FAST, **{"stages.mask.k": 0.2})
    assert isinstance(network.bn1, nn.SyncBatchNorm)
    assert type(result.network.bn1) is nn.BatchNorm2d
    found = result.network.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.network.state_dict().items())
    assert "2 SyncBatchNorm are made BatchNorm2d" in capsys.readouterr().err


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


def test_importing_the_package_is_light() -> None:
    code = "import sys, backdoor_bench; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'purifi'"):
        _ = backdoor_bench.purifi


@pytest.mark.parametrize(
    "defense", sorted(path.stem for path in (configuration.directory() / "defense").glob("*.yaml"))
)
def test_every_defense_but_the_oracles_takes_a_network_of_yours(defense) -> None:
    """Composed and checked; not run."""
    from backdoor_bench import api

    if "oracle" in defense:
        with pytest.raises(IncompatibleError, match="assumes the attacker's trigger"):
            api._method(defense, {})
    else:
        api._method(defense, {})[0].check_network(own())
