"""What a person types is checked and made ready before Hydra sees it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from backdoor_bench import config
from backdoor_bench.errors import ConfigError
from backdoor_bench.overrides import compose_run, first_job, is_plain, prepare

CONF = config.directory()


def ready(*arguments: str) -> list[str]:
    return prepare(arguments, CONF)


def test_a_constant_under_a_swept_group_becomes_a_choice() -> None:
    given = ["-m", "+attack=badnet,blended", "attack.poisoning_ratio=0.05"]
    assert ready(*given) == ["-m", "+attack=badnet,blended", "attack.poisoning_ratio=choice(0.05)"]


def test_a_list_stays_one_value() -> None:
    given = ready("-m", "+defense=ft,fp", "defense.assumes=[trigger]")
    assert given[-1] == "defense.assumes=choice([trigger])"


@pytest.mark.parametrize(
    "arguments",
    [
        ["+attack=badnet", "attack.poisoning_ratio=0.05"],
        ["-m", "+attack=badnet", "seed=0,1", "attack.poisoning_ratio=0.05"],
        ["-m", "+attack=badnet,blended", "recipe.epochs=3"],
        ["-m", "+attack=badnet,blended", "attack.poisoning_ratio=0.05,0.1"],
    ],
)
def test_everything_else_is_left_alone(arguments: list[str]) -> None:
    assert ready(*arguments) == arguments


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("+attack=badnett", r"unknown attack 'badnett'\. Did you mean badnet or wanet\? Known: .*wanet"),
        ("+attack=badnet,wannet", r"unknown attack 'wannet'\. Did you mean wanet"),
        ("+defense=unibpp", r"unknown defense 'unibpp'\. Did you mean unibp"),
        ("dataset=cifr10", r"unknown dataset 'cifr10'\. Did you mean cifar10"),
        ("model=resnet", r"unknown model 'resnet'.*preact_resnet18"),
        ("model=preact_resnet19,resnet18", r"unknown model 'preact_resnet19'\. Did you mean preact_resnet18"),
        ("preset=evidenc", r"unknown preset 'evidenc'\. Did you mean evidence"),
        ("+attak=badnet", r"unknown group 'attak'\. Did you mean attack"),
        ("+defence=ft", r"unknown group 'defence'\. Did you mean defense"),
    ],
)
def test_unknown_names_are_refused_with_close_matches(argument: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ready(argument)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("badnet", "badnet: expected NAME=VALUE; type +attack=badnet"),
        ("+badnet", "+badnet: expected NAME=VALUE; type +attack=badnet"),
        ("+attack=badnet unibp", "unibp: expected NAME=VALUE; type +defense=unibp"),
        ("-m cifar10", "cifar10: expected NAME=VALUE; type dataset=cifar10"),
        ("resnet18", "resnet18: expected NAME=VALUE; type model=resnet18"),
        ("unibp_table1", "unibp_table1: expected NAME=VALUE; type +sweep=unibp_table1"),
        ("fast", "fast: expected NAME=VALUE; type preset=fast"),
        ("badnett", "badnett: expected NAME=VALUE. Did you mean +attack=badnet or +attack=wanet?"),
        ("attack badnet", "attack: expected NAME=VALUE, as in +attack=badnet"),
        ("dataset", "dataset: expected NAME=VALUE, as in dataset=cifar10"),
        ("spc", "spc: expected NAME=VALUE, as in +attack=badnet or seed=1"),
        ("+attack= badnet", "badnet: expected NAME=VALUE; a space ends a value: type +attack=badnet"),
        ("-m +attack=badnet, blended", "+attack=badnet,: a space ends a value; expected +attack=badnet,blended"),
        ("-m +attack=badnet, seed=1", "+attack=badnet,: a space ends a value; expected +attack=badnet,VALUE"),
        ("mean=[0.5, 0.5]", "mean=[0.5,: a space ends a value; expected mean=[0.5,0.5]"),
        ("--attack=badnet", "--attack=badnet: options have no dashes; expected +attack=badnet"),
        ("--defense ft", "--defense: options have no dashes; expected +defense=NAME"),
        ("--seed=1", "--seed=1: options have no dashes; expected seed=1"),
    ],
)
def test_what_is_no_option_says_what_to_type(arguments: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        prepare(arguments.split(), CONF, config.directory("multirun_sweeps"))
    assert str(raised.value) == message


@pytest.mark.parametrize(
    "arguments",
    ["--cfg job -p defense +defense=ft", "--info defaults", "-c all", "--config-name=config", "--package=attack",
     "+attack=badnet ~defense", "--shell-completion query=bash", "-sc install=bash", "--config-n config --resolve"],
)  # fmt: skip
def test_flags_of_hydras_and_deletions_are_left_alone(arguments: str) -> None:
    assert ready(*arguments.split()) == arguments.split()


@pytest.mark.parametrize("factor", ["model.width=8", "+model.width=8", "model.width=8,16", "model.blocks=[1,1,1,1]"])
def test_a_width_of_a_network_that_has_none_is_refused(factor: str) -> None:
    ours = ["model=preact_resnet34,resnet18_cifar", factor]
    ready(*ours)
    with pytest.raises(
        ConfigError, match=r"resnet18 is as published, without model\.\w+; preact_resnet18, preact_resnet34"
    ):
        ready("model=preact_resnet34,resnet18", factor)


def test_a_users_own_folder_of_configurations_counts(tmp_path) -> None:
    (tmp_path / "attack").mkdir()
    (tmp_path / "attack" / "mine.yaml").write_text("_target_: mine.attack.mine.Mine\n")
    arguments = ["--config-dir", str(tmp_path), "+attack=mine"]
    assert ready(*arguments) == arguments
    with pytest.raises(ConfigError, match="no such folder"):
        ready("--config-dir", str(tmp_path / "none"), "+attack=mine")


@pytest.mark.parametrize("group", ["attack=badnet", "defense=ft", "sweep=smoke"])
def test_the_plus_of_an_optional_group_may_be_left_out(group: str) -> None:
    assert prepare([group], CONF, config.directory("multirun_sweeps"))[0] == f"+{group}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["+attack=badnet", "attack.poisoning_rate=0.1"],
            "option of attack 'poisoning_rate'. Did you mean poisoning_ratio",
        ),
        (["recipe.epoch=3"], "option of recipe 'epoch'. Did you mean epochs"),
        (["recipe.epochs.most=3"], "recipe.epochs is one value, 15, without options of its own"),
        (["sede=3"], "unknown option 'sede'. Did you mean seed"),
        (["+attack=badnet", "defense.epochs=3"], "defense.epochs: no defense is chosen; add +defense=NAME"),
        (["recipe.epoch=3", "sede=3"], "option of recipe 'epoch'. Did you mean epochs"),
    ],
)
def test_a_misspelt_option_is_refused_with_close_matches(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        compose_run(arguments, CONF)


@pytest.mark.parametrize(
    ("arguments", "first"),
    [
        (["-m", "+attack=badnet,blended", "seed=2", "spc=2,10"], ["+attack=badnet", "seed=2", "spc=2"]),
        (["-m", "attack.alpha=choice(0.2)", "seed=range(3,5)"], ["attack.alpha=0.2", "seed=3"]),
        (["-m", "stage@defense.stages.prune=prune,skip"], ["stage@defense.stages.prune=prune"]),
        (["-m", "mean=[1,2],[3,4]", "store_dir='a b','c'"], ["mean=[1,2]", "store_dir='a b'"]),
        (["-m", "+attack=glob(b*)"], []),
        (["-m", "recipe.optimizer.lr=interval(0,1)"], []),
        (["-m", "seed=1,2", "hydra/launcher=ray_pool"], []),
    ],
)
def test_the_first_job_of_a_multirun(arguments: list[str], first: list[str]) -> None:
    assert first_job(arguments) == first


def test_a_pattern_of_names_is_left_to_hydra() -> None:
    assert ready("-m", "+attack=glob(b*)") == ["-m", "+attack=glob(b*)"]


def test_options_that_exist_are_composed_and_no_folder_is_made(tmp_path: Path) -> None:
    given = ["+attack=badnet", "attack.poisoning_ratio=0.1", "+recipe.lengths.mine=3"]
    found = compose_run([*given, f"store_dir={tmp_path}/store"], CONF)
    assert found is not None
    assert (found.attack.poisoning_ratio, found.recipe.lengths.mine) == (0.1, 3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["/tmp/Größe", "/tmp/Größe b", "/tmp/a;b"])
def test_a_value_that_needs_quotes_says_so(value: str) -> None:
    with pytest.raises(ConfigError) as raised:
        ready("+attack=badnet", f"store_dir={value}")
    assert str(raised.value).endswith(f"""type "store_dir='{value}'\"""")
    quoted = [f"store_dir='{value}'", "+attack=badnet"]
    assert ready(*quoted) == quoted
    found = compose_run(quoted, CONF)
    assert found is not None
    assert found.store_dir == value


