"""Rounds that nobody configured, parts of models, and models that the clients give: as Flower's."""

import numpy as np
import pytest
from builders import content, grid_of, merging_if, partition, record, reply
from flwr.app import ConfigRecord, RecordDict
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server.strategy import FedAvg as OlderFedAvg
from flwr.serverapp.exception import AggregationError
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from test_legacy import Client

from fedexp.records import from_record
from fedexp.strategies import (
    STRATEGIES,
    FedAdagrad,
    FedAvg,
    FedAvgM,
    FedExP,
    FixedClip,
    NesterovExP,
    legacy,
)

MEANS = ["fedavg", "fedavgm", "fedprox"]
OTHERS = sorted(STRATEGIES.keys() - {*MEANS, "scaffold", "scaffoldexp", "feddyn"})
A, B = (
    {"w": np.array([1.0, 2.0]), "n": np.asarray(3)},
    {"w": np.array([3.0, 8.0]), "n": np.asarray(5)},
)
REPLIES = [
    content(A, num_examples=1, local_work=2.0),
    content(B, num_examples=3, local_work=2.0),
]
MEAN = {"w": np.array([2.5, 6.5]), "n": np.asarray(4)}  # 4.5 is rounded to the even neighbour


def replies(*bodies):
    return [reply(body, node) for node, body in enumerate(bodies, 2)]


def arrays_of(found):
    return {name: x.numpy() for name, x in found.items()}


# --- nobody called configure_train --------------------------------------------------------------


@pytest.mark.parametrize("key", MEANS)
def test_a_mean_needs_no_model_to_start_from(key):
    arrays, metrics = STRATEGIES[key].strategy().aggregate_train(1, replies(*REPLIES))
    np.testing.assert_equal(arrays_of(arrays), MEAN)
    assert metrics["num-clients"] == 2


@pytest.mark.parametrize("key", OTHERS)
def test_any_other_step_says_what_is_missing_and_may_be_told(key):
    strategy = STRATEGIES[key].strategy()
    rule = r"model that the clients started from is not known. Call configure_train first"
    with pytest.raises(
        AggregationError, match=rf"{type(strategy).__name__}.aggregate_train: .*{rule}"
    ):
        strategy.aggregate_train(1, replies(*REPLIES))
    strategy.client_config.clear()
    strategy.current_arrays = record({"w": np.zeros(2), "n": np.asarray(0)})
    arrays, metrics = strategy.aggregate_train(1, replies(*REPLIES))
    assert arrays["w"].numpy().shape == (2,)
    assert "server-step-size" in metrics


@pytest.mark.parametrize(
    "make",
    [
        lambda: FedAvg(server_learning_rate=0.5),
        lambda: FedAvgM(server_momentum=0.5),
        lambda: FedAvg(clip=FixedClip(1.0)),
    ],
)
def test_a_mean_that_is_more_than_a_mean_says_it_too(make):
    with pytest.raises(AggregationError, match="is not known"):
        make().aggregate_train(1, replies(*REPLIES))


def test_the_next_round_starts_from_the_last_ones_model():
    strategy = FedAvg(server_learning_rate=0.5)
    strategy.current_arrays = {"w": np.zeros(2)}
    for expected in ([1.0, 1.0], [1.5, 1.5]):  # half the way to 2, and again
        arrays, _ = strategy.aggregate_train(1, replies(content({"w": np.full(2, 2.0)})))
        np.testing.assert_array_equal(arrays["w"].numpy(), expected)


def results(*models):
    return [
        (Client(p), FitRes(Status(Code.OK, ""), ndarrays_to_parameters(model), p, {}))
        for p, model in enumerate(models, 1)
    ]


def test_the_older_api_starts_from_its_initial_parameters():
    # Adagrad from 0 with v0 = 0 and tau = 0.5: the mean is 0.5, so w = 0.1 * 0.5 / (0.5 + 0.5).
    strategy = legacy.FedAdagrad(tau=0.5, initial_parameters=ndarrays_to_parameters([np.zeros(3)]))
    assert [x.tolist() for x in strategy.current_weights] == [[0.0] * 3]
    new, _ = strategy.aggregate_fit(1, results([np.full(3, 0.5)], [np.full(3, 0.5)]), [])
    np.testing.assert_allclose(parameters_to_ndarrays(new)[0], 0.05)


def test_the_older_api_averages_or_says_what_is_missing():
    models = [np.array([1.0, 2.0]), np.asarray(4.0)], [np.array([4.0, 8.0]), np.asarray(1.0)]
    ours, theirs = (
        s.aggregate_fit(1, results(*models), [])[0] for s in (legacy.FedAvg(), OlderFedAvg())
    )
    for x, y in zip(parameters_to_ndarrays(ours), parameters_to_ndarrays(theirs), strict=True):
        np.testing.assert_allclose(x, y)
    assert legacy.FedExP().current_weights is None
    with pytest.raises(AggregationError, match="is not known"):
        legacy.FedExP().aggregate_fit(1, results(*models), [])


# --- parts of the model ---------------------------------------------------------------------------

WHOLE = {"body": np.zeros(3), "head": np.ones(2), "norm.running_mean": np.full(2, 7.0)}
merging = pytest.mark.parametrize("merges", [True, False])


def part(message, context):
    """Sends back the body and its statistics, but not its head."""
    p, arrays = partition(context), from_record(message.content["arrays"])
    sent = {"body": arrays["body"] + 1.0 + p, "norm.running_mean": np.full(2, float(p))}
    return content(sent, num_examples=1 + p, local_work=1.0 + p)


