"""The ClientApp and ServerApp that simulation, ``flwr run`` and a deployment all load."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import lru_cache
from logging import ERROR, INFO
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp
from torch import nn

from fedexp import readers, verdict
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
from fedexp.clients.local_optimizers import told
from fedexp.clients.metrics import Metrics
from fedexp.clients.schedules import Schedule, schedule
from fedexp.clients.trial import try_model
from fedexp.config import Config
from fedexp.datasets import Dataset, Parts, load
from fedexp.datasets.partition import named, split
from fedexp.files import save_model
from fedexp.logs import level
from fedexp.models import build, suited
from fedexp.readers import dataset_kind, strategy_arguments
from fedexp.records import from_record, to_record
from fedexp.rounds import EvaluateFn, Round, rounds
from fedexp.strategies import STRATEGIES, BothIterates, FedOpt, average_named
from fedexp.strategies.per_client import per_client
from fedexp.strategies.robustness import Clip, FixedClip, QuantileClip
from fedexp.strategies.sampling import InPartitionOrder, partitions_of


def dataset_of(config: Config) -> Dataset:
    """The dataset of a run, with inputs of the kind its model takes; loaded once per process."""
    return suited(config.model, _loaded(config))


def _loaded(config: Config) -> Dataset:
    return load(
        config.dataset,
        data_dir=config.data_dir or None,
        seed=config.seed,
        impute=config.impute,
        targets=config.targets,
    )


def partition_of(config: Config) -> Parts:
    """Every client's rows; computed once per process.

    Raises:
        ValueError: the dataset cannot be split so.
    """
    return _partition(config.model_copy(update=_NO_PARTITION))


def partitioner_of(config: Config) -> str:
    """The partitioner of a run, with ``auto`` resolved."""
    own = "natural" if config.client_from else "dirichlet"
    return own if config.partitioner == "auto" else config.partitioner


_NUM_CLIENTS = 50  # where nothing says how many
_PARTITION = {
    *("dataset", "data_dir", "impute", "targets", "partitioner", "num_clients", "seed"),
    *("data", "target", "client_from", "test_fraction", "standardize", "image_size"),
    *("alpha", "sigma", "shards_per_client", "classes_per_client"),
}
# All else goes back to its default, so that configurations that split alike share a partition.
_NO_PARTITION = {
    name: field.default for name, field in Config.model_fields.items() if name not in _PARTITION
}


@lru_cache(maxsize=4)
def _partition(config: Config) -> Parts:
    name = partitioner_of(config)
    return named(
        name,
        _loaded(config),
        num_clients=config.num_clients or (0 if name == "natural" else _NUM_CLIENTS),
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


def check_model(config: Config) -> None:
    """Find out whether the model of a run can be trained on its data, and scored; nothing changes.

    Raises:
        ValueError: it cannot.
    """
    metrics = Metrics.of(config.metrics)
    owner, examples = f"Config(model={config.model!r})", Examples(*dataset_of(config).train)
    for name, key in {optimizer_key(config, key): key for key in strategy_keys(config)}.items():
        settings = LocalTraining.of({**config.values(), **client_config(config, key)})
        try_model(owner, model_of(config), examples, named_optimizer(name), settings)
    if metrics:
        test = Examples(*dataset_of(config).test)
        evaluate(model_of(config), test, default_loss, metrics=metrics.check)


client = client_app(
    lambda context: model_of(Config.of(context.run_config)), examples, check=Config.of
)
server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Wait for all nodes, then run every strategy of the run config, one after the other.

    Clients that other people run can send anything: ``robust`` is on unless the run config has it.
    """
    config = Config.of({"robust": True, **context.run_config})
    check_read(config)
    check_model(config)
    partitions = partitions_of(grid)
    grid = cast(Grid, InPartitionOrder(grid, partitions))
    summaries = {}
    for key in strategy_keys(config):
        run, rows = Run(config, key, len(partitions)), []
        for round_ in run.rounds(grid):
            log(INFO, "%s round %d: %s", key, round_.server_round, dict(round_.server))
            rows.append(run.row(round_))
        summaries[key] = verdict.of_run(
            rows, run.strategy.attendance.missing, config.num_server_rounds
        )
        if config.out:
            run.save(Path(config.out) / key)
    if problems := verdict.problems(summaries):
        raise RuntimeError("; ".join(problems))  # else Flower would say that the run completed


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
    optimizer = named_optimizer(name)
    settings: dict[str, int | float | bool | str] = {
        "hyper-learning-rate": config.hyper_learning_rate,
        "hyper-height": config.hyper_height,
        "hyper-between-rounds": config.hyper_between_rounds if optimizer.tunes else "fresh",
        **told(name),
    }
    local = LocalTraining.of(Config.of(config.values() | settings).values())
    if schedule_of(config, key):
        settings.pop("learning-rate", None)  # comes with every round
    optimizer([nn.Parameter(torch.zeros(1, 1))], local)  # what is wrong with it shows now
    return settings


def schedule_of(config: Config, key: str) -> Schedule | None:
    """The learning rate of the clients of one entry over the rounds; None where it is constant.

    Raises:
        ValueError: no such scheduler, or settings that do not go with one.
    """
    if not config.scheduler:
        return None
    owner, name = f"Config(scheduler={config.scheduler!r})", optimizer_key(config, key)
    optimizer = named_optimizer(name)
    if config.learning_rate_decay != 1:
        raise ValueError(
            f"{owner}: learning-rate-decay={config.learning_rate_decay} is a schedule too. "
            "Leave one of the two out."
        )
    if optimizer.tunes and config.hyper_between_rounds != "fresh":
        raise ValueError(
            f"{owner}: with hyper-between-rounds={config.hyper_between_rounds!r}, {name} starts "
            "from rates of its own. Use fresh, or no scheduler."
        )
    if "learning-rate" not in optimizer.reads():
        raise ValueError(
            f"{owner}: {name} takes no learning rate. Give it an argument lr, or use no scheduler."
        )
    first = float(optimizer.given.get("learning-rate", config.learning_rate))
    return schedule(config.scheduler, config.num_server_rounds, first)


