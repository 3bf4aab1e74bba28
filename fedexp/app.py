"""The ClientApp and ServerApp that simulation, ``flwr run`` and a deployment all load."""

# ruff: noqa: E402 - what is missing is said before the imports that need it
from __future__ import annotations

from logging import INFO, WARNING
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp

from fedexp.extras import need

need("torch", "simulation")
from fedexp import keys, verdict
from fedexp.checks import check_read, check_read_by_partition
from fedexp.choices import client_config, optimizer_key, strategy_keys
from fedexp.config import ROBUST_IS_OFF, Config, robust_by_default
from fedexp.factories import (
    check_model,
    client,
    dataset_of,
    examples,
    model_of,
    partition_of,
)
from fedexp.runs.ending import end_of, time_of_end
from fedexp.runs.rows import row_of
from fedexp.runs.run import Run, start_of, test_evaluation
from fedexp.specs import slug
from fedexp.strategies.sampling import in_partition_order, partitions_of
from fedexp.strategy_factory import come_and_go, strategy_of

__all__ = [
    "Run",
    "check_model",
    "check_read",
    "check_read_by_partition",
    "client",
    "client_config",
    "dataset_of",
    "examples",
    "main",
    "model_of",
    "optimizer_key",
    "partition_of",
    "server",
    "strategy_keys",
    "strategy_of",
    "test_evaluation",
]

_PRIVACY = (
    keys.PRIVACY_EPSILON,
    keys.PRIVACY_DELTA,
    keys.LARGEST_EPSILON_SPENT,
    keys.BUDGET_IS_SPENT,
)

server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Wait for all nodes, then run every strategy of the run config, one after the other.

    Clients that other people run can send anything: ``robust`` is on unless the run config has it.
    Privacy turns it off, also where the run config has it, as those of Flower apps have every key.
    """
    values = {"robust": True, **context.run_config}
    if values["robust"] and not robust_by_default(values):
        log(WARNING, ROBUST_IS_OFF)
        values["robust"] = False
    config = Config.of(values)
    check_read(config)
    check_model(config)
    if come_and_go(config):
        raise ValueError(
            f"Config(client-profiles={config.client_profiles!r}): Flower says which nodes are "
            "there. Leave availability out, or use `fedexp simulate`."
        )
    start_of(config)
    partitions = partitions_of(grid)
    grid = in_partition_order(grid, partitions)
    summaries, until = {}, time_of_end(config)
    for key in strategy_keys(config):
        run, rows, end = Run(config, key, len(partitions)), list[dict[str, Any]](), None
        for round_ in run.rounds(grid):
            spent = {name: round_.train[name] for name in _PRIVACY if name in round_.train}
            log(INFO, "%s round %d: %s", key, round_.server_round, {**round_.server, **spent})
            rows.append(row_of(round_) | run.row(round_))
            if end := end_of(config, rows, config.num_server_rounds, until):
                log(INFO, "%s: %s.", key, end.why)
                break
        wanted = len(rows) if end else config.num_server_rounds
        # Where clients fail to order it is no wonder if one of them never contributes.
        missing = () if config.faults else run.attendance.missing
        summaries[key] = verdict.of_run(rows, missing, wanted)
        if config.out:
            run.save(Path(config.out) / slug(key))
    if problems := verdict.problems(summaries):
        raise RuntimeError("; ".join(problems))  # else Flower would say that the run completed
