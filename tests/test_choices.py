"""Strategies as text, with settings and local optimizers, and rules of one's own."""

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg

from fedexp.choices import Choice, strategy_keys
from fedexp.config import Config
from fedexp.strategies import STRATEGIES, FedExP, FedOpt, ServerOptimizer
from fedexp.strategies.directions import Adam, Identity, Momentum
from fedexp.strategies.step_sizes import Capped, Constant
from fedexp.strategy_factory import prepared, strategy_of
from fedexp.strategy_settings import arguments_of


def made(text, **fields):
    (key,) = strategy_keys(config := Config(strategy=text, **fields))
    return strategy_of(config, key, 4)


class Half:
    """A step size of one's own."""

    def __init__(self, value=0.5):
        self.value = value

    def __call__(self, stats, direction, state):
        return self.value, state


def backwards(gradient, state):
    """A direction of one's own."""
    return {name: -x for name, x in gradient.items()}, state


class Mine(FedExP):
    """A strategy of one's own."""

    def __init__(self, *args, patience=3, **kwargs):
        super().__init__(*args, **kwargs)
        self.patience = patience


def test_entries_are_cut_at_commas_outside_brackets_and_written_one_way():
    config = Config(
        strategy=" fedavg,fedadam( tau = 1e-3,eta=.03 ) , fedexp+sgd( weight-decay=0.1)"
    )
    assert strategy_keys(config) == [
        "fedavg",
        "fedadam(tau=0.001, eta=0.03)",
        "fedexp+sgd(weight-decay=0.1)",
    ]
    everyone = Config(strategy="all", fraction_train=1.0)
    assert strategy_keys(everyone) == list(STRATEGIES)
    sampled = [key for key, row in STRATEGIES.items() if not row.all_clients]
    assert strategy_keys(Config(strategy="all", fraction_train=0.2)) == sampled


@pytest.mark.parametrize(
    ("text", "fields", "said"),
    [
        ("feddyn+polyak", {}, "polyak needs the gradient of its loss"),
        ("fedprox+polyak", {}, "polyak needs the gradient of its loss"),
        ("feddyn+dp-sgd", {}, "proximal-mu=0.1"),
        ("feddyn+learned-step", {}, "one learning rate at all clients"),
        ("fedavg(private-layers=3.*)+dp-sgd", {}, "private layers do not go with dp-sgd"),
        ("fedavg+private-line-search", {"private_layers": "3.*"}, "private layers do not go"),
        ("fedschedulefree(eta=3)", {}, "Did you mean 'server-learning-rate'"),
    ],
)
def test_what_would_fail_in_every_round_is_refused_before_the_first(text, fields, said):
    with pytest.raises(ValueError, match=said) as caught:
        made(text, **fields)
    assert "\n" not in str(caught.value)


def test_a_setting_in_brackets_goes_before_the_flag_and_the_flag_before_the_default():
    assert made("fedadam").optimizer == ServerOptimizer(Adam(), Constant(0.1))
    assert made("fedadam", server_learning_rate=0.2).eta == 0.2
    strategy = made("fedadam(eta=0.03, tau=0.5, beta-1=0.8)", server_learning_rate=0.2)
    assert strategy.optimizer == ServerOptimizer(Adam(beta_1=0.8, tau=0.5), Constant(0.03))


def test_a_setting_may_have_the_name_of_its_flag():
    assert made("fedadam(server-learning-rate=0.03)").eta == 0.03


def test_arguments_of_flowers_fedavg_and_of_ours_are_settings_too():
    strategy = made("fedexp(fraction-train=0.7, max-step-size=2, clip=3, robust=false)")
    assert strategy.fraction_train == 0.7
    assert isinstance(strategy.optimizer.step_size, Capped)
    assert strategy.clip.bound({}) == 3


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_argument_of_every_strategy_is_reachable(name):
    given = {"clip", "optimizer", "client_config", "trainable", "control_variates"}
    numbers = {
        argument: default
        for argument, default in arguments_of(STRATEGIES[name].strategy).items()
        if isinstance(default, int | float) and argument not in given
    }
    for argument, default in numbers.items():
        value = default if isinstance(default, bool) or default == 0 else default * 0.5
        value = 4 if argument.startswith("min_") else value
        value = 1 if argument == "min_replies" else value  # one of the four clients is asked
        value = 3 if argument == "window" else value
        if name == "nesterovexp" and argument == "max_step_size":
            continue
        made(f"{name}({argument.replace('_', '-')}={value})")


