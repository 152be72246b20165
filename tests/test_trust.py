"""A stored configuration is somebody's file: what it names is refused before anything of it runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from backdoor_bench.attack import Attack
from backdoor_bench.attack.badnet import BadNet
from backdoor_bench.dataset import Augmentation, Dataset
from backdoor_bench.dataset.digits import Digits
from backdoor_bench.errors import ConfigError, UntrustedError
from backdoor_bench.model import Network
from backdoor_bench.trust import trusted_class, trusted_instance

BADNET = "backdoor_bench.attack.badnet.BadNet"
DIGITS = {
    "_target_": "backdoor_bench.dataset.digits.Digits",
    "name": "digits",
    "augmentation": {"_target_": "backdoor_bench.dataset.Augmentation", "crop_padding": 2},
}


@pytest.fixture
def flag(tmp_path: Path) -> Path:
    """A file that is there once something was executed."""
    return tmp_path / "executed"


@pytest.fixture
def package(tmp_path: Path, flag: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of somebody's that raises the flag when imported, with an attack in it."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "attacks.py").write_text(
        f"open({str(flag)!r}, 'w').close()\n"
        "from backdoor_bench.attack.badnet import BadNet\n"
        "class Mine(BadNet):\n    version = 7\n"
        "def make(**options):\n    return Mine()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "theirs"
    for name in [name for name in sys.modules if name.split(".")[0] == "theirs"]:
        del sys.modules[name]


def test_ours_is_made() -> None:
    made = trusted_instance({"_target_": BADNET, "target_label": 3, "size": 2}, Attack)
    assert isinstance(made, BadNet)
    assert (made.target_label, made.size) == (3, 2)


def test_ours_with_a_nested_object_of_ours_is_made() -> None:
    made = trusted_instance(DIGITS, Dataset, nested=Augmentation)
    assert isinstance(made, Digits)
    assert made.augmentation == Augmentation(crop_padding=2)


@pytest.mark.parametrize("target", ["os.system", "subprocess.Popen", "pathlib.Path.touch", "builtins.eval", "os", ""])
def test_foreign_code_is_refused(target: str, flag: Path) -> None:
    node = {"_target_": target, "_args_": [f"touch {flag}"]}
    with pytest.raises(UntrustedError, match="in none of the trusted packages"):
        trusted_instance(node, Attack)
    assert not flag.exists()


@pytest.mark.parametrize(
    "target",
    [
        "backdoor_bench.experiment.run",  # a function
        "backdoor_bench.environment.subprocess.run",  # reached through a module of ours
        "backdoor_bench.environment.subprocess",
        "backdoor_bench.dataset.digits.Digits",  # a class of ours, of another base
        "backdoor_bench.model.preact_resnet18.PreActResNet18.load_state_dict",
        "backdoor_bench.nothing.Here",
        "backdoor_bench.${oc.env:HOME}.Here",
        "backdoor_bench",
        "backdoor_benchmark.Attack",
    ],
)
def test_ours_that_is_no_attack_is_refused(target: str) -> None:
    with pytest.raises(UntrustedError, match=target.replace("$", r"\$").replace("{", r"\{")):
        trusted_class(target, Attack)


def nested(target: Any) -> list[dict[str, Any]]:
    """The same call at several depths."""
    call = {"_target_": target, "_args_": ["touch FLAG"]}
    return [{"size": call}, {"size": {"deep": [1, [call]]}}, {"size": [{"a": call}]}, {"_args_": [call]}]


@pytest.mark.parametrize("inside", nested("os.system"))
def test_foreign_code_inside_is_refused(inside: dict[str, Any], flag: Path) -> None:
    inside = json.loads(json.dumps(inside).replace("FLAG", str(flag)))
    with pytest.raises(UntrustedError, match=r"'os.system' inside BadNet; nothing was executed"):
        trusted_instance({"_target_": BADNET, **inside}, Attack)
    with pytest.raises(UntrustedError, match=r"os\.system"):
        trusted_instance({**DIGITS, **inside}, Dataset, nested=Augmentation)
    assert not flag.exists()


def test_a_nested_class_of_ours_must_be_what_is_expected_there() -> None:
    with pytest.raises(UntrustedError, match="is no Augmentation"):
        trusted_instance({**DIGITS, "augmentation": {"_target_": BADNET}}, Dataset, nested=Augmentation)
    with pytest.raises(UntrustedError, match="inside BadNet"):
        trusted_instance({"_target_": BADNET, "size": {"_target_": BADNET}}, Attack)


def test_a_nested_target_that_is_no_text_is_refused() -> None:
    with pytest.raises(UntrustedError):
        trusted_instance({"_target_": BADNET, "size": {"_target_": {"_target_": "os.system"}}}, Attack)
    with pytest.raises(UntrustedError):
        trusted_instance({**DIGITS, "name": {"_target_": ["os.system"]}}, Dataset, nested=Augmentation)


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "x${oc.env:HOME}", ["${oc.env:HOME}"], {"a": "${.b}"}])
def test_interpolations_are_refused(value: Any) -> None:
    with pytest.raises(UntrustedError, match=r"oc\.env:HOME|\.b"):
        trusted_instance({"_target_": BADNET, "size": value}, Attack)
    with pytest.raises(UntrustedError):
        trusted_instance({**DIGITS, "name": value}, Dataset, nested=Augmentation)


@pytest.mark.parametrize(
    "node", [{}, {"_target_": 5}, {"_target_": None}, {"_target_": ["os.system"]}, "os.system", None]
)
def test_what_is_no_node_is_refused(node: Any) -> None:
    with pytest.raises(UntrustedError, match="has no _target_ where a Network was expected"):
        trusted_instance(node, Network)


def test_a_partial_is_refused() -> None:
    with pytest.raises(UntrustedError, match="makes no Attack of BadNet"):
        trusted_instance({"_target_": BADNET, "_partial_": True}, Attack)


def test_options_that_the_class_does_not_have() -> None:
    with pytest.raises(UntrustedError, match=r"does not fit BadNet as it is here: .*colour"):
        trusted_instance({"_target_": BADNET, "colour": "red"}, Attack)
    with pytest.raises(ConfigError, match="poisoning_ratio=2"):
        trusted_instance({"_target_": BADNET, "poisoning_ratio": 2}, Attack)


def test_somebodys_package_is_not_even_imported(package: str, flag: Path) -> None:
    with pytest.raises(UntrustedError, match=r"trust=\[PACKAGE\]"):
        trusted_instance({"_target_": "theirs.attacks.Mine"}, Attack)
    with pytest.raises(UntrustedError):
        trusted_instance({"_target_": "theirs.attacks.Mine"}, Attack, packages=["their", "theirs.other"])
    assert not flag.exists()
    assert not any(name.split(".")[0] == package for name in sys.modules)


@pytest.mark.parametrize("trust", ["theirs", "theirs.attacks"])
def test_a_package_that_the_user_trusts(package: str, flag: Path, trust: str) -> None:
    made = trusted_instance({"_target_": "theirs.attacks.Mine"}, Attack, packages=[trust])
    assert type(made).__name__ == "Mine"
    assert flag.exists()
    with pytest.raises(UntrustedError, match="is no Attack"):
        trusted_instance({"_target_": "theirs.attacks.make"}, Attack, packages=[trust])
