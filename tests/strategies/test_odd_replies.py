"""Replies that look usable and would poison the round."""

import numpy as np
import pytest
from builders import merging_if
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedexp.simulation import SerialGrid
from fedexp.strategies import FedExP, FedExProx
from fedexp.strategies.rate_sharing import cohort_rates
from fedexp.strategies.robustness import FixedClip

START = np.zeros(3, np.float32)


def app(odd):
    """Clients that move by one; the client of node 2 answers ``odd(arrays, metrics)``."""
    client = ClientApp()

    @client.train()
    def train(message, context):
        arrays = [START + context.node_id]
        metrics = {"num-examples": 1.0, "final-loss": 0.5}
        if context.node_id == 2:
            arrays, metrics = odd(arrays, metrics)
        content = {"arrays": ArrayRecord(arrays), "metrics": MetricRecord(metrics)}
        return Message(RecordDict(content), reply_to=message)

    return client


ODD = {
    "a weight beyond reason": lambda a, m: (a, m | {"num-examples": 1e308}),
    "float64 that overflows float32": lambda a, m: ([np.full(3, 1e200)], m),
    "an infinite update": lambda a, m: ([START + np.float32("inf")], m),
    "a loss that is NaN": lambda a, m: (a, m | {"final-loss": float("nan")}),
    "a loss that is a list": lambda a, m: (a, m | {"final-loss": [1.0, 2.0]}),
}
STRATEGIES = {
    "fedexp": lambda **kw: FedExP(**kw),
    "clipped": lambda **kw: FedExP(clip=FixedClip(1.0), **kw),
    "polyak": lambda **kw: FedExProx(step_size="stops", **kw),
}


@pytest.mark.parametrize("merges", [True, False])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("odd", ODD)
def test_an_odd_reply_is_left_out_and_the_others_count(odd, strategy, merges):
    models = []
    for client in (ODD[odd], lambda a, m: (a, m | {"num-examples": -1.0})):
        run = STRATEGIES[strategy](fraction_evaluate=0.0)
        result = run.start(
            merging_if(merges, SerialGrid(app(client), 4)), ArrayRecord([START]), num_rounds=1
        )
        metrics = result.train_metrics_clientapp[1]
        assert (metrics["num-clients"], metrics["num-failures"]) == (3, 1)
        models.append(result.arrays["0"].numpy())
    np.testing.assert_allclose(*models)


def test_a_step_that_is_not_finite_leaves_the_model_and_the_round_has_failed():
    huge = np.float32(3e38)
    client = ClientApp()

    @client.train()
    def train(message, context):
        arrays = ArrayRecord([np.full(3, -huge if context.node_id % 2 else huge)])
        metrics = MetricRecord({"num-examples": 1.0})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    strategy = FedExP(fraction_evaluate=0.0, epsilon=0.0)
    result = strategy.start(SerialGrid(client, 4), ArrayRecord([START]), num_rounds=1)
    for array in result.arrays.values():
        assert np.isfinite(array.numpy()).all()


def test_rates_that_are_not_finite_do_not_count():
    metrics = [{"num-examples": 1, "learning-rate": x} for x in (0.1, 0.3, float("nan"), -1.0)]
    assert cohort_rates(metrics, "num-examples") == pytest.approx((0.2, 0.1))
