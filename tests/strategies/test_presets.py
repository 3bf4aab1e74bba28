import logging

import numpy as np
import pytest
from builders import merging_if
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flower

from fedexp.records import from_record, to_record
from fedexp.rounds import rounds
from fedexp.simulation import SerialGrid
from fedexp.strategies import (
    STRATEGIES,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedDyn,
    FedExP,
    FedExProx,
    FedHyper,
    FedOpt,
    FedProx,
    FedProxExP,
    FedYogi,
    Scaffold,
)

every_strategy = pytest.mark.parametrize(
    "make", [row.strategy for row in STRATEGIES.values()], ids=STRATEGIES
)
FIRST = {
    "layer.weight": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
    "scale": np.asarray(0.5, np.float32),
    "norm.num_batches_tracked": np.asarray(3),
}


def drawn(message, context):
    """A client whose update is drawn from its partition and the round; knows all metrics."""
    server_round = int(message.content.config_records["config"]["server-round"])
    rng = np.random.default_rng([context.node_config["partition-id"], server_round])
    before = from_record(message.content.array_records["arrays"])
    return {
        name: np.asarray(x + rng.normal(size=x.shape), x.dtype) if x.dtype.kind == "f" else x + 2
        for name, x in before.items()
    }


def grid_of(client, num_nodes=4, merges=True, broken=()):
    app = ClientApp()

    @app.train()
    def train(message, context):
        if context.node_config["partition-id"] in broken:
            raise RuntimeError("no power")
        metrics = {"num-examples": context.node_config["partition-id"] % 3 + 1}
        metrics |= {"final-loss": 1.0, "control-step": 0.5, "local-work": 2.0}
        content = {"arrays": to_record(client(message, context)), "metrics": MetricRecord(metrics)}
        return Message(RecordDict(content), reply_to=message)

    return merging_if(merges, SerialGrid(app, num_nodes))


def run(strategy, grid, num_rounds=4, first=None):
    return strategy.start(grid, to_record(first or FIRST), num_rounds=num_rounds)


def arrays_of(result):
    return from_record(result.arrays)


@every_strategy
def test_a_preset_defines_init_and_flowers_attributes_only(make):
    own = {name for name, x in vars(make).items() if not name.startswith("_")}
    flowers = getattr(flower, make.__name__, None)
    theirs = vars(flowers(fraction_evaluate=0.0)).keys() if flowers else set()
    assert own <= theirs | {"server_learning_rate"}
    assert issubclass(make, FedOpt)


@every_strategy
def test_a_preset_takes_flowers_arguments_by_position(make):
    strategy = make(0.5, 0.25, 3, 4, 5, "num-examples", "model", "settings")
    names = "fraction_train fraction_evaluate min_train_nodes min_evaluate_nodes"
    assert [getattr(strategy, name) for name in names.split()] == [0.5, 0.25, 3, 4]
    assert (strategy.arrayrecord_key, strategy.configrecord_key) == ("model", "settings")


@every_strategy
def test_dtypes_are_kept_and_counters_are_the_clients_mean(make):
    new = arrays_of(run(make(fraction_evaluate=0.0), grid_of(drawn), num_rounds=2))
    assert [(k, x.dtype, x.shape) for k, x in new.items()] == [
        (k, x.dtype, x.shape) for k, x in FIRST.items()
    ]
    assert new["norm.num_batches_tracked"] == 3 + 2 + 2


@every_strategy
def test_merged_and_single_replies_give_the_same_model(make):
    one, many = (
        arrays_of(run(make(fraction_evaluate=0.0), grid_of(drawn, merges=merges)))
        for merges in (True, False)
    )
    for name in FIRST:
        np.testing.assert_allclose(one[name], many[name], rtol=2e-6)


