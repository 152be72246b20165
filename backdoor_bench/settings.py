"""Options of a run that no class takes, looked at when it is planned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backdoor_bench.dataset.split import require_clean_from
from backdoor_bench.errors import ConfigError, require_whole, unknown

SWITCHES = ("force", "save_purified", "measure_stages", "download")
TOO_LARGE = 2**62
TRAINER = ("precision", "channels_last", "eval_batch_size", "dataset_memory_share")


def checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with its seeds as whole numbers.

    Generators are seeded by how a number is written, and 5.0 is no other run than 5.

    Raises:
        ConfigError: a value that cannot be, or an option of ``trainer`` that nothing reads.
    """
    trainer = config["trainer"]
    for name in trainer:
        if name not in TRAINER:
            raise unknown("option of trainer", name, TRAINER)
    for name in TRAINER:
        if name not in trainer:
            raise ConfigError(f"trainer.{name} is missing; every run needs it")
    switches = {name: config[name] for name in SWITCHES} | {"trainer.channels_last": trainer["channels_last"]}
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise ConfigError(f"{name}={value}: expected true or false")
    require_whole("trainer.eval_batch_size", trainer["eval_batch_size"], 1)
    share = config["weak_attack_below"]
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise ConfigError(f"weak_attack_below={share}: expected an ASR as a fraction in [0, 1], e.g. 0.5 for 50 %")
    require_clean_from(config["clean_from"])
    if not isinstance(config["trust"], (list, tuple)):
        raise ConfigError(f"trust={config['trust']}: expected a list of packages, e.g. trust=[mine]")
    if not config["data_dir"]:
        raise ConfigError("data_dir is empty; name a folder, e.g. data_dir=./data (or unset BACKDOOR_BENCH_DATA)")
    for group in ("attack", "defense"):
        node = config.get(group)
        if node is not None and "_target_" not in node:
            raise ConfigError(f"{group}.{next(iter(node), '')}: no {group} is chosen; add +{group}=NAME")
    seeds = {name: require_whole(name, config[name], 0) for name in ("seed", "repetition")}
    for name, seed in seeds.items():
        if seed >= TOO_LARGE:
            raise ConfigError(f"{name}={seed}: expected a whole number below 2^62, which records and tables can hold")
    return {**config, **seeds}
