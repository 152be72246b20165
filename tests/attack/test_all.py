"""What every attack promises, for each YAML leaf in conf/attack."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from backdoor_bench import config, seeding
from backdoor_bench.attack import Attack, AttackerView, Poisoned, Trigger, stamp
from backdoor_bench.attack.base import TrainedVictim
from backdoor_bench.dataset import ImageSet
from backdoor_bench.errors import ConfigError

NAMES = sorted(path.stem for path in (config.directory() / "attack").glob("*.yaml"))
CLASSES, RATIO = 4, 0.125  # 6 of the 48 random images


def small(name: str) -> list[str]:
    """``SMALL`` of the attack's own test: overrides that make what it learns as short as it goes. Most have none."""
    test = Path(__file__).parent / f"test_{name}.py"
    for item in ast.parse(test.read_text()).body if test.is_file() else []:
        if isinstance(item, ast.Assign) and [ast.unparse(target) for target in item.targets] == ["SMALL"]:
            return list(ast.literal_eval(item.value))
    return []


@cache
def node(name: str, *overrides: str) -> dict[str, Any]:
    """The resolved ``attack`` node of the composed configuration."""
    with initialize_config_dir(str(config.directory()), version_base="1.3"):
        return config.plain(compose("config", [f"+attack={name}", *small(name), *overrides]))["attack"]


def build(name: str, **values: Any) -> Attack:
    return config.make({**node(name), "poisoning_ratio": RATIO, **values})


class Ready(NamedTuple):
    """An attack with its trigger learned and the training set poisoned."""

    attack: Attack
    view: AttackerView
    trigger: Trigger
    poisoned: Poisoned


def get_ready(attack: Attack, view: AttackerView) -> Ready:
    height, width = view.train.images.shape[2:]
    trigger = attack.trigger((height, width))
    attack.prepare(trigger, view)
    trigger.eval().requires_grad_(False)
    return Ready(attack, view, trigger, attack.poison(view, trigger))


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def ready(name: str, make_attacker_view: Callable[..., AttackerView]) -> Ready:
    return get_ready(build(name), make_attacker_view(seed=0))


@pytest.fixture(scope="module")
def again(name: str, make_attacker_view: Callable[..., AttackerView]) -> Ready:
    return get_ready(build(name), make_attacker_view(seed=0))


@pytest.fixture(scope="module")
def other(name: str, make_attacker_view: Callable[..., AttackerView]) -> Ready:
    return get_ready(build(name), make_attacker_view(seed=1))


def one_step(ready: Ready, data: ImageSet) -> tuple[Tensor, Tensor]:
    """What a training step sees of a whole set, as floats before augmentation."""
    images, draws = ready.view.numerics.images(data.images), ready.view.generator("step")
    return ready.attack.training_batch(images, data.labels, ready.trigger, CLASSES, draws)


def seen(ready: Ready) -> tuple[Tensor, Tensor]:
    """What the victim is trained on: the poisoned set, through the attack's own training step."""
    if ready.poisoned.altered is None and type(ready.attack).training_batch is Attack.training_batch:
        pytest.skip("what its train() shows a network is for its own test to say")
    return one_step(ready, ready.poisoned.data)


def shown(ready: Ready) -> Tensor:
    """The same of one epoch in the order of a victim of this seed, were it a single batch; put back in order."""
    order = torch.randperm(len(ready.poisoned.data), generator=seeding.generator(ready.view.seed, "victim", "order"))
    return seen(ready._replace(poisoned=replace(ready.poisoned, data=ready.poisoned.data[order])))[0][order.argsort()]


def poisoned_rows(poisoned: Poisoned) -> Tensor:
    """(N,) bool, the altered images that are no covers."""
    assert poisoned.altered is not None
    return poisoned.altered if poisoned.covers is None else poisoned.altered & ~poisoned.covers


def test_there_are_attacks() -> None:
    assert {"badnet", "blended", "sig", "wanet"} <= set(NAMES)


def test_every_leaf_names_its_own_module_and_test(name: str) -> None:
    module, _, cls = node(name)["_target_"].rpartition(".")
    assert module == f"backdoor_bench.attack.{name}"
    assert issubclass(getattr(importlib.import_module(module), cls), Attack)
    assert {"poisoning_ratio", "target_label", "labels"} <= set(node(name))
    assert (Path(__file__).parent / f"test_{name}.py").is_file(), f"conf/attack/{name}.yaml has no test"


