"""What an interrupted run has left, looked at before the run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedexp.choices import strategy_keys
from fedexp.config import Config
from fedexp.files import read_json, save_json, save_text
from fedexp.runs.plan import first_units, reporting_folders
from fedexp.runs.reading import read_rows
from fedexp.simulation.checkpoint import Checkpoint

_MODELS = ("model.safetensors", "model-mean.safetensors")


def check_resumable(config: Config, folder: Path) -> None:
    """Find out whether the run in ``folder`` can go on to the same bits.

    Raises:
        ValueError: its configuration was edited, it was made of objects that no file holds, or a
            file is damaged or missing.
    """
    _check_unedited(config, folder)
    strategies = {key: key for key in strategy_keys(config)}
    units = first_units(config, strategies)
    names = {unit.folder for unit in units} | set(reporting_folders(config, strategies))
    for own in (folder / name for name in sorted(names)):
        if own.exists() and not own.is_dir():
            raise ValueError(f"{own}: is no folder. Remove it to run it again.")
        if (own / "checkpoint.safetensors").exists():
            rows_until(own, Checkpoint.load(own / "checkpoint.safetensors").server_round)
        if (own / "summary.json").exists():
            _check_finished(own)


def extend(folder: Path, num_rounds: int) -> Config:
    """Let the run in ``folder`` have ``num_rounds`` rounds; it goes on when it is resumed.

    Raises:
        ValueError: it has more already, cannot be resumed, or selects by what more rounds change.
    """
    config = Config.of(Config.read(folder / "config.toml"))
    check_resumable(config, folder)
    if num_rounds < config.num_server_rounds:
        raise ValueError(
            f"--rounds {num_rounds}: the run in {str(folder)!r} has {config.num_server_rounds} "
            "already. Name more."
        )
    extended = Config.of({**config.values(), "num-server-rounds": num_rounds})
    environment = read_json(folder / "environment.json")
    # This first: cut short, the run is one whose configuration was edited, which says so.
    save_json(folder / "environment.json", {**environment, "config": extended.values()})
    save_text(folder / "config.toml", extended.to_toml())
    return extended


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
        environment = read_json(folder / "environment.json")
        began, objects = environment["config"], environment.get("objects", {})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return  # it is needed for nothing else
    if objects:
        name = next(iter(objects))
        raise ValueError(
            f"{folder}: was run from Python with an object as {name}, which no file holds. Run the "
            "program again, with resume=True."
        )
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
