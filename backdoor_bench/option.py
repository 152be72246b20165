"""Options of classes, looked at when a run is planned: Python and torch would refuse them in the middle of one.

What a class does not take, or not of that kind, is told from its signature. Optimisers and schedules are partial nodes,
called when there are weights: what they refuse themselves (a negative rate) is told from making them for a single one.
"""

from __future__ import annotations

import inspect
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import torch
from hydra.utils import get_object

from backdoor_bench import config as configuration
from backdoor_bench.errors import ConfigError, unknown

HYDRAS = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")
"""What Hydra itself reads in a node."""
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
        for name, value in part.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{place}.{name}={value}".lstrip(".") + ": expected a finite number")
        if part.get("_partial_"):
            _check_options(part, place)
    for place, part in _nodes(node, path):
        if isinstance(part.get("optimizer"), Mapping) and part["optimizer"].get("_partial_"):
            _try(part, place)


def make(node: Mapping[str, Any], path: str, **extra: Any) -> Any:
    """Check a node and make what it names; the class's own words on a value go before the kinds of its parameters.

    Raises:
        ConfigError: as :func:`check`, of all classes in the node, or what the class itself refuses.
    """
    check(node, path)
    try:
        made = configuration.make(dict(node), **extra)
    except ConfigError as error:
        if error.__cause__ is not None:  # Python's words, not the class's own
            _check_kinds(node, path, str(error))
        raise
    _check_kinds(node, path)
    return made


def _check_kinds(node: Mapping[str, Any], path: str, refused: str = "") -> None:
    """Refuse values of another kind than our own classes say, and the options that Python's words name as unknown."""
    for place, part in _nodes(node, path):
        if isinstance(part.get("_target_"), str) and not part.get("_partial_"):
            _check_options(part, place, refused)


def _nodes(node: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping in a node with its path; an optimiser before the schedule that copies its rate."""
    if isinstance(node, Mapping):
        yield path, node
        for name in sorted(node):
            yield from _nodes(node[name], f"{path}.{name}".strip("."))


def _check_options(node: Mapping[str, Any], path: str, refused: str = "") -> None:
    target = str(node.get("_target_"))
    try:
        made = get_object(target)
    except (ImportError, ValueError):
        raise ConfigError(
            f"{path}._target_={target}: there is no such class; expected one of torch.optim or its lr_scheduler, as in "
            "torch.optim.SGD"
        ) from None
    parameters = _parameters(made)
    if parameters is None:
        return
    partial = bool(node.get("_partial_"))
    if partial:
        del parameters[next(iter(parameters))]  # the first is given later
    for name, value in node.items():
        if name in HYDRAS or not (partial or name in parameters or f"'{name}'" in refused):
            continue  # a class may take whatever there is, as the stage ``skip`` does
        if not parameters:
            raise ConfigError(f"{path}.{name}: {target} takes no options; ~{path}.{name} removes it")
        if name not in parameters:
            raise ConfigError(f"{unknown(f'option of {path} ({target})', name, parameters)} ~{path}.{name} removes it.")
        parameter, module = parameters[name]
        if isinstance(value, Mapping) or value == parameter.default:
            continue
        hint = _hint(module, parameter.annotation)
        if (partial or target.startswith("backdoor_bench.")) and not _fits(value, hint):
            written = f"{path}.{name}".lstrip(".")
            raise ConfigError(f"{written}={'null' if value is None else value}: expected {_words(hint)}")


def _parameters(made: Any) -> dict[str, tuple[inspect.Parameter, str]] | None:
    """What a callable may be given, each with its module; ``**common`` is handed on to a base. None: anything."""
    found: dict[str, tuple[inspect.Parameter, str]] = {}
    kinds = [kind for kind in made.__mro__[:-1] if "__init__" in vars(kind)] if isinstance(made, type) else [made]
    for kind in kinds:
        given = list(inspect.signature(vars(kind)["__init__"] if isinstance(made, type) else kind).parameters.values())
        own = given[1:] if isinstance(made, type) else given
        for parameter in own:
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                found.setdefault(parameter.name, (parameter, kind.__module__))
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in own):
            return found
    return None if kinds else found


def _hint(module: str, annotation: Any) -> Any:
    """What a parameter is annotated with; Any where that is nothing, or a name that only type checkers know."""
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, vars(sys.modules[module]))
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
    if origin is Callable or (isinstance(hint, type) and hint.__module__.startswith("backdoor_bench.")):
        return False  # a node of its own
    if origin in (tuple, list, Sequence):
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
    if origin is Callable or (isinstance(hint, type) and hint not in WORDS):
        return "a class's options"
    if origin in (tuple, list, Sequence):
        count = f"{len(inner)} values" if origin is tuple and Ellipsis not in inner else "values"
        return f"a list of {count}, each {_words(inner[0])}"
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