_OWN_IF_0 = {
    *("max_step_size", "server_learning_rate", "smoothing"),
    *("relaxation", "drop_beyond"),
}


def check_read(config: Config, given: Collection[str] = ()) -> None:
    """Find out whether all settings that differ from their default, or are ``given``, are read.

    Raises:
        ValueError: no strategy, local optimizer, partitioner, dataset or engine of ``config``
            reads one of them.
    """
    keys = strategy_keys(config)
    own = config.local_optimizer
    if all("+" in key for key in keys) and ("local-optimizer" in given or own != "sgd"):
        raise ValueError(
            f"Config(local-optimizer={own!r}): every strategy names its own behind a +. "
            "Leave one of the two out."
        )
    chosen: dict[str, list[str]] = {
        "strategy": [key.partition("+")[0] for key in keys],
        "local optimizer": [optimizer_key(config, key) for key in keys],
        **_data_choices(config),
        "engine": ["serial" if config.engine == "serial" else "ray"],
    }
    readers.check_read(config, chosen, given)


def check_read_by_partition(config: Config, given: Collection[str]) -> None:
    """As ``check_read``, for a command that splits a dataset and does no more."""
    for key in given:
        if key.replace("-", "_") not in _PARTITION | {"out"}:
            raise ValueError(f"--{key}: a partition has no use for it, a simulation has.")
    readers.check_read(config, _data_choices(config), given)


def _data_choices(config: Config) -> dict[str, list[str]]:
    return {"partitioner": [partitioner_of(config)], "dataset": [dataset_kind(config.dataset)]}


def strategy_of(config: Config, key: str, num_nodes: int) -> FedOpt:
    """The strategy ``key``, its own arguments filled from the config fields of the same name.

    Raises:
        ValueError: its clients' optimizer does not go with it, or with its settings.
    """
    entry = STRATEGIES[key.partition("+")[0]]
    cls = entry.strategy
    fields = strategy_arguments(cls)
    options: dict[str, Any] = dict(entry.options)
    options |= {
        name: value
        for name, field in fields.items()
        if (value := getattr(config, field)) or field not in _OWN_IF_0
    }
    options["clip"] = clip_of(config)
    average_named(config.average)  # what is wrong with it shows now
    with level(ERROR):  # Flower warns when no client evaluates, which is the default here
        strategy = cls(
            min_train_nodes=1,
            min_evaluate_nodes=1,
            min_available_nodes=num_nodes,
            evaluate_metrics_aggr_fn=per_client,
            client_config=client_config(config, key),
            **options,
        )
    if strategy.control_variates and not named_optimizer(optimizer_key(config, key)).is_plain:
        raise ValueError(
            f"Config(strategy={key!r}): control variates need one learning rate at all clients, "
            f"fixed throughout, and plain steps; {optimizer_key(config, key)} takes others. "
            "Use +sgd."
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
        failed_in_a_row: rounds that failed at the end of those so far.
    """

    def __init__(self, config: Config, key: str, num_nodes: int) -> None:
        self.config = config
        self.strategy = strategy_of(config, key, num_nodes)
        module = model_of(config)
        parameters = frozenset(name for name, _ in module.named_parameters())
        self.strategy.trainable = parameters  # no need to go by names, or by the clients' word
        self.evaluation = BothIterates(
            test_evaluation(config), average_named(config.average), parameters
        )
        self.arrays = to_record(module_arrays(module))
        self.schedule = schedule_of(config, key)
        self.failed_in_a_row = 0

    def rounds(self, grid: Grid, first: int = 1) -> Iterator[Round]:
        """The rounds from ``first`` on, until ``max-failed-rounds`` in a row have failed."""
        for round_ in rounds(
            self.strategy,
            grid,
            self.arrays,
            num_rounds=self.config.num_server_rounds,
            first=first,
            timeout=self.config.timeout,
            evaluate_fn=self.evaluation,
            train_config=self.schedule.settings if self.schedule else None,
        ):
            self.arrays = round_.arrays
            self.failed_in_a_row = self.failed_in_a_row + 1 if round_.failed else 0
            yield round_
            if 0 < self.config.max_failed_rounds <= self.failed_in_a_row:
                return

    def row(self, round_: Round) -> dict[str, Any]:
        """What failed in the round that has just ended; see ``verdict``."""
        failures = {"failures": reasons} if (reasons := self.strategy.attendance.reasons) else {}
        number = round_.train.get("num-failures", 0)
        return {"failed": round_.failed, "num-failures": number, **failures}

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors``, the last iterate, and ``model-mean.safetensors``."""
        folder.mkdir(parents=True, exist_ok=True)
        save_model(folder / "model.safetensors", from_record(self.arrays))
        save_model(folder / "model-mean.safetensors", self.evaluation.mean)


def test_evaluation(config: Config) -> EvaluateFn:
    """``(server_round, arrays) -> test-loss, test-accuracy`` and own metrics, on the test set."""
    module, examples = model_of(config), Examples(*dataset_of(config).test)

    metrics = Metrics.of(config.metrics)

    def evaluate_fn(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        load_arrays(module, from_record(arrays))
        values = evaluate(module, examples, default_loss, metrics=metrics)
        return MetricRecord({f"test-{name}": value for name, value in values.items()})

    return evaluate_fn
