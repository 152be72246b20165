"""What a person types is checked and made ready before Hydra sees it."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from backdoor_bench import config
from backdoor_bench.composing import compose_run
from backdoor_bench.errors import ConfigError
from backdoor_bench.overrides import NULL, constants, flags_last, name_of, prepare

CONF, SWEEPS = config.directory(), config.directory("multirun_sweeps")


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


def test_a_pattern_of_names_is_left_to_hydra() -> None:
    assert ready("-m", "+attack=glob(b*)") == ["-m", "+attack=glob(b*)"]


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


def test_a_group_named_to_a_flag_gets_no_plus() -> None:
    """``--cfg job -p defense`` prints that part."""
    typed = ["attack=badnet", "--cfg", "job", "-p", "defense"]
    assert prepare(typed, config.directory())[-1] == "defense"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("~seed", "~seed: every run needs seed; choose another, seed=VALUE"),
        ("~logger=none", "~logger=none: every run needs logger; choose another, logger=VALUE"),
        ("+epochs=3", "unknown option 'epochs'"),
        ("++sede=3", "unknown option 'sede'. Did you mean seed"),
        ("++atack.size=3", "unknown group 'atack'. Did you mean attack"),
        ("+stage=skip", "+stage=skip: a stage is chosen for its place, as in stage@defense.stages.prune="),
        ("schedule=cosine", "schedule=cosine: a schedule is chosen for its place, as in schedule@recipe.scheduler="),
        (
            "attack=badnet +attack=sig",
            "+attack=badnet and +attack=sig: attack is chosen more than once; for",
        ),
        ("+sweep=smoke +sweep=survey", "sweep is chosen more than once; one command does one sweep"),
        ("+attack=null", "attack=null: a run without attack leaves it out; beside others, hydra/sweeper=grid takes"),
        ("-m +defense=ft,none", "defense=none: a run without defense leaves it out"),
        ("+attack=", "unknown attack ''. Known: badnet"),
        ("model=null", "unknown model 'null'. Known: "),
        ("-m recipe.optimizer.lr=interval(0,1)", "lr=interval(0,1): that has no end; expected values, e.g. recipe.opt"),
        ("-m seed=glob(*)", "seed=glob(*): a pattern is for names of a group, as in +attack=glob(b*)"),
        ("-m +attack=glob(zz*)", "unknown attack 'zz*'. Known: badnet"),
    ],
)
def test_what_hydra_would_take_or_drop_without_a_word_is_refused(arguments: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        prepare(arguments.split(), CONF, config.directory("multirun_sweeps"))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "arguments",
    [
        "+mine=3 recipe.epochs=${mine}",
        "+attack=badnet ~attack",
        "~recipe.lengths",
        "+seed=3",  # Hydra says which sign it lacks
        "--config-dir tests +mine=3 ~seed",  # what other configurations read is not known here
        "hydra.searchpath=[file:///mine] +mine=3",
        "-m seed=interval(0,1) hydra/sweeper=optuna",
        "stage@defense.stages.prune=skip",
        "schedule@recipe.scheduler=cosine",
    ],
)
def test_what_may_be_meant_is_left_alone(arguments: str) -> None:
    assert ready(*arguments.split()) == arguments.split()


@pytest.mark.parametrize("group", ["dataset=digits", "model=resnet18", "preset=fast", "recipe=digits", "logger=csv"])
def test_the_plus_before_a_group_that_every_run_has_is_dropped(group: str) -> None:
    assert ready(f"+{group}") == [group]


def test_a_null_under_a_swept_group_becomes_a_choice_that_hydra_reads() -> None:
    *_, null = ready("-m", "+attack=badnet,sig", "attack.size=null")
    parsed = OverridesParser.create().parse_overrides([null])[0]
    [value] = parsed.sweep_string_iterator()
    assert compose_run(["+attack=badnet", f"attack.size={value}"], CONF).attack.size is None
    assert null == f"attack.size=choice({NULL})"
    assert prepare(["+sweep=smoke", "defense=null"], CONF, SWEEPS)[-1] == "+defense=choice(none)"


def test_an_option_of_a_sweeps_own_data_set_or_network_is_looked_at_where_it_has_that() -> None:
    """The default network has no ``pretrained``, and Hydra applies a constant to that."""
    given = ["+sweep=survey_vgg19_bn", "model.pretrained=true", "dataset=digits", "recipe.epochs=3"]
    assert prepare(given, CONF, SWEEPS) == [given[0], "model.pretrained=choice(true)", *given[2:]]


@pytest.mark.parametrize(
    ("arguments", "ordered"),
    [
        ("+attack=sig -m seed=1,2", "+attack=sig seed=1,2 -m"),
        ("--cfg job seed=1 -p attack spc=2", "seed=1 spc=2 --cfg job -p attack"),
        ("seed=1", "seed=1"),
    ],
)
def test_flags_may_stand_between_options(arguments: str, ordered: str) -> None:
    assert flags_last(arguments.split()) == ordered.split()


def test_what_all_jobs_share_is_known_however_hydra_writes_it() -> None:
    typed = ["-m", "+defense=ft,fp", "attack=badnet", "save_purified=true", "lr=1e-1", "spc=null", "~defense.epochs"]
    shared = constants(typed)
    jobs = ["+attack=badnet", "save_purified=True", "lr=0.1", "spc=$\\{oc.decode\\:null\\}", "~defense.epochs=null"]
    assert shared == {name_of(job) for job in jobs}
    assert name_of("+defense=fp") not in shared
