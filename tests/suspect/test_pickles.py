"""The tracer against pickle itself: the same values where nothing is called, names where something is."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from pathlib import PurePosixPath
from typing import Any

import pytest

from backdoor_bench.suspect.pickles import Call, Global, Reference, trace

PLAIN = {
    "numbers": [0, -1, 255, 65536, 2**40, 2**2100, 1.5, True, False, None],
    "texts": ("a", "long " * 100, "\u00fc", b"bytes", bytearray(b"more")),
    "sets": [{1, 2}, frozenset({3})],
    "nested": {"empty": [(), [], {}, ("one",), ("a", "b"), ("a", "b", "c"), tuple(range(5))]},
}


def plain(value: Any) -> Any:
    """A traced value with the calls that rebuild sets and byte strings under old protocols made."""
    if isinstance(value, Call):
        arguments = [plain(argument) for argument in value.arguments]
        made = {"set": set, "frozenset": frozenset, "bytearray": bytearray, "bytes": bytes}
        if value.name == "_codecs.encode":
            return arguments[0].encode(arguments[1])
        return made[value.name.removeprefix("builtins.")](*arguments)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return type(value)(plain(item) for item in value) if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_come_out_as_they_went_in(protocol) -> None:
    found = trace(io.BytesIO(pickle.dumps(PLAIN, protocol)))
    assert found.error is None
    assert plain(found.value) == PLAIN


def test_what_is_shared_stays_shared() -> None:
    item = [1]
    found = trace(io.BytesIO(pickle.dumps([item, item])))
    assert found.value[0] is found.value[1]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_object_is_a_call_by_name(protocol) -> None:
    """Python 2's names, which old protocols have, are translated."""
    found = trace(io.BytesIO(pickle.dumps({"x": PurePosixPath("a/b"), "y": len}, protocol)))
    assert found.error is None
    names = {call.name for call in found.calls} | set(found.globals)
    assert any(name.startswith("pathlib") and name.endswith("PurePosixPath") for name in names)
    assert isinstance(found.value["y"], Global)
    assert str(found.value["y"]) == "builtins.len"


def test_calls_of_calls_and_states_are_kept() -> None:
    code = b"cbuiltins\ngetattr\n(cos\npath\nVjoin\ntR(VA\ntR}Vk\nVv\nsb."
    found = trace(io.BytesIO(code))
    assert [call.name for call in found.calls] == ["builtins.getattr", "the result of builtins.getattr"]
    assert found.value.states == [{"k": "v"}]
    assert set(found.globals) == {"builtins.getattr", "os.path"}


def test_items_of_an_ordered_dictionary_and_persistent_ids() -> None:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", 7) if isinstance(value, complex) else None

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump(OrderedDict(a=1j))
    found = trace(io.BytesIO(buffer.getvalue()))
    ((reference,),) = [list(state.values()) for state in found.value.states]
    assert isinstance(reference, Reference)
    assert found.references == [reference]
    assert reference.id == ("storage", 7)


@pytest.mark.parametrize(
    "code",
    [
        b"",
        b".",
        b"K",
        b"(",
        b"0.",
        b"h\x05.",
        b"R.",
        b"}(]K\x01u.",
        b"\x82\x01",
        b"]]",
        b"c\n",
        b"\xff",
        b"(}s.",
        b"(\x85.",
    ],
)
def test_no_program_is_an_error_and_no_exception(code) -> None:
    assert trace(io.BytesIO(code)).error is not None or code == b"\x82\x01."


def test_a_copyreg_extension_and_a_computed_name_are_names_too() -> None:
    assert list(trace(io.BytesIO(b"\x82\x07.")).globals) == ["copyreg.extension 7"]
    assert list(trace(io.BytesIO(b"\x80\x04K\x01K\x02\x93.")).globals) == ["a computed module.a computed name"]


def test_lengths_are_claims() -> None:
    """Eight bytes may declare an exabyte."""
    assert trace(io.BytesIO(b"\x8d" + b"\xff" * 7 + b"\x0fab")).error is not None
