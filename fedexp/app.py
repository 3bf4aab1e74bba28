"""The ClientApp and ServerApp that simulation, ``flwr run`` and a deployment all load."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache
from logging import INFO
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp
from torch import nn

from fedexp import readers, verdict
from fedexp.arrays import Arrays
from fedexp.choices import (
    Choice,
    client_config,
    optimizer_key,
    prepared,
    schedule_of,
    strategy_keys,
    strategy_names,
    strategy_of,
)
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
from fedexp.clients.losses import Loss
from fedexp.clients.metrics import Metrics
from fedexp.clients.schedules import Schedule
from fedexp.clients.trial import try_model
from fedexp.config import Config
from fedexp.datasets import Dataset, Parts, from_files, load
from fedexp.datasets.dataset import Pair
from fedexp.datasets.own_files import found
from fedexp.datasets.partition import named, own_test_rows, split
from fedexp.datasets.parts import Indices
from fedexp.datasets.sources import read_npz_once
from fedexp.files import read_model, save_model
from fedexp.models import build, suited
from fedexp.readers import dataset_kind
from fedexp.records import from_record, to_record
from fedexp.rounds import EvaluateFn, Exchange, Round, rounds
from fedexp.specs import slug
from fedexp.strategies import BothIterates, FedOpt, average_named
from fedexp.strategies.attendance import Attendance
from fedexp.strategies.sampling import InPartitionOrder, partitions_of
from fedexp.threads import one_thread


def dataset_of(config: Config) -> Dataset:
    """The dataset of a run, with inputs of the kind its model takes; loaded once per process."""
    return suited(config.model, loaded(config))


def loaded(config: Config) -> Dataset:
    """The dataset of a run as it comes; loaded once per process."""
    own = {name: getattr(config, name) for name in ("impute", "targets", "standardize")}
    if not config.data:
        return load(config.dataset, data_dir=config.data_dir or None, seed=config.seed, **own)
    files = ("target", "client_from", "test_fraction", "drop", "image_size")
    return from_files(config.data, **own, **{name: getattr(config, name) for name in files})


_seen: dict[str, list[tuple[int, int]]] = {}


def reread_changed(config: Config) -> None:
    """Forget what was read of the user's own files if they have changed since."""
    path = config.data or config.dataset
    if not (config.data or path.endswith(".npz")):
        return
    with suppress(OSError, ValueError):  # what is wrong with them is said where they are read
        stats = [file.stat() for file in (found(path)[1] if config.data else [Path(path)])]
        now = [(x.st_mtime_ns, x.st_size) for x in stats]
        if _seen.setdefault(path, now) != now:
            for read in (from_files, read_npz_once, _partition, suited):
                read.cache_clear()
        _seen[path] = now


def partition_of(config: Config) -> Parts:
    """Every client's rows; computed once per process.

    Raises:
        ValueError: the dataset cannot be split so.
    """
    return _partition(config.model_copy(update=_NO_PARTITION))


def partitioner_of(config: Config, own: Dataset | None = None) -> str:
    """The partitioner of a run, with ``auto`` resolved.

    Args:
        config: of the run.
        own: a dataset in place of that of ``config``.
    """
    if config.partitioner != "auto":
        return config.partitioner
    if config.client_from or (own and own.keys is not None):
        return "natural"
    return "dirichlet" if (own or loaded(config)).num_classes else "iid"


_NUM_CLIENTS = 50  # where nothing says how many
_PARTITION = {
    *("dataset", "data_dir", "impute", "targets", "partitioner", "num_clients", "seed"),
    *("data", "target", "client_from", "test_fraction", "drop", "standardize", "image_size"),
    *("alpha", "sigma", "shards_per_client", "classes_per_client"),
}
# All else goes back to its default, so that configurations that split alike share a partition.
_NO_PARTITION = {
    name: field.default for name, field in Config.model_fields.items() if name not in _PARTITION
}


@lru_cache(maxsize=4)
def _partition(config: Config) -> Parts:
    return split_among_clients(config, loaded(config))


def split_among_clients(config: Config, dataset: Dataset) -> Parts:
    """Every client's rows of ``dataset``.

    Raises:
        ValueError: it cannot be split so.
    """
    name = partitioner_of(config, dataset)
    return named(
        name,
        dataset,
        num_clients=config.num_clients or (0 if name == "natural" else _NUM_CLIENTS),
        seed=config.seed,
        alpha=config.alpha,
        sigma=config.sigma,
        shards_per_client=config.shards_per_client,
        classes_per_client=config.classes_per_client,
    )


