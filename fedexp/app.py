"""The ClientApp and ServerApp that simulation, ``flwr run`` and a deployment all load."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import lru_cache
from logging import ERROR, INFO
from pathlib import Path
from typing import cast

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp
from torch import nn

from fedexp.clients import (
    Examples,
    LocalTraining,
    client_app,
    default_loss,
    evaluate,
    load_arrays,
    module_arrays,
)
from fedexp.clients.local_optimizers import named as named_optimizer
from fedexp.config import Config
from fedexp.datasets import Dataset, Parts, load
from fedexp.datasets.partition import named, split
from fedexp.files import save_model
from fedexp.logs import level
from fedexp.models import build
from fedexp.records import from_record, to_record
from fedexp.rounds import EvaluateFn, Round, rounds
from fedexp.strategies import STRATEGIES, BothIterates, FedOpt, average_named
from fedexp.strategies.per_client import per_client
from fedexp.strategies.robustness import Clip, FixedClip, QuantileClip
from fedexp.strategies.sampling import InPartitionOrder, partitions_of


def dataset_of(config: Config) -> Dataset:
    """The dataset of a run; loaded once per process."""
    return load(config.dataset, data_dir=config.data_dir or None, seed=config.seed)


def partition_of(config: Config) -> Parts:
    """Every client's rows; computed once per process.

    Raises:
        ValueError: the dataset cannot be split so.
    """
    return _partition(config.model_copy(update=_NO_PARTITION))


_PARTITION = {
    *("dataset", "data_dir", "partitioner", "num_clients", "seed"),
    *("alpha", "sigma", "shards_per_client", "classes_per_client"),
}
# All else goes back to its default, so that configurations that split alike share a partition.
_NO_PARTITION = {
    name: field.default for name, field in Config.model_fields.items() if name not in _PARTITION
}


@lru_cache(maxsize=4)
def _partition(config: Config) -> Parts:
    return named(
        config.partitioner,
        dataset_of(config),
        num_clients=config.num_clients,
        seed=config.seed,
        alpha=config.alpha,
        sigma=config.sigma,
        shards_per_client=config.shards_per_client,
        classes_per_client=config.classes_per_client,
    )


def examples(context: Context) -> tuple[Examples, Examples]:
    """Train and test examples of the client that ``context`` belongs to.

    Without ``local-test-fraction`` a client is tested on what it trains on.
    """
    partition, num_clients = (
        int(context.node_config[key]) for key in ("partition-id", "num-partitions")
    )
    config = Config.of({**context.run_config, "num-clients": num_clients})
    rows = partition_of(config)[partition]
    train, test = rows, rows
    if config.local_test_fraction:
        seed = int(np.random.SeedSequence([config.seed, partition]).generate_state(1)[0])
        train, test = split(rows, fraction=config.local_test_fraction, seed=seed)
    inputs, targets = dataset_of(config).train
    return tuple(Examples(inputs, targets, torch.tensor(r)) for r in (train, test))  # type: ignore[return-value]


def model_of(config: Config) -> nn.Module:
    """The model of a run, with its seeded initial weights."""
    return build(config.model, dataset_of(config), seed=config.seed)


client = client_app(lambda context: model_of(Config.of(context.run_config)), examples)
server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Wait for all nodes, then run every strategy of the run config, one after the other.

    Clients that other people run can send anything: ``robust`` is on unless the run config has it.
    """
    config = Config.of({"robust": True, **context.run_config})
    partitions = partitions_of(grid)
    grid = cast(Grid, InPartitionOrder(grid, partitions))
    for key in strategy_keys(config):
        run = Run(config, key, len(partitions))
        for round_ in run.rounds(grid):
            log(INFO, "%s round %d: %s", key, round_.server_round, dict(round_.server))
        if config.out:
            run.save(Path(config.out) / key)


def strategy_keys(config: Config) -> list[str]:
    """What a run compares: strategies, some with a local optimizer of their own behind a ``+``.

    Raises:
        ValueError: one of them is unknown.
    """
    wanted = [key.strip() for key in config.strategy.split(",")]
    if wanted == ["all"]:
        wanted = list(STRATEGIES)
    if len(set(wanted)) < len(wanted):
        raise ValueError(f"Config(strategy={config.strategy!r}): names one twice. Leave one out.")
    if unknown := [key for key in wanted if key.partition("+")[0] not in STRATEGIES]:
        raise ValueError(
            f"Config(strategy={config.strategy!r}): unknown {unknown[0]!r}. "
            f"Known: all, {', '.join(STRATEGIES)}."
        )
    for key in wanted:
        named_optimizer(optimizer_key(config, key))
    return wanted


