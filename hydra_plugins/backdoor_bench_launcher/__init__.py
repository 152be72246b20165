"""Hydra accepts a launcher only if its class is defined here; everything of it is in the package."""

from backdoor_bench.sweep import launcher

__all__ = ["RayLauncher"]


class RayLauncher(launcher.RayLauncher):
    __doc__ = launcher.RayLauncher.__doc__