def examples(context: Context) -> tuple[Examples, Examples]:
    """Train and test examples of the client that ``context`` belongs to.

    Without ``local-test-fraction`` a natural client is tested on its own rows of the test set. One
    that has none there, and any other client, is tested on what it trains on.
    """
    partition, num_clients = (
        int(context.node_config[key]) for key in ("partition-id", "num-partitions")
    )
    config = Config.of({**context.run_config, "num-clients": num_clients})
    return examples_of(dataset_of(config), partition_of(config)[partition], config, partition)


def examples_of(
    dataset: Dataset, rows: Indices, config: Config, partition: int
) -> tuple[Examples, Examples]:
    """Train and test examples of the client of a partition that holds ``rows``."""
    if config.local_test_fraction:
        seed = int(np.random.SeedSequence([config.seed, partition]).generate_state(1)[0])
        train, test = split(rows, fraction=config.local_test_fraction, seed=seed)
        return _examples(dataset.train, train), _examples(dataset.train, test)
    is_natural = partitioner_of(config, dataset) == "natural"
    if is_natural and len(own := own_test_rows(dataset, rows)):
        return _examples(dataset.train, rows), _examples(dataset.test, own)
    return _examples(dataset.train, rows), _examples(dataset.train, rows)


def _examples(pair: Pair, rows: Indices) -> Examples:
    return Examples(*pair, torch.tensor(rows))


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