@every_strategy
def test_a_client_that_fails_is_as_if_it_had_not_been_asked(make):
    if make is FedDyn:
        pytest.skip("counts the clients that are there, asked or not")
    settings = {"fraction_evaluate": 0.0, "min_train_nodes": 1, "min_available_nodes": 1}
    with_it = run(make(**settings), grid_of(drawn, 4, broken={3}), num_rounds=1)
    without = run(make(**settings), grid_of(drawn, 3), num_rounds=1)
    for name in FIRST:
        np.testing.assert_array_equal(arrays_of(with_it)[name], arrays_of(without)[name])
    assert with_it.train_metrics_clientapp[1]["num-failures"] == 1


@every_strategy
def test_a_copy_of_the_state_continues_as_the_strategy_itself(make):
    def continued(strategy, arrays, grid):
        steps = list(rounds(strategy, grid, arrays, num_rounds=4, first=3))
        return from_record(steps[-1].arrays)

    grid, first = grid_of(drawn), make(fraction_evaluate=0.0)
    middle = run(first, grid, num_rounds=2).arrays
    saved = {k: {n: np.array(x) for n, x in xs.items()} for k, xs in first.state.items()}
    second = make(fraction_evaluate=0.0)
    second.state = saved
    one, two = continued(first, middle, grid), continued(second, middle, grid)
    np.testing.assert_equal(one, two)


FLOATS = {"w": np.linspace(-1, 1, 5), "b": np.zeros(2)}  # Flower moves counters too


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (FedAvg, flower.FedAvg),
        (FedProx, flower.FedProx),
        (FedAvgM, flower.FedAvgM),
        *(
            (
                lambda sets=sets, **kw: FedAvgM(**sets, **kw),
                lambda sets=sets, **kw: flower.FedAvgM(**sets, **kw),
            )
            for sets in ({"server_momentum": 0.9}, {"server_learning_rate": 0.5})
        ),
        (lambda **kw: FedAdagrad(flower_compatible=True, **kw), flower.FedAdagrad),
        (lambda **kw: FedAdam(flower_compatible=True, **kw), flower.FedAdam),
        (lambda **kw: FedYogi(flower_compatible=True, **kw), flower.FedYogi),
    ],
    ids=["FedAvg", "FedProx", "FedAvgM", "momentum", "rate", "FedAdagrad", "FedAdam", "FedYogi"],
)
def test_the_numbers_are_flowers(ours, theirs):
    mine, flowers = (
        arrays_of(run(make(fraction_evaluate=0.0), grid_of(drawn), 5, FLOATS))
        for make in (ours, theirs)
    )
    for name in FLOATS:
        np.testing.assert_allclose(mine[name], flowers[name], rtol=1e-6, atol=1e-9)


def received(strategy):
    seen = {}

    def client(message, context):
        seen.update(message.content.config_records["config"])
        return drawn(message, context)

    run(strategy, grid_of(client), 1)
    return seen


def test_the_proximal_settings_reach_the_clients():
    assert received(FedProx(proximal_mu=0.3, fraction_evaluate=0.0))["proximal-mu"] == 0.3
    assert received(FedProx(fraction_evaluate=0.0))["proximal-mu"] == 0.0  # as Flower sends it
    assert received(FedExP(proximal_mu=0.2, fraction_evaluate=0.0))["proximal-mu"] == 0.2
    assert received(FedProxExP(fraction_evaluate=0.0))["proximal-mu"] == 0.1
    assert "proximal-mu" not in received(FedExP(fraction_evaluate=0.0))
    stops = received(FedExProx(gamma=4.0, step_size="stops", fraction_evaluate=0.0))
    assert stops["proximal-mu"] == 0.25
    assert stops["final-loss"] is True
    assert "final-loss" not in received(FedExProx(step_size=2.0, fraction_evaluate=0.0))


def test_settings_of_the_caller_go_to_the_clients_as_well():
    seen = received(FedProx(client_config={"local-steps": 7}, fraction_evaluate=0.0))
    assert (seen["local-steps"], seen["proximal-mu"]) == (7, 0.0)


