"""All that a run needs to go on to the same bits; what clients keep is in files beside it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from safetensors import SafetensorError, safe_open

from fedexp.arrays import Arrays
from fedexp.files import save_model
from fedexp.runs.client_states import FOLDER, ClientStates
from fedexp.simulation.transport import Packed, packed_bytes

FORMAT = "2"
"""Of the files that ``save`` writes; no other can be read."""

NAMES = ("checkpoint.safetensors", "checkpoint-before.safetensors")
"""Of the newest checkpoint of a unit, and of the one before it."""

_warn = logging.getLogger("flwr").warning

_REMEDY = " Remove it to run from the first round."


class OtherFormatError(ValueError):
    """A checkpoint is sound, but of another version of this library."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of a run after a round. Draws need no state: they depend on seed and round.

    Attributes:
        server_round: the round.
        params: the model after it.
        state: the strategy's, arrays by owner and name.
        average: what the average of the iterates remembers, models by name.
        clients: ``Context.state`` by node, of nodes that have any.
        fingerprint: of the run, see ``fingerprint_of``; by default nothing is known of it.
    """

    server_round: int
    params: Arrays
    state: Mapping[str, Arrays] = field(default_factory=dict)
    average: Mapping[str, Arrays] = field(default_factory=dict)
    clients: Mapping[int, Packed] = field(default_factory=dict)
    fingerprint: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Of all arrays."""
        owners = [self.params, *self.state.values(), *self.average.values()]
        own = sum(x.nbytes for arrays in owners for x in arrays.values())
        return own + sum(map(packed_bytes, self.clients.values()))

    def save(self, path: Path, states: ClientStates | None = None) -> None:
        """Write the file whole, or leave the old one; that is kept as the second of ``NAMES``.

        Args:
            path: of the file.
            states: has what clients kept before; by default all of it is written anew.
        """
        arrays = {f"params/{name}": x for name, x in self.params.items()}
        for kind, owners in (("state", self.state), ("average", self.average)):
            for owner, values in owners.items():
                arrays |= {f"{kind}/{owner}/{name}": x for name, x in values.items()}
        states = states or ClientStates(path.with_name(FOLDER))
        meta = {
            "format": FORMAT,
            "fingerprint": json.dumps(self.fingerprint),
            "round": str(self.server_round),
            "owners": json.dumps(list(self.state)),
            "averages": json.dumps(list(self.average)),
            "order": json.dumps(list(arrays)),  # the file's own is another, and sums would differ
            "clients": json.dumps(states.save(self.clients)),
        }
        whole = meta | {"checksum": _checksum(arrays, meta)}
        save_model(path, arrays, whole, before=path.with_name(NAMES[1]))

    @classmethod
    def load(cls, path: Path, states: ClientStates | None = None) -> Checkpoint:
        """Read what ``save`` wrote.

        Args:
            path: of the file.
            states: remembers what clients keep, for the next ``save``.

        Raises:
            ValueError: the file is not as it was written.
            OtherFormatError: another version of this library wrote it.
        """
        if path.is_dir():
            raise ValueError(f"{path}: is damaged (it is a folder).{_REMEDY}")
        try:
            states = states or ClientStates(path.with_name(FOLDER))
            return cls._of(*_read(path), states)
        except OtherFormatError:
            raise
        except (OSError, SafetensorError, ValueError) as error:
            raise ValueError(f"{path}: is damaged ({error}).{_REMEDY}") from None
        except (TypeError, LookupError, AttributeError):
            why = "it does not hold what a checkpoint holds"
            raise ValueError(f"{path}: is damaged ({why}).{_REMEDY}") from None

    @classmethod
    def _of(cls, arrays: Arrays, meta: Mapping[str, str], states: ClientStates) -> Checkpoint:
        owners, averages = json.loads(meta["owners"]), json.loads(meta["averages"])
        return cls(
            server_round=int(meta["round"]),
            params=_under(arrays, "params/"),
            state={owner: _under(arrays, f"state/{owner}/") for owner in owners},
            average={owner: _under(arrays, f"average/{owner}/") for owner in averages},
            clients=states.load(json.loads(meta["clients"])),
            fingerprint=dict(json.loads(meta["fingerprint"])),
        )


def newest(
    folder: Path,
    states: ClientStates | None = None,
    check: Callable[[Checkpoint], object] = lambda _: None,
    warn: Callable[[str], object] = _warn,
) -> Checkpoint | None:
    """The newest checkpoint in the folder of a unit that is as it was written; None without any.

    Args:
        folder: of the unit.
        states: as in ``Checkpoint.load``.
        check: raises ``ValueError`` for one that nothing can go on from.
        warn: takes a line, where the one before is taken.

    Raises:
        ValueError: there are some, and all of them are damaged.
    """
    damage: list[str] = []
    for path in (folder / name for name in NAMES):
        if not path.exists():
            continue
        try:
            found = Checkpoint.load(path, states)
            check(found)
        except OtherFormatError:
            raise
        except ValueError as error:
            damage.append(str(error))
            continue
        if damage:  # what it says to remove need not be
            warn(f"{_cause(damage[0])} The run goes on from round {found.server_round}.")
        return found
    if damage:
        raise ValueError(_remedy(folder, damage))
    return None


def _cause(line: str) -> str:
    return line.rpartition(" Remove ")[0]


def _remedy(folder: Path, damage: Sequence[str]) -> str:
    """What is wrong, and how the unit starts again, in one line and one go."""
    if len(damage) < 2 or not damage[0].endswith(_REMEDY):  # that removes all of the unit
        return damage[0]
    return f"{_cause(damage[0])} {_cause(damage[1])} Remove {folder} to run it again."


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    with safe_open(path, framework="numpy") as file:
        meta = dict(file.metadata() or {})
        if "checksum" in meta and meta.get("format") != FORMAT:
            raise OtherFormatError(
                f"{path}: is of format {meta.get('format', '1')}, not {FORMAT}: another version of "
                f"fedexp wrote it. Go on with that one.{_REMEDY}"
            )
        if "checksum" not in meta:
            raise ValueError("it is no checkpoint")
        checksum = meta.pop("checksum")
        arrays = {name: file.get_tensor(name) for name in json.loads(meta["order"])}
    if _checksum(arrays, meta) != checksum:
        raise ValueError("it is not what was written")
    return arrays, meta


def _checksum(arrays: Arrays, meta: Mapping[str, str]) -> str:
    """Of all that the file says, against disks and editors."""
    value = crc32(json.dumps(sorted(meta.items())).encode())
    for x in arrays.values():
        value = crc32(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data, value)
    return str(value)


def _under(arrays: Arrays, prefix: str) -> dict[str, Any]:
    return {name[len(prefix) :]: x for name, x in arrays.items() if name.startswith(prefix)}
