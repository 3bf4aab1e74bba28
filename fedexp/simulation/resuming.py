"""What an interrupted run has left, looked at before the run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedexp import app
from fedexp.config import Config
from fedexp.files import read_json
from fedexp.runs.reading import read_rows
from fedexp.simulation.checkpoint import Checkpoint

_MODELS = ("model.safetensors", "model-mean.safetensors")


def check_resumable(config: Config, folder: Path) -> None:
    """Find out whether the run in ``folder`` can go on to the same bits.

    Raises:
        ValueError: its configuration was edited, or a file is damaged or missing.
    """
    _check_unedited(config, folder)
    for key in app.strategy_keys(config):
        own = folder / key
        if own.exists() and not own.is_dir():
            raise ValueError(f"{own}: is no folder. Remove it to run {key} again.")
        if (own / "summary.json").exists():
            _check_finished(own)
        elif (own / "checkpoint.safetensors").exists():
            rows_until(own, Checkpoint.load(own / "checkpoint.safetensors").server_round)


def rows_until(folder: Path, last: int) -> list[dict[str, Any]]:
    """The lines of rounds 1 to ``last``.

    Raises:
        ValueError: ``metrics.jsonl`` does not hold each of them once, in their order.
    """
    rows = [row for row in read_rows(folder) if row["round"] <= last]
    if [row["round"] for row in rows] != list(range(1, last + 1)):
        raise ValueError(
            f"{folder / 'metrics.jsonl'}: does not hold rounds 1 to {last}, each once. "
            f"Remove {folder} to run it again."
        )
    return rows


def _check_unedited(config: Config, folder: Path) -> None:
    try:
        began = read_json(folder / "environment.json")["config"]
    except (OSError, ValueError, TypeError, KeyError):
        return  # it is needed for nothing else
    now = config.values()
    if changed := [key for key in now if key in began and began[key] != now[key]]:
        key = changed[0]
        raise ValueError(
            f"{folder / 'config.toml'}: {key} is {now[key]!r}, but the run began with "
            f"{began[key]!r}. Set it back, or start a new run."
        )


def _check_finished(folder: Path) -> None:
    path = folder / "summary.json"
    again = f"Remove {folder} to run it again."
    try:
        num_rounds = int(read_json(path)["num-rounds"])
    except (OSError, ValueError, TypeError, KeyError):
        raise ValueError(f"{path}: is damaged. {again}") from None
    if missing := [name for name in _MODELS if not (folder / name).is_file()]:
        raise ValueError(f"{folder / missing[0]}: is missing. {again}")
    rows_until(folder, num_rounds)
