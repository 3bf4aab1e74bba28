"""A run on disk: one folder, one subfolder per strategy, one line of metrics per round."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from functools import partial
from logging import WARNING
from pathlib import Path
from typing import Any

import torch
from flwr.common.logger import log

from fedexp import app, verdict
from fedexp.clients.vectorized import Cohort
from fedexp.config import Config
from fedexp.files import read_json, save_json, save_text
from fedexp.records import from_record, to_record
from fedexp.rounds import Round
from fedexp.simulation.checkpoint import Checkpoint
from fedexp.simulation.grid import FIRST_NODE_ID, LocalGrid, context_of
from fedexp.simulation.resuming import rows_until
from fedexp.simulation.serial import SerialGrid

Row = dict[str, Any]
"""One line of ``metrics.jsonl``."""

_SCORES = ("test-loss", "test-accuracy", "mean-test-loss", "mean-test-accuracy")
_METRICS = ("train-loss", *_SCORES, "server-step-size")
_ATTENDANCE = "attendance"


def simulate(
    config: Config,
    folder: Path,
    grid: LocalGrid,
    on_round: Callable[[str, Row], None] = lambda *_: None,
    *,
    resume: bool = False,
) -> dict[str, Row]:
    """Run every strategy of ``config`` on ``grid``; summaries by strategy.

    Args:
        config: what to run.
        folder: as ``begin`` made it, or of an interrupted run. Each strategy has a subfolder.
        grid: that of ``grid_of``.
        on_round: called after each round with the strategy's key and the line just written.
        resume: what ``folder`` holds of an interrupted run is not run again: it goes on after the
            last round that was recorded, to the same bits. Else nothing there is believed.
    """
    summaries = {}
    for key in app.strategy_keys(config):
        finished = folder / key / "summary.json"
        if not (resume and finished.exists()):
            (folder / key).mkdir(exist_ok=True)
            if not resume:
                for old in (finished, folder / key / "checkpoint.safetensors"):
                    old.unlink(missing_ok=True)
            grid.forget()
            run = app.Run(config, key, grid.num_nodes)
            _record(run, folder / key, grid, partial(on_round, key))
        summaries[key] = read_json(finished)
    return summaries


def check_engine(config: Config) -> None:
    """Find out now what would fail in round 1.

    Raises:
        ValueError: no such device here, or clients that cannot be vectorised as asked.
    """
    device = _device(config)
    if config.device or config.engine == "serial":  # RayGrid counts GPUs itself
        try:
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise ValueError(f"Config(device={device!r}): {reason}. Use cpu.") from None
    if config.vectorize == "on":
        if config.engine == "serial":
            raise ValueError("Config(vectorize='on'): engine serial never does it. Use ray.")
        context = context_of(FIRST_NODE_ID, 1, {**config.values(), "device": device}, None)
        Cohort.of(app.client, "on", context)


def _device(config: Config) -> str:
    return config.device or ("cuda" if config.num_gpus else "cpu")


def grid_of(config: Config) -> LocalGrid:
    """The grid of a run: that of ``engine``, or the serial one with a line if Ray is missing.

    Raises:
        ValueError: more workers or GPUs than there are.
    """
    num_clients = len(app.partition_of(config))
    run_config = {**config.values(), "device": _device(config)}
    if config.engine != "serial":
        try:
            from fedexp.simulation.ray_grid import RayGrid
        except ModuleNotFoundError as error:
            log(WARNING, "Clients run one by one: %s", error)
        else:
            return RayGrid(
                app.client,
                num_clients,
                run_config=run_config,
                num_workers=config.num_workers or None,
                num_gpus=config.num_gpus,
                ray_address=config.ray_address or None,
                vectorize=config.vectorize,
            )
    return SerialGrid(app.client, num_clients, run_config=run_config)


def _record(run: app.Run, folder: Path, grid: LocalGrid, on_row: Callable[[Row], None]) -> None:
    """Write ``metrics.jsonl`` round by round, then ``model.safetensors`` and ``summary.json``."""
    checkpoint = folder / "checkpoint.safetensors"
    last = _restored(run, checkpoint, grid) if checkpoint.exists() else 0
    rows = rows_until(folder, last)
    run.failed_in_a_row = verdict.failed_in_a_row(rows)
    save_text(folder / "metrics.jsonl", "".join(map(_line, rows)))
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        for round_ in run.rounds(grid, last + 1):
            rows.append(row_of(round_) | run.row(round_))
            file.write(_line(rows[-1]))
            file.flush()
            _saved(run, round_.server_round, grid).save(checkpoint)
            on_row(rows[-1])
    run.save(folder)
    missing, num_rounds = run.strategy.attendance.missing, run.config.num_server_rounds
    summary = summary_of(verdict.scored(rows), run.config)
    save_json(folder / "summary.json", summary | verdict.of_run(rows, missing, num_rounds))
    checkpoint.unlink(missing_ok=True)


def _saved(run: app.Run, server_round: int, grid: LocalGrid) -> Checkpoint:
    params = from_record(run.arrays)
    state = {**run.strategy.state, _ATTENDANCE: run.strategy.attendance.state()}
    return Checkpoint(server_round, params, state, run.evaluation.memory, grid.states)


def _restored(run: app.Run, path: Path, grid: LocalGrid) -> int:
    saved = Checkpoint.load(path)
    run.arrays = to_record(saved.params)
    run.strategy.state = {**saved.state}
    run.strategy.attendance.restore(run.strategy.state.pop(_ATTENDANCE))
    run.evaluation.memory = dict(saved.average)
    grid.states.update(saved.clients)
    return saved.server_round


def _line(row: Row) -> str:
    return json.dumps(row) + "\n"


def row_of(round_: Round) -> Row:
    """The line of a round; a value that does not exist or is not finite is null."""
    measured = {**round_.train, **round_.evaluate, **round_.server}
    own = {"round": round_.server_round, "failed": round_.failed}
    row: Row = own | {name: None for name in _METRICS}
    row |= {"num-clients": 0, "num-failures": 0}
    row |= {name: _finite(value) for name, value in measured.items()}
    return row | own | {"round-seconds": round(round_.seconds, 4)}  # whatever clients report


def _finite(value: Any) -> Any:
    return value if not isinstance(value, float) or math.isfinite(value) else None


def summary_of(rows: list[Row], config: Config) -> Row:
    """What the table of a run shows of one strategy, at its last and its averaged iterate."""
    steps = [row["server-step-size"] for row in rows if row["server-step-size"] is not None]
    return {
        "num-rounds": len(rows),
        "target-accuracy": config.target_accuracy,
        **_scores(rows, config.target_accuracy),
        "average": config.average,
        **_scores(rows, config.target_accuracy, "mean-"),
        "mean-server-step-size": statistics.fmean(steps) if steps else None,
        "seconds-a-round": statistics.median(row["round-seconds"] for row in rows),
    }


def _scores(rows: list[Row], target: float, prefix: str = "") -> Row:
    """Of the iterates whose metrics begin with ``prefix``."""
    name = f"{prefix}test-accuracy"
    accuracies = [row[name] for row in rows if row[name] is not None]
    reached = (row["round"] for row in rows if (row[name] or 0) >= target)
    return {
        f"{prefix}rounds-to-target": next(reached, None),
        f"{prefix}best-accuracy": max(accuracies, default=None),
        f"{prefix}final-accuracy": accuracies[-1] if accuracies else None,
        f"{prefix}final-test-loss": rows[-1][f"{prefix}test-loss"],
    }