def test_trigger_keeps_range_shape_and_dtype(ready: Ready) -> None:
    clean = ready.view.numerics.images(ready.view.train.images)
    before = clean.clone()
    for images in (clean, clean[:1], torch.zeros_like(clean), torch.ones_like(clean), clean[:0]):
        painted = ready.trigger(images)
        assert painted.shape == images.shape
        assert painted.dtype == torch.float32
        assert bool(((painted >= 0) & (painted <= 1)).all())
    assert torch.equal(clean, before)
    stored = stamp(ready.trigger, ready.view.train.images, ready.view.numerics)
    assert stored.dtype == torch.uint8
    assert stored.shape == clean.shape


def test_trigger_changes_every_image_the_same_way_each_time(ready: Ready) -> None:
    images = ready.view.numerics.images(ready.view.train.images)
    painted = ready.trigger(images)
    assert bool((painted != images).flatten(1).any(1).all())
    state = torch.get_rng_state()
    torch.manual_seed(77)
    assert torch.equal(ready.trigger(images), painted)
    torch.set_rng_state(state)
    torch.testing.assert_close(ready.trigger(images[3:4]), painted[3:4], rtol=0, atol=1e-5)


def test_trigger_draws_nothing_from_the_global_generator(ready: Ready) -> None:
    before = torch.get_rng_state()
    ready.trigger(ready.view.numerics.images(ready.view.train.images))
    seen(ready)
    assert torch.equal(torch.get_rng_state(), before)


def test_trigger_computes_in_float32_inside_autocast(ready: Ready) -> None:
    images = ready.view.numerics.images(ready.view.train.images)
    with torch.autocast("cpu", torch.bfloat16):
        inside, trained = ready.trigger(images), seen(ready)[0]
    assert torch.equal(inside, ready.trigger(images))
    assert trained.dtype == torch.float32
    assert torch.equal(trained, seen(ready)[0])


def test_an_attack_says_whether_its_training_shows_unrounded_triggers(ready: Ready) -> None:
    levels = 255 * seen(ready)[0]
    rounded = bool(torch.isclose(levels, levels.round(), rtol=0, atol=1e-3).all())
    assert ready.attack.trains_unrounded is not rounded


def test_trigger_is_rebuilt_from_its_state_dict(name: str, ready: Ready) -> None:
    rebuilt = build(name).trigger((32, 32))
    rebuilt.load_state_dict(ready.trigger.state_dict())
    images = ready.view.numerics.images(ready.view.train.images)
    assert torch.equal(rebuilt.eval()(images), ready.trigger(images))


def test_test_sets_of_its_own_are_the_same_each_time(name: str, ready: Ready) -> None:
    test, numerics = ready.view.train, ready.view.numerics
    rebuilt = build(name).trigger((32, 32))
    rebuilt.load_state_dict(ready.trigger.state_dict())
    state = torch.get_rng_state()
    first = ready.attack.test_sets(test, ready.trigger, CLASSES, numerics)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(77)
    second = build(name).test_sets(test, rebuilt.eval(), CLASSES, numerics)
    torch.set_rng_state(state)
    assert first.keys() == second.keys()
    for key, data in first.items():
        assert re.fullmatch(r"[a-z][a-z0-9_]*_(acc|asr)", key), key
        assert torch.equal(data.images, second[key].images)
        assert torch.equal(data.labels, second[key].labels)
        assert bool((data.labels < CLASSES).all())


def test_same_seed_gives_the_same_poison(ready: Ready, again: Ready) -> None:
    assert all(torch.equal(one, two) for one, two in zip(seen(ready), seen(again), strict=True))
    for key, tensor in ready.trigger.state_dict().items():
        assert torch.equal(tensor, again.trigger.state_dict()[key]), key


def test_another_seed_gives_another_poison(ready: Ready, other: Ready) -> None:
    assert not torch.equal(shown(ready), shown(other))


def test_a_victim_and_its_trigger_follow_from_the_seed(name: str, train: Callable[..., TrainedVictim]) -> None:
    state = torch.get_rng_state()
    first = train(build(name))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    again, other = train(build(name)), train(build(name), seed=1)
    torch.set_rng_state(state)
    for part in ("network", "trigger"):
        tensors, second = (getattr(trained, part).state_dict() for trained in (first, again))
        assert all(torch.equal(tensor, second[key]) for key, tensor in tensors.items()), part
        assert all(bool(tensor.isfinite().all()) for tensor in tensors.values()), part
        assert not any(module.training for module in getattr(first, part).modules()), part
    assert not any(parameter.requires_grad for parameter in first.trigger.parameters())
    weights = [list(trained.network.parameters()) for trained in (first, other)]
    assert not any(map(torch.equal, *weights))


