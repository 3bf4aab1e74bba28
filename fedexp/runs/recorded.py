"""What a unit has recorded, as far as it is sound."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from fedexp.arrays import Arrays
from fedexp.runs.checkpoint import Checkpoint, newest
from fedexp.runs.client_states import ClientStates
from fedexp.runs.json_files import MOVE, summary_in
from fedexp.runs.reading import read_metrics

EVALUATED = "evaluated"
"""Of a checkpoint's state: what was recorded up to its round, and which clients evaluated in it."""

MODELS = ("model.safetensors", "model-mean.safetensors")
"""That a unit leaves at its end."""


def say_nothing(line: str) -> None:
    """Who goes on from an older checkpoint says so, not who only looks."""


def usable(folder: Path, states: ClientStates | None = None, **warn: Any) -> Checkpoint | None:
    """The newest checkpoint of a unit that is sound, as are the rounds recorded up to it.

    Args:
        folder: of the unit.
        states: as in ``Checkpoint.load``.
        **warn: that of ``newest``.

    Raises:
        ValueError: there are some, and none is.
    """

    def check(saved: Checkpoint) -> None:
        rows_until(folder, saved.server_round, saved.state.get(EVALUATED, {}))
        clients_until(folder, saved)

    return newest(folder, states, check, **warn)


def summary_of(folder: Path) -> dict[str, Any]:
    """What a unit has written at its end; empty before, and if that is damaged."""
    try:
        summary = summary_in(folder)
        ended, problem = summary["ended"], summary["problem"]
        return {
            **summary,
            "num-rounds": int(summary["num-rounds"]),
            "ended": ended,
            "problem": problem,
        }
    except (ValueError, TypeError, KeyError):
        return {}


def rows_until(folder: Path, last: int, known: Mapping[str, Any] = {}) -> list[dict[str, Any]]:
    """The lines of rounds 1 to ``last``.

    Args:
        folder: of the unit.
        last: the last round that counts.
        known: what a checkpoint keeps of them, if there is one.

    Raises:
        ValueError: ``metrics.jsonl`` does not hold each of them once, in their order, as written.
    """
    path, remedy = folder / "metrics.jsonl", f"Remove {folder} to run it again."
    try:
        rows = [row for row in read_metrics(folder) if row["round"] <= last]
    except ValueError as error:  # without the file nothing could go on
        raise ValueError(str(error).replace(MOVE, remedy)) from None
    if len(rows) != last or [row["round"] for row in rows] != list(range(1, last + 1)):
        raise ValueError(f"{path}: does not hold rounds 1 to {last}, each once. {remedy}")
    if "rounds" in known and chained(b"", rows) != known["rounds"].tobytes():
        raise ValueError(f"{path}: was edited, rounds 1 to {last} are not as written. {remedy}")
    return rows


def chained(digest: bytes, rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A digest of all rows, from that of those before: late in a run a round costs no more.

    An empty cell of ``clients.csv`` is a value that is not there, so None counts for nothing.
    """
    for row in rows:
        told = {key: value for key, value in row.items() if value is not None}
        text = json.dumps(told, sort_keys=True)
        digest = blake2b(digest + text.encode(), digest_size=16).digest()
    return digest


def of_clients(rows: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> Arrays:
    """What a checkpoint keeps of ``rows`` of clients, of which the last ones are ``new``."""
    names = json.dumps([row["client"] for row in new]).encode()
    before = np.array([len(rows) - len(new)])
    return {"names": np.frombuffer(names, np.uint8), "before": before}


def clients_until(folder: Path, saved: Checkpoint) -> list[dict[str, Any]]:
    """The rows of ``clients.csv`` as they were when ``saved`` was written.

    A line that a crash cut short is of a later round. In the last round of a unit all clients may
    have been asked at its end; only those that evaluated in the round itself count, and the digest
    is of the rounds before it.

    Raises:
        ValueError: the file is not as it was written.
    """
    known: Mapping[str, Any] = saved.state.get(EVALUATED, {})
    last, path = saved.server_round, folder / "clients.csv"
    try:
        rows = _read_clients(path, last)
        before = [row for row in rows if row["round"] < last]
        of_last = {row["client"]: row for row in rows if row["round"] == last}
        if not known:  # an older run
            return before + list(of_last.values())
        found = before + [of_last[name] for name in json.loads(known["names"].tobytes())]
        if len(before) != known["before"][0]:
            raise ValueError
        if "clients" in known and chained(b"", before) != known["clients"].tobytes():
            raise ValueError
    except (OSError, ValueError, TypeError, KeyError, AttributeError, csv.Error):
        raise ValueError(
            f"{path}: does not hold what clients reported up to round {last}. "
            f"Remove {folder} to run it again."
        ) from None
    return found


def _read_clients(path: Path, last: int) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    return [
        {key: _value(key, value) for key, value in row.items()}
        for row in rows
        if (row["round"] or "").isdecimal() and int(row["round"]) <= last
    ]


def _value(key: str, text: str | None) -> Any:
    if key == "client" or not text:
        return text or None
    return json.loads(text) if text.startswith("[") or text.isdecimal() else float(text)