def check_run_config(values: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` unless ``values`` are a configuration."""
    Config.of(values)


client = client_app(
    lambda context: model_of(Config.of(context.run_config)), examples, check=check_run_config
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
    start_of(config)
    partitions = partitions_of(grid)
    grid = cast(Grid, InPartitionOrder(grid, partitions))
    summaries = {}
    for key in strategy_keys(config):
        run, rows = Run(config, key, len(partitions)), []
        for round_ in run.rounds(grid):
            log(INFO, "%s round %d: %s", key, round_.server_round, dict(round_.server))
            rows.append(run.row(round_))
        summaries[key] = verdict.of_run(rows, run.attendance.missing, config.num_server_rounds)
        if config.out:
            run.save(Path(config.out) / slug(key))
    if problems := verdict.problems(summaries):
        raise RuntimeError("; ".join(problems))  # else Flower would say that the run completed


def check_read(config: Config, given: Collection[str] = ()) -> None:
    """Find out whether all settings that differ from their default, or are ``given``, are read.

    Raises:
        ValueError: no strategy, local optimizer, partitioner, dataset or engine of ``config``
            reads one of them.
    """
    keys = strategy_keys(config)
    _check_one_source(config, given)
    own = config.local_optimizer
    if all(Choice.of(key).optimizer for key in keys) and (
        "local-optimizer" in given or own != "sgd"
    ):
        raise ValueError(
            f"Config(local-optimizer={own!r}): every strategy names its own behind a +. "
            "Leave one of the two out."
        )
    chosen: dict[str, list[str]] = {
        "strategy": strategy_names(config),
        "local optimizer": [optimizer_key(config, key) for key in keys],
        **_data_choices(config),
        "engine": ["serial" if config.engine == "serial" else "ray"],
    }
    readers.check_read(config, chosen, given)


def check_read_by_partition(config: Config, given: Collection[str]) -> None:
    """As ``check_read``, for a command that splits a dataset and does no more."""
    _check_one_source(config, given)
    readers.check_read(config, _data_choices(config), given)


def _data_choices(config: Config) -> dict[str, list[str]]:
    auto = "natural" if config.client_from else "dirichlet"  # so far as it shows without the data
    name = auto if config.partitioner == "auto" else config.partitioner
    kind = found(config.data)[0] if config.data else dataset_kind(config.dataset)
    return {"partitioner": [name], "dataset": [kind]}


def _check_one_source(config: Config, given: Collection[str]) -> None:
    if config.data and ("dataset" in given or config.dataset != Config.keys()["dataset"].default):
        raise ValueError(
            f"Config(dataset={config.dataset!r}): data={config.data!r} names the data already. "
            "Leave one of the two out."
        )


class Run:
    """One strategy of a run, evaluated on the global test set at two models, alike for all.

    They are the last iterate and the average that ``--average`` names.

    Args:
        config: of the run.
        key: of the strategy.
        num_nodes: how many clients there are.
        strategy: in place of the one that ``key`` names; a copy of it runs.
        start: the first model, in place of that of ``config``.
        evaluate_fn: in place of ``test_evaluation``.
        schedule: of the clients' learning rate, in place of ``scheduler``.

    Attributes:
        strategy: the strategy that runs.
        arrays: the last iterate; at first the initial model, or the one to go on from.
        evaluation: of the two; its ``memory`` is needed to go on.
        failed_in_a_row: rounds that failed at the end of those so far.
    """

    def __init__(
        self,
        config: Config,
        key: str,
        num_nodes: int,
        *,
        strategy: Any = None,
        start: Start | None = None,
        evaluate_fn: EvaluateFn | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        self.config = config
        self.strategy = (
            strategy_of(config, key, num_nodes)
            if strategy is None
            else prepared(strategy, config, key, num_nodes)
        )
        start = start or start_of(config)
        if isinstance(self.strategy, FedOpt) and start.trainable is not None:
            self.strategy.trainable = start.trainable  # no need to go by names, or clients' word
        self.evaluation = BothIterates(
            evaluate_fn or test_evaluation(config), average_named(config.average), start.trainable
        )
        self.arrays = to_record(start.arrays)
        self.schedule = schedule or schedule_of(config, key)
        if self.schedule and isinstance(self.strategy, FedOpt):
            self.strategy.client_config.pop("learning-rate", None)  # comes with every round
        self.failed_in_a_row = 0
        self._attendance = Attendance()

    @property
    def attendance(self) -> Attendance:
        """Which clients have contributed."""
        own = getattr(self.strategy, "attendance", None)
        return own if isinstance(own, Attendance) else self._attendance

    def rounds(self, grid: Grid, first: int = 1, last: int = 0) -> Iterator[Round]:
        """The rounds from ``first`` to ``last``, until ``max-failed-rounds`` in a row have failed.

        ``last`` 0 stands for ``num-server-rounds``.
        """
        for round_ in rounds(
            self.strategy,
            grid,
            self.arrays,
            num_rounds=last or self.config.num_server_rounds,
            first=first,
            timeout=self.config.timeout,
            evaluate_fn=self.evaluation,
            seed=self.config.seed,
            train_config=self.schedule.settings if self.schedule else None,
        ):
            self.arrays = round_.arrays
            self.failed_in_a_row = self.failed_in_a_row + 1 if round_.failed else 0
            if self.attendance is self._attendance:
                self._attend(round_.training)
            yield round_
            if 0 < self.config.max_failed_rounds <= self.failed_in_a_row:
                return

    def _attend(self, training: Exchange) -> None:
        """Note who contributed, for a strategy that does not."""
        self._attendance.ask(training.asked)
        self._attendance.fail(training.failures)
        self._attendance.came(node for node, _ in training.answers)

    def row(self, round_: Round) -> dict[str, Any]:
        """What failed in the round that has just ended; see ``verdict``."""
        failures = {"failures": reasons} if (reasons := self.attendance.reasons) else {}
        number = round_.train.get("num-failures", len(round_.training.failures))
        return {"failed": round_.failed, "num-failures": number, **failures}

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors``, the last iterate, and ``model-mean.safetensors``."""
        folder.mkdir(parents=True, exist_ok=True)
        save_model(folder / "model.safetensors", from_record(self.arrays))
        save_model(folder / "model-mean.safetensors", self.evaluation.mean)


@dataclass(frozen=True, eq=False)
class Start:
    """The model before the first round.

    Attributes:
        arrays: by name, in the model's order.
        trainable: names of those that are learned; None to go by their names.
    """

    arrays: Arrays
    trainable: frozenset[str] | None = None

    @classmethod
    def of(cls, module: nn.Module, initial_model: str = "") -> Start:
        """The arrays of ``module``, or those of the same names in the file ``initial_model``.

        Raises:
            ValueError: the file does not hold this model.
        """
        arrays = module_arrays(module)
        trainable = frozenset(name for name, _ in module.named_parameters())
        return cls(read_model(Path(initial_model), arrays) if initial_model else arrays, trainable)


def start_of(config: Config) -> Start:
    """The model that a run of ``config`` starts from.

    Raises:
        ValueError: ``initial-model`` does not hold it.
    """
    return Start.of(model_of(config), config.initial_model)


def test_evaluation(config: Config) -> EvaluateFn:
    """``(server_round, arrays) -> test-loss, test-accuracy`` and own metrics, on the test set."""
    examples, metrics = Examples(*dataset_of(config).test), Metrics.of(config.metrics)
    return evaluation_on(model_of(config), examples, metrics=metrics)


_MUCH_TO_EVALUATE = 1 << 28  # examples times parameters


def evaluation_on(
    module: nn.Module,
    examples: Examples,
    loss: Loss = default_loss,
    metrics: Metrics | None = None,
) -> EvaluateFn:
    """``test_evaluation`` of ``module`` on ``examples``."""
    # Several threads would take longer over so little, most of all beside other processes.
    few = len(examples) * sum(p.numel() for p in module.parameters()) < _MUCH_TO_EVALUATE

    def evaluate_fn(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        load_arrays(module, from_record(arrays))
        with one_thread() if few else nullcontext():
            values = evaluate(module, examples, loss, metrics=metrics)
        return MetricRecord({f"test-{name}": value for name, value in values.items()})

    return evaluate_fn