def test_unpoisoned_rows_are_bit_identical(ready: Ready) -> None:
    clean, poisoned = ready.view.train, ready.poisoned
    if poisoned.altered is None:
        assert poisoned.data is clean
        images, labels = seen(ready)
        same = (images == ready.view.numerics.images(clean.images)).flatten(1).all(1)
        assert 0 < int(same.sum()) < len(clean)
    else:
        images, labels, same = poisoned.data.images, poisoned.data.labels, ~poisoned.altered
        changed = (images != clean.images).flatten(1).any(1)
        assert torch.equal(changed, poisoned.altered)
        assert poisoned.data.images.data_ptr() != clean.images.data_ptr()
    assert torch.equal(labels[same], clean.labels[same])


def test_ratio_counts_over_all_images(name: str, ready: Ready) -> None:
    poisoned = ready.poisoned
    assert poisoned.ratio == RATIO
    if poisoned.altered is None:
        return
    assert int(poisoned_rows(poisoned).sum()) == 6
    most = get_ready(build(name, poisoning_ratio=0.5), ready.view) if not small(name) else None
    if most is not None:
        expected = 12 if ready.attack.clean_label else 24  # all images of the target class, or half of all
        assert int(poisoned_rows(most.poisoned).sum()) == expected
        assert most.poisoned.ratio == expected / 48


def test_labels_follow_the_taxonomy(ready: Ready) -> None:
    clean, poisoned = ready.view.train, ready.poisoned
    labels = seen(ready)[1]
    if ready.attack.clean_label:
        assert torch.equal(labels, clean.labels)
        assert poisoned.altered is not None
        assert bool((clean.labels[poisoned.altered] == ready.attack.target_label).all())
    else:
        relabelled = labels != clean.labels
        assert bool(relabelled.any())
        assert bool((labels[relabelled] == ready.attack.target_label).all())
        if poisoned.altered is not None:
            assert bool((labels[poisoned_rows(poisoned)] == ready.attack.target_label).all())
            assert not bool(relabelled[~poisoned_rows(poisoned)].any())


def test_another_target_label(name: str) -> None:
    attack = build(name, target_label=2)
    attack.check(CLASSES)
    assert attack.attack_labels(torch.tensor([0, 1, 2, 3]), CLASSES).tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize("target", [4, -1, True, "cat"])
def test_target_label_out_of_range_is_an_error(name: str, target: object) -> None:
    with pytest.raises(ConfigError, match=rf"attack\.target_label={target}: the data set has classes 0 to 3"):
        build(name, target_label=target).check(CLASSES)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, "ten", None])
def test_poisoning_ratio_out_of_range_is_an_error(name: str, ratio: object) -> None:
    with pytest.raises(ConfigError, match=rf"attack\.poisoning_ratio={ratio}"):
        build(name, poisoning_ratio=ratio)


def test_all_to_all(name: str, ready: Ready) -> None:
    if ready.attack.clean_label:
        with pytest.raises(ConfigError, match=r"attack\.labels=all_to_all"):
            build(name, labels="all_to_all")
        return
    turned = get_ready(build(name, labels="all_to_all"), ready.view)
    clean, labels = ready.view.train.labels, seen(turned)[1]
    relabelled = labels != clean
    assert bool(relabelled.any())
    assert torch.equal(labels[relabelled], (clean[relabelled] + 1) % CLASSES)
    if turned.poisoned.altered is not None:
        assert torch.equal(relabelled, poisoned_rows(turned.poisoned))


def test_training_step_never_waits_for_the_device(ready: Ready) -> None:
    images = ready.view.numerics.images(ready.view.train.images)
    draws = ready.view.generator("step")
    # A fake tensor has a shape but no values: whatever would ask the device for one (`.item()`, `if tensor`) raises.
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        batch, labels = fake.from_tensor(images), fake.from_tensor(ready.view.train.labels)
        after = ready.attack.training_batch(batch, labels, ready.trigger, CLASSES, draws)
    assert after[0].shape == images.shape
    assert after[1].shape == labels.shape
