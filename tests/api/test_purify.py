"""purify(): what a person with a model of their own hands over, and what comes back."""

from __future__ import annotations

import re
import subprocess
import sys
import threading

import hydra
import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.version import VersionBase
from omegaconf import OmegaConf
from torch import Tensor, nn

import backdoor_bench
from backdoor_bench import config as configuration
from backdoor_bench.dataset import base as dataset_base
from backdoor_bench.errors import IncompatibleError
from backdoor_bench.suspect import handed
from tests.api.own import CLASSES, FAST, Own, assert_same, own, state


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


def test_importing_the_package_is_light() -> None:
    code = "import sys, backdoor_bench; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'purifi'"):
        _ = backdoor_bench.purifi


@pytest.mark.parametrize(
    "defense", sorted(path.stem for path in (configuration.directory() / "defense").glob("*.yaml"))
)
def test_every_defense_but_the_oracles_takes_a_network_of_yours(defense) -> None:
    """Composed and checked; not run. What has no meaning on this one (two convolutions, 15 and 7 pixels) says so."""
    from backdoor_bench import api

    assumes = OmegaConf.load(configuration.directory() / "defense" / f"{defense}.yaml").assumes
    if assumes:
        with pytest.raises(IncompatibleError, match="assumes the attacker's"):
            api._method(defense, {})
        return
    refused = ""
    try:
        api._method(defense, {})[0].check_network(own())
    except IncompatibleError as error:
        refused = str(error)
    assert not refused or re.match(rf"{defense}.* Own .*; use another defense, e\.g\. ", refused)
