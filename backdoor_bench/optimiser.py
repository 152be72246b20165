"""Options of optimisers and schedules, looked at when a run is planned: torch would refuse them in the middle of one.

Their nodes are partial: what they name is called when there are weights. What a class does not take, or not of that
kind, is told from its signature; what it refuses itself (a negative rate) from making it for a single weight.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import torch
from hydra.utils import get_object

from backdoor_bench import config as configuration
from backdoor_bench.errors import ConfigError, unknown

WORDS = {float: "a number", int: "a whole number", bool: "true or false", str: "a word", type(None): "null"}


def check(node: Mapping[str, Any], path: str) -> None:
    """Refuse what an optimiser or a schedule anywhere in a node would refuse.

    Args:
        node: of a recipe, an attack or a defense, resolved.
        path: where it stands, as on the command line; options are named below it.

    Raises:
        ConfigError: a class that does not exist, an option that it does not have, or a value that it does not take.
    """
    for place, part in _nodes(node, path):
        if part.get("_partial_"):
            _check_options(part, place)
    for place, part in _nodes(node, path):
        if isinstance(part.get("optimizer"), Mapping) and part["optimizer"].get("_partial_"):
            _try(part, place)


def _nodes(node: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping in a node with its path; an optimiser before the schedule that copies its rate."""
    if isinstance(node, Mapping):
        yield path, node
        for name in sorted(node):
            yield from _nodes(node[name], f"{path}.{name}".strip("."))


def _check_options(node: Mapping[str, Any], path: str) -> None:
    target = str(node.get("_target_"))
    try:
        made = get_object(target)
    except (ImportError, ValueError):
        raise ConfigError(
            f"{path}._target_={target}: there is no such class; expected one of torch.optim or its lr_scheduler, as in "
            "torch.optim.SGD"
        ) from None
    parameters = dict(list(inspect.signature(made).parameters.items())[1:])  # the first is given later
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for name, value in node.items():
        if name in ("_target_", "_partial_"):
            continue
        if not parameters:
            raise ConfigError(f"{path}.{name}: {target} takes no options; ~{path}.{name} removes it")
        if name not in parameters:
            raise ConfigError(f"{unknown(f'option of {path} ({target})', name, parameters)} ~{path}.{name} removes it.")
        hint = _hint(made, parameters[name].annotation)
        if not _fits(value, hint):
            raise ConfigError(f"{path}.{name}={'null' if value is None else value}: expected {_words(hint)}")


def _hint(made: Any, annotation: Any) -> Any:
    """What a parameter is annotated with; Any where that is nothing, or a name that only type checkers know."""
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, vars(sys.modules[made.__module__]))
        except (NameError, TypeError, KeyError):
            return Any
    return Any if annotation is inspect.Parameter.empty else annotation


def _fits(value: Any, hint: Any) -> bool:
    """Whether a configuration's value is of a kind; kinds that no configuration can tell are left to the trial."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if origin in (tuple, list):
        if not isinstance(value, (list, tuple)):
            return False
        kinds = inner if origin is tuple and Ellipsis not in inner else inner[:1] * len(value)
        return len(kinds) == len(value) and all(map(_fits, value, kinds))
    if hint in (int, float):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and (hint is float or float(value).is_integer())
    return isinstance(value, hint) if hint in WORDS or hint is torch.Tensor else True


def _words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(_words(one) for one in inner if one is not torch.Tensor)
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin in (tuple, list):
        return f"a list of {f'{len(inner)} values' if origin is tuple else 'values'}, each {_words(inner[0])}"
    return WORDS.get(hint, str(hint))


def _try(node: Mapping[str, Any], path: str) -> None:
    """Make the optimiser of one weight, and move its schedule once."""
    weight, place = torch.nn.Parameter(torch.zeros(1, device="cpu")), f"{path}.optimizer".strip(".")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nothing was optimised before the schedule moved
            optimizer = configuration.make(dict(node["optimizer"]))([weight])
            if not isinstance(node.get("scheduler"), Mapping) or node.get("epochs") == 0:
                return  # over no epochs there is no schedule: the length of a cosine would be 0
            place = f"{path}.scheduler".strip(".")
            scheduler = configuration.make(dict(node["scheduler"]))
            steps = {"total_steps": 2} if "total_steps" in inspect.signature(scheduler).parameters else {}
            schedule = scheduler(optimizer, **steps)
            if isinstance(schedule, dict):
                schedule = schedule["scheduler"]
            plateau = isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau)
            schedule.step(*([1.0] if plateau else []))
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ConfigError(f"{place}: {str(error).splitlines()[0]}; change its options") from error