def optimizer_key(config: Config, key: str) -> str:
    """The local optimizer of an entry of ``strategy_keys``."""
    _, plus, own = key.partition("+")
    return own if plus else config.local_optimizer


def client_config(config: Config, key: str) -> dict[str, int | float | bool | str]:
    """The settings that the clients of one entry get with their messages.

    Raises:
        ValueError: the local optimizer cannot take them.
    """
    name = optimizer_key(config, key)
    tunes = named_optimizer(name).tunes
    settings: dict[str, int | float | bool | str] = {
        "local-optimizer": name,
        "hyper-learning-rate": config.hyper_learning_rate,
        "hyper-height": config.hyper_height,
        "hyper-between-rounds": config.hyper_between_rounds if tunes else "fresh",
    }
    local = LocalTraining.of({**config.values(), **settings})
    named_optimizer(name)([nn.Parameter(torch.zeros(1))], local)  # what is wrong with it shows now
    return settings


def strategy_of(config: Config, key: str, num_nodes: int) -> FedOpt:
    """The strategy ``key``, its own arguments filled from the config fields of the same name.

    Raises:
        ValueError: its clients' optimizer does not go with it, or with its settings.
    """
    cls = STRATEGIES[key.partition("+")[0]].strategy
    known = {name for base in cls.__mro__ for name in inspect.signature(base).parameters}
    options = {name: getattr(config, name) for name in known & Config.model_fields.keys()}
    options["max_step_size"] = config.max_step_size or None
    options["drop_beyond"] = config.drop_beyond or None
    options["clip"] = clip_of(config)
    average_named(config.average)  # what is wrong with it shows now
    if not config.smoothing:  # the strategy's own
        options.pop("smoothing", None)
    with level(ERROR):  # Flower warns when no client evaluates, which is the default here
        strategy = cls(
            min_train_nodes=1,
            min_evaluate_nodes=1,
            min_available_nodes=num_nodes,
            evaluate_metrics_aggr_fn=per_client,
            client_config=client_config(config, key),
            **options,
        )
    if strategy.control_variates and named_optimizer(optimizer_key(config, key)).tunes:
        raise ValueError(
            f"Config(strategy={key!r}): control variates need one learning rate at all clients, "
            f"and {optimizer_key(config, key)} tunes it. Use +sgd."
        )
    return strategy


def clip_of(config: Config) -> Clip | None:
    """The bound on updates that ``clip`` and ``clip-quantile`` name."""
    if config.clip_quantile:
        start = {"initial": config.clip} if config.clip else {}
        return QuantileClip(quantile=config.clip_quantile, **start)
    return FixedClip(config.clip) if config.clip else None


class Run:
    """One strategy of a run, evaluated on the global test set at two models, alike for all.

    They are the last iterate and the average that ``--average`` names.

    Args:
        config: of the run.
        key: of the strategy.
        num_nodes: how many clients there are.

    Attributes:
        arrays: the last iterate; at first the initial model, or the one to go on from.
        evaluation: of the two; its ``memory`` is needed to go on.
    """

    def __init__(self, config: Config, key: str, num_nodes: int) -> None:
        self.config = config
        self.strategy = strategy_of(config, key, num_nodes)
        module = model_of(config)
        self.evaluation = BothIterates(
            test_evaluation(config),
            average_named(config.average),
            frozenset(name for name, _ in module.named_parameters()),
        )
        self.arrays = to_record(module_arrays(module))

    def rounds(self, grid: Grid, first: int = 1) -> Iterator[Round]:
        """The rounds from ``first`` on."""
        for round_ in rounds(
            self.strategy,
            grid,
            self.arrays,
            num_rounds=self.config.num_server_rounds,
            first=first,
            timeout=self.config.timeout,
            evaluate_fn=self.evaluation,
        ):
            self.arrays = round_.arrays
            yield round_

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors``, the last iterate, and ``model-mean.safetensors``."""
        folder.mkdir(parents=True, exist_ok=True)
        save_model(folder / "model.safetensors", from_record(self.arrays))
        save_model(folder / "model-mean.safetensors", self.evaluation.mean)


def test_evaluation(config: Config) -> EvaluateFn:
    """``(server_round, arrays) -> test-loss, test-accuracy`` on the global test set."""
    module, examples = model_of(config), Examples(*dataset_of(config).test)

    def evaluate_fn(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        load_arrays(module, from_record(arrays))
        values = evaluate(module, examples, default_loss)
        return MetricRecord({f"test-{name}": value for name, value in values.items()})

    return evaluate_fn
