"""A run on disk: one folder, one subfolder per strategy, one line of metrics per round."""

from __future__ import annotations

import json
import math
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fedexp import app
from fedexp.config import Config
from fedexp.files import save_json, save_text
from fedexp.rounds import Round
from fedexp.simulation.grid import LocalGrid
from fedexp.simulation.serial import SerialGrid

Row = dict[str, Any]
"""One line of ``metrics.jsonl``."""

_METRICS = ("train-loss", "test-loss", "test-accuracy", "server-step-size")
_PACKAGES = ("fedexp", "flwr", "torch", "numpy", "ray", "scikit-learn")


def run_folder(config: Config, overwrite: bool = False) -> Path:
    """The folder that ``--out`` names, or a new ``runs/<time>-<name>``.

    Raises:
        ValueError: it exists, is not empty, and is not an earlier run to overwrite.
    """
    name = config.name or config.strategy.replace(",", "-")
    folder = Path(config.out or f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{name}")
    if overwrite and (folder / "config.toml").exists():
        shutil.rmtree(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"Config(out={str(folder)!r}): exists already. "
            "Name another, or add --overwrite if it is an old run."
        )
    return folder


def simulate(
    config: Config, folder: Path, on_round: Callable[[str, Row], None] = lambda *_: None
) -> dict[str, Row]:
    """Run every strategy of ``config`` and record it in ``folder``; summaries by strategy.

    Args:
        config: what to run.
        folder: made if need be. Each strategy's files are in the subfolder of its key.
        on_round: called after each round with the strategy's key and the line just written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_text(folder / "config.toml", config.to_toml())
    save_json(folder / "environment.json", environment())
    summaries = {}
    for key in app.strategy_keys(config):
        grid = grid_of(config)
        rounds = app.run(config, key, grid, num_nodes=grid.num_nodes)
        summaries[key] = record(folder / key, rounds, config, partial(on_round, key))
    return summaries


def grid_of(config: Config) -> LocalGrid:
    """The grid of a run."""
    num_clients = len(app.partition_of(config))
    return SerialGrid(app.client, num_clients, run_config=config.values())


def record(
    folder: Path, rounds: Iterable[Round], config: Config, on_row: Callable[[Row], None]
) -> Row:
    """Write ``metrics.jsonl`` round by round, then ``model.safetensors`` and ``summary.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    with open(folder / "metrics.jsonl", "w") as file:
        for round_ in rounds:
            rows.append(row_of(round_))
            file.write(json.dumps(rows[-1]) + "\n")
            file.flush()
            on_row(rows[-1])
    app.save(folder, round_.arrays)
    summary = summary_of(rows, config.target_accuracy)
    save_json(folder / "summary.json", summary)
    return summary


def row_of(round_: Round) -> Row:
    """The line of a round; a value that does not exist or is not finite is null."""
    measured = {**round_.train, **round_.evaluate, **round_.server}
    row: Row = {"round": round_.server_round}
    row |= {name: None for name in _METRICS}
    row |= {"num-clients": 0, "num-failures": 0, "failed": round_.failed}
    row |= {name: _finite(value) for name, value in measured.items()}
    return row | {"round-seconds": round(round_.seconds, 4)}


def _finite(value: Any) -> Any:
    return value if not isinstance(value, float) or math.isfinite(value) else None


def summary_of(rows: list[Row], target: float) -> Row:
    """What the table of a run shows of one strategy."""
    accuracies = [row["test-accuracy"] for row in rows if row["test-accuracy"] is not None]
    steps = [row["server-step-size"] for row in rows if row["server-step-size"] is not None]
    reached = (row["round"] for row in rows if (row["test-accuracy"] or 0) >= target)
    return {
        "num-rounds": len(rows),
        "target-accuracy": target,
        "rounds-to-target": next(reached, None),
        "best-accuracy": max(accuracies, default=None),
        "final-accuracy": accuracies[-1] if accuracies else None,
        "final-test-loss": rows[-1]["test-loss"],
        "mean-server-step-size": statistics.fmean(steps) if steps else None,
        "seconds-a-round": statistics.median(row["round-seconds"] for row in rows),
        "failed-rounds": sum(row["failed"] for row in rows),
    }


def environment() -> dict[str, Any]:
    """Versions that a result depends on."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