@merging
@pytest.mark.parametrize("make", [FedAvg, FlowerFedAvg])
def test_what_no_client_sends_back_leaves_the_model(make, merges):
    grid = grid_of(3, part)
    grid = merging_if(merges, grid)
    strategy = make(fraction_evaluate=0.0)
    for num_rounds in 1, 2:
        new = from_record(strategy.start(grid, record(WHOLE), num_rounds=num_rounds).arrays)
        assert list(new) == ["body", "norm.running_mean"]
        # Weights 1, 2, 3 of 1, 2, 3 in every round.
        np.testing.assert_allclose(new["body"], num_rounds * (1 + 4 + 9) / 6)
        np.testing.assert_allclose(new["norm.running_mean"], (0 + 2 + 6) / 6)


@merging
@pytest.mark.parametrize("key", OTHERS)
def test_every_rule_steps_on_the_part_as_if_it_were_the_model(key, merges):
    def run(model):
        grid = grid_of(3, part)
        grid = merging_if(merges, grid)
        strategy = STRATEGIES[key].strategy(fraction_evaluate=0.0, max_step_size=10.0)
        strategy.client_config.clear()
        if key == "fedexprox":
            strategy = type(strategy)(fraction_evaluate=0.0)
        return from_record(strategy.start(grid, record(model), num_rounds=3).arrays)

    ours, alone = run(WHOLE), run({k: x for k, x in WHOLE.items() if k != "head"})
    np.testing.assert_equal(ours, alone)


@merging
def test_one_odd_part_does_not_shrink_the_model(merges, logged):
    def train(message, context):
        arrays = from_record(message.content["arrays"])
        if partition(context) == 0:
            arrays.pop("head")
        return content({k: x + 1 for k, x in arrays.items()})

    grid = grid_of(4, train)
    grid = merging_if(merges, grid)
    result = FedExP(fraction_evaluate=0.0).start(grid, record(WHOLE), num_rounds=1)
    assert list(result.arrays) == list(WHOLE)
    metrics = result.train_metrics_clientapp[1]
    assert (metrics["num-clients"], metrics["num-failures"]) == (3, 1)
    assert any("which arrays it holds: ['head']" in line for line in logged)


def test_of_two_halves_the_whole_model_counts():
    strategy = FedAvg()
    strategy.current_arrays = WHOLE
    half = content({"body": np.ones(3)})
    arrays, metrics = strategy.aggregate_train(1, replies(half, content(WHOLE)))
    assert list(arrays) == list(WHOLE)
    assert metrics["num-failures"] == 1


# --- no model at all ------------------------------------------------------------------------------


@merging
@pytest.mark.parametrize("make", [FedAvg, FedExP, FedAdagrad, NesterovExP, FlowerFedAvg])
def test_clients_fill_an_empty_model_in_round_one(make, merges):
    def train(message, context):
        arrays = from_record(message.content["arrays"])
        p = partition(context)
        if not arrays:
            return content({"w": np.full(3, 1.0 + p, np.float32)}, num_examples=1 + p)
        return content({"w": arrays["w"] + np.float32(1.0)}, num_examples=1 + p)

    grid = grid_of(3, train)
    grid = merging_if(merges, grid)
    strategy = make(fraction_evaluate=0.0)
    first = from_record(strategy.start(grid, record({}), num_rounds=1).arrays)["w"]
    np.testing.assert_allclose(first, (1 + 4 + 9) / 6, rtol=1e-6)
    result = strategy.start(grid, record({}), num_rounds=2)
    second = from_record(result.arrays)["w"]
    if make is FlowerFedAvg:
        return
    assert second.dtype == np.float32
    assert "server-step-size" not in result.train_metrics_clientapp[1]
    eta = result.train_metrics_clientapp[2]["server-step-size"]
    assert np.all(second > first)
    if make in (FedAvg, FedExP):
        np.testing.assert_allclose(second - first, eta, rtol=1e-6)


def test_one_odd_client_does_not_choose_the_first_model(logged):
    strategy = FedExP()
    strategy.configure_train(1, record({}), ConfigRecord(), grid_of(2, part))
    odd = content({"w": np.ones(1000)})
    bad = content({"w": np.full(2, np.nan)})
    good = content({"w": np.ones(2)})
    arrays, metrics = strategy.aggregate_train(1, replies(odd, good, bad, good))
    np.testing.assert_array_equal(arrays["w"].numpy(), [1.0, 1.0])
    assert (metrics["num-clients"], metrics["num-failures"]) == (2, 2)
    strategy = FedExP()
    strategy.configure_train(1, record({}), ConfigRecord(), grid_of(2, part))
    assert strategy.aggregate_train(1, replies(RecordDict()))[0] is None


def test_the_older_api_fills_an_empty_model_too():
    def make(**kwargs):
        kwargs["initial_parameters"] = ndarrays_to_parameters([])
        return legacy.FedAvg(**kwargs)

    class Filling(Client):
        def fit(self, ins, timeout, group_id):
            arrays = [np.full(2, self.p + 1.0)]
            return FitRes(Status(Code.OK, ""), ndarrays_to_parameters(arrays), 1, {})

    from test_legacy import Server, SimpleClientManager

    manager = SimpleClientManager()
    for p in range(3):
        manager.register(Filling(p))
    server = Server(client_manager=manager, strategy=make(fraction_evaluate=0.0))
    server.fit(1, timeout=None)
    np.testing.assert_allclose(parameters_to_ndarrays(server.parameters), [[2.0, 2.0]])
