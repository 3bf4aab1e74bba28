"""Strategies with Flower's names: its arguments, order, defaults and attributes, in both APIs."""

import inspect

import numpy as np
import pytest
from flwr.app import ArrayRecord
from flwr.common import ndarrays_to_parameters
from flwr.server import strategy as older
from flwr.serverapp import strategy as newer
from test_legacy import fitted
from test_presets import FLOATS, drawn, grid_of, run

from fedexp import strategies
from fedexp.app import strategy_of
from fedexp.config import Config
from fedexp.records import from_record
from fedexp.strategies import STRATEGIES, FedAdam, FedAvg, FedAvgM, FedExP, FedProx, legacy

NAMES = ["FedAvg", "FedAvgM", "FedAdagrad", "FedAdam", "FedYogi", "FedProx"]
names = pytest.mark.parametrize("name", NAMES)
FIRST = ndarrays_to_parameters(list(FLOATS.values()))
ADAPTIVE = pytest.mark.parametrize("name", ["FedAdagrad", "FedAdam", "FedYogi"])


def parameters(cls):
    return {
        k: p.default
        for k, p in inspect.signature(cls.__init__).parameters.items()
        if k != "self" and p.kind is not p.VAR_KEYWORD and p.kind is not p.VAR_POSITIONAL
    }


@names
def test_an_argument_has_flowers_default(name):
    theirs = parameters(getattr(newer, name))
    strategy = getattr(strategies, name)()
    flowers = getattr(newer, name)()
    assert theirs.keys() <= vars(flowers).keys()
    for key in theirs:
        assert getattr(strategy, key) == getattr(flowers, key), key


@names
def test_an_argument_has_flowers_default_in_the_older_api_too(name):
    required = {"initial_parameters": FIRST} | ({"proximal_mu": 0.2} if name == "FedProx" else {})
    flowers = getattr(older, name)(**required)
    strategy = getattr(legacy, name)(**required)
    for key in parameters(getattr(older, name)):
        assert getattr(strategy, key) == getattr(flowers, key), key


@names
def test_every_argument_of_flowers_is_taken_and_read_back(name):
    def other(value):
        return 0.5 if isinstance(value, float) else value

    values = {k: other(v) for k, v in parameters(getattr(newer, name)).items()}
    strategy = getattr(strategies, name)(**values)
    for key, value in values.items():
        if value is not None:
            assert getattr(strategy, key) == value, key


def test_arguments_by_position_are_flowers():
    first = (1.0, 0.0, 2, 0, 2, "n", "arrays", "config", None, None)
    momentum = FedAvgM(*first, 0.5, 0.9)
    assert (momentum.server_learning_rate, momentum.server_momentum) == (0.5, 0.9)
    assert momentum.weighted_by_key == "n"
    assert FedAvgM(*first, 0.5).server_momentum == 0.0
    assert FedProx(*first, 0.3).proximal_mu == 0.3
    with pytest.raises(TypeError, match="positional arguments"):
        FedProx(*first, 0.3, 0.4)


@names
def test_the_attributes_of_flowers_strategy_are_there(name):
    flowers, ours = getattr(newer, name)(), getattr(strategies, name)()
    assert [key for key in vars(flowers) if not hasattr(ours, key)] == []
    required = {"initial_parameters": FIRST} | ({"proximal_mu": 0.2} if name == "FedProx" else {})
    flowers, ours = getattr(older, name)(**required), getattr(legacy, name)(**required)
    assert [key for key in vars(flowers) if not hasattr(ours, key)] == []


def same(mine, theirs):
    assert type(mine) is type(theirs)
    if isinstance(mine, ArrayRecord):
        mine, theirs = from_record(mine), from_record(theirs)
    pairs = zip(mine.values(), theirs.values(), strict=True) if isinstance(mine, dict) else None
    for x, y in pairs or zip(mine, theirs, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-12)


@ADAPTIVE
def test_the_moments_are_flowers(name):
    ours = getattr(strategies, name)(fraction_evaluate=0.0, flower_compatible=True)
    theirs = getattr(newer, name)(fraction_evaluate=0.0)
    assert (ours.m_t, ours.v_t, ours.current_arrays) == (None, None, None)
    for strategy in ours, theirs:
        run(strategy, grid_of(drawn), 3, FLOATS)
    same(ours.m_t, theirs.m_t)
    same(ours.v_t, theirs.v_t)
    with pytest.raises(AttributeError, match="Set state"):
        ours.m_t = {}


