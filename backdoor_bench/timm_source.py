"""``model=timm:NAME`` for Hydra: a source that has a configuration for every such name."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

GROUP, PREFIX = "model", "timm:"


class TimmSource(ConfigSource):
    """``model/timm:NAME`` is ``model/timm`` with that name; whether timm has it is seen when it is built."""

    @staticmethod
    def scheme() -> str:
        return "timm"

    def load_config(self, config_path: str) -> ConfigResult:
        from backdoor_bench.config import directory

        node = OmegaConf.load(directory() / GROUP / "timm.yaml")
        assert isinstance(node, DictConfig)
        node["name"] = config_path.removeprefix(f"{GROUP}/").removesuffix(".yaml")
        return ConfigResult(self.provider, f"{self.scheme()}://{config_path}", node, {"package": None})

    def is_group(self, config_path: str) -> bool:
        return config_path == GROUP

    def is_config(self, config_path: str) -> bool:
        return config_path.startswith(f"{GROUP}/{PREFIX}")

    def available(self) -> bool:
        return True

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        return []  # naming them would import timm


class TimmSearchPath(SearchPathPlugin):
    """Puts :class:`TimmSource` behind the folders of configurations."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("timm", "timm://")


def register() -> None:
    """Let Hydra know; once is enough."""
    for plugin in (TimmSource, TimmSearchPath):
        Plugins.instance().register(plugin)


__all__ = ["GROUP", "PREFIX", "register"]
