"""Whether tensors fit a network: under whose names, and if not, what differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from backdoor_bench import progress
from backdoor_bench.errors import IncompatibleError
from backdoor_bench.model import Network
from backdoor_bench.model.walk import title
from backdoor_bench.suspect.container import printable
from backdoor_bench.words import counted

LISTED = 12


def fit(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> dict[str, str]:
    """Load ``tensors`` into ``network``, in place, every one and exactly.

    Names may carry a prefix (``model.`` of a Lightning checkpoint, ``backbone.`` of ours) and, for a :class:`Network`,
    the names that its builder or BackdoorBench gives. What lies outside of a prefix is left aside, and that is said.

    Returns:
        The name that each of the network's tensors has in the file.

    Raises:
        IncompatibleError: what does not fit, by name and shape.
    """
    match = compare(network, tensors)
    if match.differences:
        more = len(match.differences) - LISTED
        raise IncompatibleError(
            f"{source} does not fit {title(network)}; {counted(len(match.differences), 'difference')} from its "
            f"{match.count} tensors "
            "(python -m backdoor_bench.inspect FILE says what it fits; a network of your own class is purified in "
            "Python, by backdoor_bench.purify):\n  "
            + "\n  ".join(match.differences[:LISTED])
            + (f"\n  and {more} more" if more > 0 else "")
        )
    if match.aside:
        progress.say(f"{source}: left aside {', '.join(match.aside[:5])}{' ...' if len(match.aside) > 5 else ''}")
    network.load_state_dict({name: tensors[came] for name, came in match.names.items()}, strict=False)
    return match.names


@dataclass(frozen=True)
class Match:
    """How tensors fit a network.

    Args:
        names: the network's name of each tensor, with the one that it came under.
        differences: what does not fit, by name and shape.
        aside: tensors outside of the prefix, which are not the network's.
        count: tensors of the network.
    """

    names: dict[str, str]
    differences: list[str]
    aside: list[str]
    count: int


def compare(network: nn.Module, tensors: Mapping[str, Tensor]) -> Match:
    """Look without loading anything; both may be on the meta device."""
    own = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    candidates = (_named(network, tensors, prefix) for prefix in _prefixes(tensors))
    names = max(candidates, key=lambda names: sum(own.get(name) == _shape(tensors, names, name) for name in names))
    used = set(names.values())
    aside = [printable(name) for name in tensors if name not in used]
    return Match(names, list(_differences(own, tensors, names)), aside, len(own))


def _prefixes(tensors: Mapping[str, Tensor]) -> list[str]:
    """No prefix, and every one or two first parts of a name."""
    found = {"": None}
    for name in tensors:
        parts = name.split(".")
        for length in (1, 2):
            if len(parts) > length:
                found[".".join(parts[:length]) + "."] = None
    return list(found)


def _named(network: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> dict[str, str]:
    """The network's names for the tensors below ``prefix``, with those they came under."""
    came = [name for name in tensors if name.startswith(prefix)]
    inside = {name.removeprefix(prefix): tensors[name] for name in came}
    named = network.own_names(inside) if isinstance(network, Network) else inside
    return dict(zip(named, came, strict=True)) if len(named) == len(came) else {}


def _shape(tensors: Mapping[str, Tensor], names: Mapping[str, str], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[names[name]].shape) if name in names else None


def _differences(
    own: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor], names: Mapping[str, str]
) -> Iterator[str]:
    for name, expected in own.items():
        came = _shape(tensors, names, name)
        # BatchNorm counted no batches before torch 1.0, and some exporters drop the count.
        if came != expected and not (came is None and name.endswith("num_batches_tracked")):
            yield f"{name}: expected {_text(expected)}, came {'nothing' if came is None else _text(came)}"
    for name, came_name in names.items():
        if name not in own:
            yield f"{printable(came_name)}: expected nothing, came {_text(tuple(tensors[came_name].shape))}"


def _text(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
