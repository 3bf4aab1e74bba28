"""What clients keep between rounds, on disk: a checkpoint writes only what has changed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from safetensors import safe_open

from fedexp.files import remove_leftovers, save_model
from fedexp.simulation.transport import Packed

Index = Mapping[str, list[int]]
"""Which nodes' states are those in a file."""

FOLDER = "clients"
"""Of the files, beside the checkpoints."""

_NAME = re.compile(r"[0-9a-f]{32}\.safetensors")
_KINDS = {"ArrayRecord": ArrayRecord, "MetricRecord": MetricRecord, "ConfigRecord": ConfigRecord}


class ClientStates:
    """Files of states, each named by the digest of its content: none is ever written over.

    Every ``save`` adds one file, of the states that have changed. A file of which less than half
    still counts is given up, and the rest of it goes into the new one. So no state is written more
    than twice for each time it changes, and the files of a checkpoint hold at most twice what the
    clients keep.

    Args:
        folder: of the files; it is made when there is something to write.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._states: dict[int, Packed] = {}  # as they are in the files of the index
        self._digests: dict[int, str] = {}
        self._index: dict[str, list[int]] = {}
        self._sizes: dict[str, int] = {}  # states in a file, whether or not they still count
        self._kept: tuple[Index, Index] = {}, {}  # of the last two checkpoints

    def save(self, states: Mapping[int, Packed]) -> Index:
        """Write what has changed since the last ``save`` or ``load``; where each state is now."""
        digests = {node: self._digest(node, packed) for node, packed in states.items()}
        index = {}
        for name, nodes in self._index.items():
            same = [node for node in nodes if digests.get(node) == self._digests[node]]
            if 2 * len(same) >= self._sizes[name]:
                index[name] = same
        there = {node for nodes in index.values() for node in nodes}
        if new := {node: states[node] for node in sorted(states.keys() - there)}:
            name = _name({node: digests[node] for node in new})
            self._folder.mkdir(exist_ok=True)
            save_model(self._folder / name, *_encoded(new), lasting=True)
            index[name], self._sizes[name] = list(new), len(new)
        # The packed states themselves are kept: an object that is still the same has not changed.
        self._states, self._digests, self._index = dict(states), digests, index
        return index

    def load(self, index: Index) -> dict[int, Packed]:
        """The states that ``save`` returned ``index`` for.

        Raises:
            OSError, SafetensorError, ValueError, LookupError: a file is gone, or damaged.
        """
        states: dict[int, Packed] = {}
        digests: dict[int, str] = {}
        sizes: dict[str, int] = {}
        for name, nodes in index.items():
            found = _decoded(self._folder / name)
            own = {node: digest_of(packed) for node, packed in found.items()}
            if _name(own) != name:
                raise ValueError(f"{FOLDER}/{name} is not what was written")
            sizes[name] = len(found)
            states |= {node: found[node] for node in nodes}
            digests |= {node: own[node] for node in nodes}
        self._states, self._digests, self._sizes = states, digests, sizes
        self._index = {name: list(nodes) for name, nodes in index.items()}
        self._kept = {}, self._index
        return dict(states)

    def clean(self) -> None:
        """Remove the files that neither the checkpoint just written needs, nor the one before."""
        self._kept = self._kept[1], self._index
        for path in _ours(self._folder):
            if not any(path.name in index for index in self._kept):
                path.unlink(missing_ok=True)
        self._sizes = {name: self._sizes[name] for name in self._index}

    def _digest(self, node: int, packed: Packed) -> str:
        same = self._states.get(node) is packed
        return self._digests[node] if same else digest_of(packed)


def forget_states(unit: Path) -> None:
    """Remove the states in the folder of a unit; files of anyone else stay."""
    remove_leftovers(unit / FOLDER, is_states)
    for path in _ours(unit / FOLDER):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # there is none, or something else is in it
        (unit / FOLDER).rmdir()


def is_states(name: str) -> bool:
    """Whether a file of this name is one of states."""
    return bool(_NAME.fullmatch(name))


def digest_of(packed: Packed) -> str:
    """Of all that one state says."""
    digest = blake2b(digest_size=16)
    for key, record in packed.items():
        if not isinstance(record, dict):
            digest.update(_json([key, type(record).__name__, dict(record)]).encode())
            continue
        digest.update(_json([key, len(record)]).encode())
        for name, x in record.items():
            digest.update(_json([name, x.dtype.str, x.shape]).encode())
            digest.update(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _ours(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*.safetensors") if is_states(path.name)]


def _name(digests: Mapping[int, str]) -> str:
    text = json.dumps(sorted(digests.items()))
    return f"{blake2b(text.encode(), digest_size=16).hexdigest()}.safetensors"


def _encoded(states: Mapping[int, Packed]) -> tuple[dict[str, Any], dict[str, str]]:
    """Arrays by number, and what they are called: names may hold anything."""
    names: list[tuple[int, str, str]] = []
    arrays: dict[str, Any] = {}
    records: dict[int, list[Any]] = {}
    for node, packed in states.items():
        records[node] = []
        for key, record in packed.items():
            plain = {} if isinstance(record, dict) else dict(record)
            kind = dict if isinstance(record, dict) else type(record)
            records[node].append([key, kind.__name__, plain])
            for name, x in record.items() if isinstance(record, dict) else ():
                arrays[str(len(names))] = x
                names.append((node, key, name))
    return arrays, {"names": _json(names), "records": _json(list(records.items()))}


def _decoded(path: Path) -> dict[int, Packed]:
    with safe_open(path, framework="numpy") as file:
        meta = file.metadata()
        names = json.loads(meta["names"])
        arrays = [file.get_tensor(str(i)) for i in range(len(names))]
    states: dict[int, dict[str, Any]] = {}
    for node, records in json.loads(meta["records"], object_hook=_from_json):
        states[node] = {
            key: {} if kind == "dict" else _KINDS[kind](plain) for key, kind, plain in records
        }
    for (node, key, name), x in zip(names, arrays, strict=True):
        states[node][key][name] = x
    return dict(states)


_BYTES, _ARRAY = "fedexp-bytes", "fedexp-array"  # of records; JSON has neither


def _json(value: Any) -> str:
    return json.dumps(value, default=_to_json)


def _to_json(value: Any) -> dict[str, Any]:
    if isinstance(value, Array):  # in a format of the app's own
        return {_ARRAY: [value.dtype, list(value.shape), value.stype, value.data.hex()]}
    return {_BYTES: bytes(value).hex()}


def _from_json(found: dict[str, Any]) -> Any:
    if found.keys() == {_BYTES}:
        return bytes.fromhex(found[_BYTES])
    if found.keys() == {_ARRAY}:
        dtype, shape, stype, data = found[_ARRAY]
        return Array(dtype, tuple(shape), stype, bytes.fromhex(data))
    return found