def test_losses_are_weighted_as_updates_are():
    # Equal updates: eta = gamma (mean loss + |D|^2 / (2 gamma)) / |D|^2 with the clients' 1.0.
    def client(message, context):
        return {k: x - 1 for k, x in from_record(message.content.array_records["arrays"]).items()}

    strategy = FedExProx(gamma=2.0, step_size="stops", fraction_evaluate=0.0)
    metrics = run(strategy, grid_of(client), 1, {"w": np.zeros(4)}).train_metrics_clientapp[1]
    assert metrics["server-step-size"] == pytest.approx(2.0 * (1.0 + 4 / 4) / 4)


def test_a_foreign_client_makes_scaffold_say_what_is_missing():
    app = ClientApp()

    @app.train()
    def train(message, context):
        arrays = message.content.array_records["arrays"]
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    with pytest.raises(ValueError, match=r"Scaffold\(metrics of node \d+\): no control-step"):
        run(Scaffold(fraction_evaluate=0.0), SerialGrid(app, 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FedProx(proximal_mu=-1.0), r"FedProx\(proximal_mu=-1.0\): must be >= 0"),
        (lambda: FedExProx(step_size="armijo"), r"FedExProx\(step_size='armijo'\): unknown"),
        (lambda: FedExProx(gamma=0.0), r"gamma=0.0"),
        (lambda: FedOpt(buffers="drop"), r"FedOpt\(buffers='drop'\): unknown"),
        (lambda: FedOpt(drop_beyond=0.5), r"FedOpt\(drop_beyond=0.5\): must be >= 1"),
        (lambda: FedHyper(rate=-1.0), r"HypergradientStep\(rate=-1.0\)"),
    ],
)
def test_an_argument_out_of_range_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


BATCH_NORM = FIRST | {"norm.running_var": np.ones(2, np.float32)}


def opposed(message, context):
    """Clients that nearly cancel, so that FedExP would step far."""
    sign = 1 if context.node_config["partition-id"] % 2 else -0.8
    before = from_record(message.content.array_records["arrays"])
    return {
        k: np.asarray(x + sign, x.dtype) if k == "layer.weight" else x * 2
        for k, x in before.items()
    }


def steps(strategy, first):
    result = run(strategy, grid_of(opposed), 1, first)
    return result.train_metrics_clientapp[1]["server-step-size"]


def test_with_batch_norm_an_adaptive_step_is_limited_unless_told_otherwise():
    assert steps(FedExP(fraction_evaluate=0.0), FIRST) > 2
    assert steps(FedExP(fraction_evaluate=0.0), BATCH_NORM) == 1.5
    assert steps(FedExP(max_step_size=float("inf"), fraction_evaluate=0.0), BATCH_NORM) > 2
    assert steps(FedAvg(server_learning_rate=3.0, fraction_evaluate=0.0), BATCH_NORM) == 3.0


@pytest.mark.parametrize("buffers", ["average", "keep"])
def test_buffers_are_averaged_or_kept_and_named_once(buffers):
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("flwr").addHandler(handler)
    strategy = FedAvg(buffers=buffers, fraction_evaluate=0.0)
    new = arrays_of(run(strategy, grid_of(opposed), 2, BATCH_NORM))
    logging.getLogger("flwr").removeHandler(handler)
    factor = 4 if buffers == "average" else 1
    np.testing.assert_array_equal(new["norm.running_var"], np.full(2, factor))
    assert new["norm.num_batches_tracked"] == 3 * factor
    named = [line for line in lines if "norm.running_var" in line]
    assert len(named) == 1
    assert "norm.num_batches_tracked" in named[0]


def test_relaxation_comes_before_the_cap():
    free = steps(FedExP(fraction_evaluate=0.0), FIRST)
    assert steps(FedExP(relaxation=0.5, fraction_evaluate=0.0), FIRST) == pytest.approx(free / 2)
    both = FedExP(relaxation=0.5, max_step_size=free / 3, fraction_evaluate=0.0)
    assert steps(both, FIRST) == pytest.approx(free / 3)


def test_records_are_flowers():
    assert isinstance(run(FedAvg(fraction_evaluate=0.0), grid_of(drawn), 1).arrays, ArrayRecord)
