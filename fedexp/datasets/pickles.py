"""The pickles that CIFAR is published in, read without the module ``pickle``.

``pickle.load`` runs whatever code a file asks for, and these files come from the internet. A batch
of CIFAR is a dict of texts, lists and one array of bytes. This module executes the opcodes of such
a pickle on a stack of plain values. It imports no name and calls nothing: it knows the four calls
that the pickle of such an array makes, and anything else is an error. Containers may not hold
containers, except for one level of tuples and the values of the dict, so that nothing recurses.
"""

import pickletools
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from fedexp.datasets.dealing import Array


@dataclass(frozen=True)
class _Name:
    """A global that the pickle names."""

    text: str


_MARK, _ARRAY, _BYTES = _Name("a mark"), _Name("an array without its data"), _Name("uint8")
_RECONSTRUCT = {_Name(f"numpy.{core}.multiarray _reconstruct") for core in ("core", "_core")}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS = {"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE"}
_STRINGS = {"BINSTRING", "SHORT_BINSTRING"}  # Python 2's, which are bytes
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_KNOWN_NAMES = _RECONSTRUCT | {
    _Name("numpy dtype"),
    _Name("numpy ndarray"),
    _Name("_codecs encode"),
}


def read_batch(content: bytes) -> dict[Any, Any]:
    """Read the dict that is pickled in ``content``, in protocol 2.

    Raises:
        ValueError: anything but such a dict.
        IndexError, KeyError, TypeError: likewise, if the stack or memo lacks what is asked for.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for opcode, arg, _ in pickletools.genops(content):
        name, value = opcode.name, cast(Any, arg)
        if name in _NUMBERS:
            stack.append(value)
        elif name in _STRINGS:
            stack.append(value.encode("latin-1"))
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[value] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[value])
        elif name == "STOP":
            break
        elif name != "PROTO":
            _apply(name, value, stack)
    (batch,) = stack
    if not isinstance(batch, dict):
        raise ValueError(f"a {type(batch).__name__} is pickled")
    return batch


def _apply(name: str, arg: Any, stack: list[Any]) -> None:
    if name in ("MARK", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE"):
        stack.append({"MARK": _MARK, "EMPTY_LIST": [], "EMPTY_DICT": {}}.get(name, ()))
    elif name == "GLOBAL":
        stack.append(_known(_Name(arg)))
    elif name == "TUPLE":
        stack.append(_flat(tuple(_above_mark(stack))))
    elif name in _TUPLES:
        stack.append(_flat(tuple(_popped(stack, _TUPLES[name]))))
    elif name in ("APPEND", "APPENDS"):
        values = _popped(stack, 1) if name == "APPEND" else _above_mark(stack)
        _container(stack, list).extend(_scalar(value) for value in values)
    elif name in ("SETITEM", "SETITEMS"):
        values = _popped(stack, 2) if name == "SETITEM" else _above_mark(stack)
        pairs = zip(map(_scalar, values[::2]), values[1::2], strict=True)
        _container(stack, dict).update(pairs)
    elif name == "REDUCE":
        stack.append(_called(*_popped(stack, 2)))
    elif name == "BUILD":
        stack.append(_with_state(*_popped(stack, 2)))
    else:
        raise ValueError(f"opcode {name}")


def _known(name: _Name) -> _Name:
    if name not in _KNOWN_NAMES:
        raise ValueError(f"it wants to import {name.text.replace(' ', '.')}")
    return name


def _popped(stack: list[Any], count: int) -> list[Any]:
    if len(stack) < count:
        raise ValueError("an empty stack")
    values = stack[-count:]
    del stack[-count:]
    return values


def _above_mark(stack: list[Any]) -> list[Any]:
    values: list[Any] = []
    while (value := stack.pop()) is not _MARK:
        values.append(value)
    return values[::-1]


def _container(stack: list[Any], kind: type) -> Any:
    if type(stack[-1]) is not kind:
        raise ValueError(f"items for a {type(stack[-1]).__name__}")
    return stack[-1]


def _scalar(value: Any) -> Any:
    if not isinstance(value, int | bytes | str):
        raise ValueError(f"a {type(value).__name__} where a number or text belongs")
    return value


def _flat(values: tuple[Any, ...]) -> tuple[Any, ...]:
    for value in values:
        if isinstance(value, tuple):
            for inner in value:
                _scalar(inner)
        elif isinstance(value, list | dict | np.ndarray):
            raise ValueError(f"a {type(value).__name__} in a tuple")
    return values


def _called(function: Any, args: Any) -> Any:
    """The result of one of the calls that the pickle of an array makes."""
    if function in _RECONSTRUCT and args == (_Name("numpy ndarray"), (0,), b"b"):
        return _ARRAY
    if function == _Name("numpy dtype") and args in ((b"u1", 0, 1), ("u1", 0, 1)):
        return _BYTES
    if function == _Name("_codecs encode") and args[1:] == ("latin1",):
        return str(args[0]).encode("latin-1")  # bytes, as Python 3 pickles them
    raise ValueError("a call that no array of bytes needs")


def _with_state(made: Any, state: Any) -> Any:
    """Set the state of what a call has made: the type stays as it is, the array gets its data."""
    unordered = (None, None, None, -1, -1, 0)
    if made is _BYTES and state in ((3, b"|", *unordered), (3, "|", *unordered)):
        return _BYTES
    if made is _ARRAY and len(state) == 5 and (state[0], *state[2:4]) == (1, _BYTES, False):
        return _array(state[1], state[4])
    raise ValueError("no array of bytes")


def _array(shape: Any, data: Any) -> Array:
    if not isinstance(data, bytes) or any(type(size) is not int or size < 0 for size in shape):
        raise ValueError("an array of another kind")
    return np.frombuffer(data, np.uint8).reshape(shape)
