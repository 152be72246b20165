"""What a command would run is composed before Hydra is asked: misspelt options are told with close matches."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from backdoor_bench import config
from backdoor_bench.composing import compose_run, first_job, is_plain, shared
from backdoor_bench.errors import ConfigError

CONF, SWEEPS = config.directory(), config.directory("multirun_sweeps")


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


def test_options_that_exist_are_composed_and_no_folder_is_made(tmp_path: Path) -> None:
    given = ["+attack=badnet", "attack.poisoning_ratio=0.1", "+recipe.lengths.mine=3"]
    found = compose_run([*given, f"store_dir={tmp_path}/store"], CONF)
    assert found is not None
    assert (found.attack.poisoning_ratio, found.recipe.lengths.mine) == (0.1, 3)
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["--cfg", "job", "-p", "attack", "+attack=sig", "seed=1"], ["+attack=sig", "seed=1"]),
        (["hydra.verbose=true", "seed=1", "~logger"], ["seed=1", "~logger"]),
        (["-m", "+attack=sig,badnet", "hydra/launcher=ray"], ["+attack=sig"]),
        (["--config-name", "mine", "seed=1"], []),
        (["--help"], []),
    ],
)
def test_the_options_that_all_runs_of_a_command_have(arguments: list[str], options: list[str]) -> None:
    assert shared(arguments, SWEEPS) == options


def test_of_a_sweep_they_are_what_is_no_axis() -> None:
    place, *options = shared(["+sweep=smoke", "seed=1", "spc=2,10", "hydra.launcher.workers=1"], SWEEPS)
    assert place == f"hydra.searchpath=[file://{SWEEPS}]"
    assert options == ["+sweep=smoke", "seed=1"]
