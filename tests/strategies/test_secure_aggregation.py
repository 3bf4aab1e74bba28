"""Flower's own SecAgg+ on our grid: it shows the strategy the clients' mean and no more."""

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import LegacyContext, ServerConfig
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow

from fedexp.simulation import SerialGrid
from fedexp.strategies import STRATEGIES, FixedClip, legacy
from fedexp.strategies.privacy import is_one_for_all

FIRST = [np.zeros(4), np.full(1, 0.5)]  # Flower unmasks no scalar
NUM_CLIENTS, NUM_ROUNDS = 4, 2
SEEN = {  # what looks at the norms of single updates
    *("fedexp", "fedexpm", "nesterovexp", "fedproxexp", "fedexprox", "fedbb"),
    "fedanderson",
}
TWINS = {name.lower(): name for name in vars(legacy) if name.lower() in STRATEGIES}


class Client(NumPyClient):
    """Goes half the way to a point of its own."""

    def __init__(self, p):
        self.p = p

    def fit(self, parameters, config):
        target = 4 * np.eye(4)[self.p], np.full(1, -1.0)
        new = [(x + y) / 2 for x, y in zip(parameters, target, strict=True)]
        return new, 1 + self.p, {}


def model_of(strategy, fit_workflow=None):
    app = ClientApp(
        client_fn=lambda context: Client(int(context.node_config["partition-id"])).to_client(),
        mods=[secaggplus_mod] if fit_workflow else [],
    )
    strategy.initial_parameters = ndarrays_to_parameters(FIRST)
    context = LegacyContext(
        Context(1, 1, {}, RecordDict(), {}),
        config=ServerConfig(num_rounds=NUM_ROUNDS),
        strategy=strategy,
    )
    seen = []
    strategy.evaluate_fn = lambda server_round, arrays, config: seen.append(arrays)
    DefaultWorkflow(fit_workflow=fit_workflow)(SerialGrid(app, NUM_CLIENTS), context)
    return seen[-1]


def secure():
    return SecAggPlusWorkflow(num_shares=3, reconstruction_threshold=2, max_weight=8)


SETTINGS = {"fraction_evaluate": 0.0, "min_fit_clients": 4, "min_available_clients": 4}


@pytest.mark.parametrize("key", sorted(TWINS.keys() - SEEN))
def test_a_step_along_the_mean_is_taken(key):
    make = getattr(legacy, TWINS[key])
    secret, plain = model_of(make(**SETTINGS), secure()), model_of(make(**SETTINGS))
    for x, y in zip(secret, plain, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4)  # SecAgg+ rounds to 2**-22 of 16


@pytest.mark.parametrize("key", sorted(SEEN))
def test_a_step_that_needs_single_updates_is_refused_with_what_to_do(key):
    rule = "every result is the clients' mean, and .* its step size, needs the single updates"
    remedy = rf"legacy.{TWINS[key]}\(secure=True\) and its mod for clients, or legacy.FedAvg"
    message = rf"legacy.{TWINS[key]}: under secure aggregation {rule}. Use {remedy}"
    with pytest.raises(ValueError, match=message):
        model_of(getattr(legacy, TWINS[key])(**SETTINGS), secure())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"weighted": False}, "weighted=False"),
        ({"clip": FixedClip(1.0)}, r"FixedClip\(max_norm=1.0\)"),
        ({"drop_beyond": 3.0}, r"DropBeyond\(multiple=3.0\)"),
    ],
)
def test_settings_that_look_at_single_updates_are_refused(options, named):
    with pytest.raises(ValueError, match=f"the clients' mean, and {named} needs the single"):
        model_of(legacy.FedAvg(**SETTINGS, **options), secure())


def test_a_constant_step_and_a_cap_of_a_mean_are_no_reason():
    fast = legacy.FedAvg(server_learning_rate=1.5, max_step_size=2.0, **SETTINGS)
    plain = legacy.FedAvg(server_learning_rate=1.5, **SETTINGS)
    for x, y in zip(model_of(fast, secure()), model_of(plain), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4)


def test_equal_results_of_two_clients_are_two_results():
    one, other = (ndarrays_to_parameters([np.ones(2)]) for _ in range(2))
    assert parameters_to_ndarrays(one)[0].tolist() == parameters_to_ndarrays(other)[0].tolist()
    assert not is_one_for_all([one, other])
    assert is_one_for_all([one, one])
    assert not is_one_for_all([one])
    assert not is_one_for_all([])