def test_all_settings_of_a_rule_arrive():
    strategy = made("fedavgm(server-momentum=0.7, nesterov=true, server-learning-rate=0.5)")
    assert strategy.optimizer == ServerOptimizer(Momentum(0.7, nesterov=True), Constant(0.5))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fedxp", r"unknown 'fedxp'. Did you mean 'fedexp'\?"),
        ("FedExP", r"unknown 'FedExP'. Did you mean 'fedexp'\?"),
        ("all, fedexp", "all stands for every strategy. Leave the rest out"),
        ("fedadam(etta=0.1)", r"has no 'etta'. Did you mean 'eta'\?"),
        ("fedadam(eta=fast)", "eta='fast' must be a number"),
        ("fedadam(eta=true)", "eta=True must be a number"),
        ("fedavgm(nesterov=1)", "nesterov=1 must be true or false"),
        ("fedadam(eta=-1)", "must be > 0"),
        ("fedadam(eta=0.1", "a bracket is missing"),
        ("fedexp+sgd+adam", "names two local optimizers"),
        ("fedexp+", "names no local optimizer"),
        ("fedexp, fedexp", "names one twice"),
        ("fedadam(eta=0.1),fedadam(eta=1e-1)", "names one twice"),
        (" , ", "names none"),
        ("nowhere:Rule", "No module named 'nowhere'"),
        ("math:nothing", "no attribute 'nothing'"),
        ("math:pi", "must be a Flower strategy"),
        (f"{__name__}:Mine(patiense=1)", "Did you mean 'patience'"),
        (f"{__name__}:Half(valu=1)", "unexpected keyword argument 'valu'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_a_remedy(text, words):
    with pytest.raises(ValueError, match=words) as caught:
        made(text)
    assert "\n" not in str(caught.value)


def test_a_class_of_ones_own_is_a_strategy_with_its_settings():
    strategy = made(f"{__name__}:Mine(patience=5, epsilon=0.2)", fraction_train=0.7)
    assert isinstance(strategy, Mine)
    assert (strategy.patience, strategy.fraction_train) == (5, 0.7)
    assert strategy.optimizer.step_size.epsilon == 0.2


def test_a_step_size_or_a_direction_of_ones_own_becomes_a_strategy():
    strategy = made(f"{__name__}:Half(value=0.25)", fraction_train=0.5)
    assert isinstance(strategy, FedOpt)
    assert strategy.fraction_train == 0.5
    assert strategy.optimizer.step_size({}, {}, {}) == (0.25, {})
    assert strategy.optimizer.direction == Identity()
    direction = made(f"{__name__}:backwards").optimizer.direction
    assert direction({"w": np.ones(1)}, {})[0]["w"] == -1


def test_a_strategy_of_flowers_own_is_taken_as_it_is():
    strategy = made("flwr.serverapp.strategy:FedAvgM(server-momentum=0.5)", fraction_train=0.3)
    assert type(strategy).__module__.startswith("flwr.")
    assert (strategy.fraction_train, strategy.server_momentum) == (0.3, 0.5)


def test_an_object_is_copied_and_its_seed_is_the_runs_where_it_has_none():
    config, given = Config(seed=7), FedExP(fraction_train=0.5, seed=3)
    ours = prepared(FedExP(), config, "fedavg", 4)
    assert ours.seed == 7
    kept = prepared(given, config, "fedavg", 4)
    assert kept is not given
    assert kept.seed == 3
    assert kept.fraction_train == 0.5


def test_a_strategy_that_would_wait_for_ever_is_refused():
    with pytest.raises(ValueError, match=r"it would wait for ever\. Use min_available_nodes=1"):
        prepared(FlowerFedAvg(), Config(), "fedavg", 1)


def test_the_local_optimizer_is_told_from_the_strategy():
    assert Choice.of("fedexp+hypersgd") == Choice(Choice.of("fedexp").strategy, "hypersgd")
    assert str(Choice.of("fedexp( epsilon=1e-2 ) + sgd")) == "fedexp(epsilon=0.01)+sgd"


@pytest.mark.parametrize("name", ["fedbb", "fedanderson"])
def test_a_rule_for_all_clients_is_refused_where_clients_come_and_go(name):
    profiles = {"fraction_train": 1.0, "client_profiles": "availability=random(0.8)"}
    config = Config(strategy=name, **profiles)
    with pytest.raises(ValueError, match="with availability some are away"):
        strategy_of(config, name, 5)
    with pytest.raises(ValueError, match="with availability some are away"):
        prepared(STRATEGIES[name].strategy(), config, name, 5)
    forced = f"{name}(sampled=true)"
    assert strategy_of(Config(strategy=forced, **profiles), forced, 5)