@pytest.mark.parametrize("wrong", ["mean=[0.5,0.5", "seed=${", "+attack={a:1", "spc=choice(1"])
def test_what_quotes_would_not_mend_is_left_to_hydra(wrong: str) -> None:
    assert ready(wrong) == [wrong]


@pytest.mark.parametrize("wrong", ["seed", "+defense=[", "seed=${", "~seed.x"])
def test_what_hydra_explains_better_is_left_to_it(wrong: str) -> None:
    assert compose_run([wrong], CONF) is None


@pytest.mark.parametrize(
    ("arguments", "plain"),
    [
        (["+attack=badnet", "seed=1", "~logger"], True),
        ([], True),
        (["-m", "+attack=badnet,blended"], False),
        (["--cfg", "job"], False),
        (["+sweep=smoke"], False),
        (["hydra/sweeper=grid"], False),
        (["+hydra.verbose=true"], False),
        (["data_dir=${hydra:runtime.cwd}/data"], False),
    ],
)
def test_what_only_one_runs_options_are(arguments: list[str], plain: bool) -> None:
    assert is_plain(arguments) is plain


def test_a_group_named_to_a_flag_gets_no_plus() -> None:
    """``--cfg job -p defense`` prints that part."""
    typed = ["attack=badnet", "--cfg", "job", "-p", "defense"]
    assert prepare(typed, config.directory())[-1] == "defense"