@ADAPTIVE
def test_the_moments_are_flowers_in_the_older_api(name):
    made = []

    def kept(cls):
        return lambda **kwargs: made.append(cls(**kwargs)) or made[-1]

    for module in legacy, older:
        fitted(kept(getattr(module, name)), 3)
    ours, theirs = made
    same(ours.m_t, theirs.m_t)
    same(ours.v_t, theirs.v_t)
    same(ours.current_weights, theirs.current_weights)


def test_the_momentum_and_the_current_model_are_flowers():
    options = {"server_momentum": 0.9, "fraction_evaluate": 0.0}
    ours, theirs = FedAvgM(**options), newer.FedAvgM(**options)
    assert ours.current_arrays is ours.momentum_vector is None
    for strategy in ours, theirs:
        run(strategy, grid_of(drawn), 3, FLOATS)
    same(ours.momentum_vector, theirs.momentum_vector)
    same(ours.current_arrays, theirs.current_arrays)
    assert ours.server_opt is theirs.server_opt is True
    assert FedAvgM().server_opt is False


def halving(cls, **changes):
    """A strategy whose attributes change in round 3, as apps do that schedule them."""

    class Halving(cls):
        def configure_train(self, server_round, arrays, config, grid):
            if server_round == 3:
                for key, value in changes.items():
                    setattr(self, key, value)
            return super().configure_train(server_round, arrays, config, grid)

    return Halving


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("FedAdagrad", {"eta": 0.05, "tau": 0.1}),
        ("FedAdam", {"eta": 0.05, "beta_1": 0.5, "beta_2": 0.9}),
        ("FedYogi", {"eta": 0.5}),
        ("FedAvgM", {"server_learning_rate": 0.5, "server_momentum": 0.7}),
    ],
)
def test_an_attribute_that_is_set_holds_from_the_next_step_on(name, changes):
    compatible = {} if name == "FedAvgM" else {"flower_compatible": True}
    start = {"server_momentum": 0.9} if name == "FedAvgM" else {}
    options = {"fraction_evaluate": 0.0} | start
    ours = halving(getattr(strategies, name), **changes)(**options, **compatible)
    theirs = halving(getattr(newer, name), **changes)(**options)
    same(*(dict(from_record(run(s, grid_of(drawn), 5, FLOATS).arrays)) for s in (ours, theirs)))


def test_a_rule_inside_limits_is_found_and_changed():
    strategy = FedAdam(relaxation=0.5, max_step_size=1.0)
    strategy.eta = 0.25
    assert strategy.eta == 0.25
    assert strategy.optimizer.step_size.step_size.factor == 0.5
    assert strategy.optimizer.step_size.max_step_size == 1.0
    with pytest.raises(ValueError, match="must be > 0"):
        strategy.eta = -1.0
    older_one = legacy.FedAdam(initial_parameters=FIRST)
    older_one.tau = 0.5
    assert older_one.tau == older_one.strategy.tau == 0.5


def test_a_proximal_weight_that_is_set_reaches_the_clients():
    seen = []

    def client(message, context):
        seen.append(message.content["config"]["proximal-mu"])
        return drawn(message, context)

    strategy = halving(FedProx, proximal_mu=0.7)(proximal_mu=0.2, fraction_evaluate=0.0)
    run(strategy, grid_of(client, 2), 3, FLOATS)
    assert seen == [0.2, 0.2, 0.2, 0.2, 0.7, 0.7]


def test_a_proximal_strategy_without_a_proximal_term_says_so(logged):
    FedProx()
    assert any("FedProx(proximal_mu=0.0) is FedAvg" in line for line in logged)


@pytest.mark.parametrize(("key", "value"), [("fedavgm", 0.9), ("fedprox", 0.1)])
def test_on_the_command_line_a_method_is_what_its_name_says(key, value):
    strategy = strategy_of(Config(strategy=key), key, 4)
    ((argument, given),) = STRATEGIES[key].options.items()
    assert getattr(strategy, argument) == given == value


def test_flowers_own_attributes_are_on_the_classes_only_where_flower_has_them():
    assert not hasattr(FedExP(), "eta")
    assert FedAvg(server_learning_rate=0.5).server_learning_rate == 0.5
