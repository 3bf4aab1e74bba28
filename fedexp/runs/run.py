"""One strategy on its way, and the two models it is scored at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import nn

from fedexp.arrays import Arrays
from fedexp.choices import Choice, optimizer_key, schedule_of
from fedexp.clients import (
    Examples,
    default_loss,
    evaluate,
    load_arrays,
    module_arrays,
)
from fedexp.clients.losses import Loss
from fedexp.clients.metrics import Metrics
from fedexp.clients.named import named_optimizer
from fedexp.clients.schedules import Schedule
from fedexp.config import Config
from fedexp.factories import dataset_of, model_of, validation_of
from fedexp.files import read_model, save_model
from fedexp.records import from_record, to_record
from fedexp.rounds import Exchange, Round, rounds
from fedexp.strategies import (
    BothIterates,
    Capped,
    Constant,
    FedOpt,
    LineSearch,
    ServerOptimizer,
    average_named,
)
from fedexp.strategies.attendance import Attendance, by_kind
from fedexp.strategies.evaluation import EvaluateFn
from fedexp.strategies.optimizer import limited
from fedexp.strategies.private_layers import PrivateLayers
from fedexp.strategies.step_sizes import innermost, with_innermost
from fedexp.strategy_factory import prepared, strategy_of
from fedexp.threads import one_thread


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
        if config.server_step_size:
            search_steps(self.strategy, config, key)
        if isinstance(self.strategy, FedOpt):
            self.strategy.check_num_nodes(num_nodes)
        start = start or start_of(config)
        if isinstance(self.strategy, FedOpt) and self.strategy.trainable is None:
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
        kinds = {f"bad-replies-{kind}": n for kind, n in by_kind(reasons).items()}
        return {"failed": round_.failed, "num-failures": number, **failures, **kinds}

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


def search_steps(strategy: Strategy, config: Config, key: str) -> None:
    """Let a strategy with a fixed step find it by ``LineSearch`` on the rows of ``validation_of``.

    One that chooses its own step keeps it. Limits of the strategy hold for the step that is found.

    Raises:
        ValueError: the strategy is none of ours, its direction needs one step in all rounds, the
            clients' data are to stay private, or parts of the model do, or a step is given as well.
    """
    owner = f"Config(server-step-size={config.server_step_size!r})"
    if not isinstance(strategy, FedOpt):
        raise ValueError(f"{owner}: {type(strategy).__name__} takes its own. Use one of fedexp's.")
    if strategy.extensions.is_private or named_optimizer(optimizer_key(config, key)).private:
        raise ValueError(
            f"{owner}: the server would look at clients' data that privacy is to hide. Leave one "
            "of the two out."
        )
    if not isinstance(innermost(strategy.optimizer.step_size), Constant):
        return
    named = Choice.of(key).strategy.settings
    if config.server_learning_rate or {"eta", "server_learning_rate"} & named.keys():
        raise ValueError(f"{owner}: {key} has a fixed step, too. Leave one of the two out.")
    if strategy.extensions.find(PrivateLayers):
        raise ValueError(
            f"{owner}: the server has not got the layers that stay at the clients, so that it "
            "cannot tell which step is best. Leave private-layers out, or the search."
        )
    module, examples = model_of(config), validation_of(config)

    def loss(arrays: Arrays) -> float:
        load_arrays(module, arrays)
        with one_thread():
            return float(evaluate(module, examples, default_loss)["loss"])

    step = with_innermost(strategy.optimizer.step_size, LineSearch(loss))
    optimizer = ServerOptimizer(strategy.optimizer.direction, step)
    bound = strategy.bounds.step if strategy.bounds and not isinstance(step, Capped) else None
    strategy.optimizer = limited(optimizer, max_step_size=bound)


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
