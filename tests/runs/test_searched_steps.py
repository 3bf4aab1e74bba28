"""The server's step by line search in a run: on rows that no client gets, not on the test set."""

import numpy as np
import pytest

import fedexp
from fedexp import factories
from fedexp.checks import check_read
from fedexp.clients import Examples, default_loss, evaluate, load_arrays
from fedexp.config import Config
from fedexp.datasets import load
from fedexp.runs.run import Run
from fedexp.strategies import Capped, Extrapolation, Identity, LineSearch, ServerOptimizer

SEARCH = {"server_step_size": "line-search", "num_clients": 8, "fraction_train": 0.5}
CONFIG = Config(strategy="fedavg", **SEARCH)


def rows_of(x):
    return {row.tobytes() for row in x.reshape(len(x), -1).numpy()}


def test_the_server_keeps_a_tenth_of_each_class_and_clients_get_the_rest():
    whole, left = load("digits"), factories.loaded(CONFIG)
    kept = factories.validation_of(CONFIG)
    x, y = (part[kept.rows] for part in (kept.inputs, kept.targets))
    counts = np.bincount(whole.train[1].numpy())
    np.testing.assert_array_equal(np.bincount(y.numpy()), np.floor(counts / 10))
    assert len(left.train[0]) + len(x) == len(whole.train[0])
    assert rows_of(x) | rows_of(left.train[0]) == rows_of(whole.train[0])
    dealt = np.concatenate([*factories.partition_of(CONFIG)])
    assert sorted(dealt) == list(range(len(left.train[0])))
    assert factories.loaded(Config(strategy="fedavg")) is whole
    np.testing.assert_array_equal(left.test[0], whole.test[0])


def test_no_natural_client_is_left_without_rows():
    config = Config(dataset="synthetic-regression", model="linear", **SEARCH)
    whole, left = load("synthetic-regression"), factories.loaded(config)
    np.testing.assert_array_equal(np.bincount(whole.keys), 30)
    np.testing.assert_array_equal(np.bincount(left.keys), 27)


def test_a_run_takes_the_best_of_the_candidates_in_every_round():
    run = Run(CONFIG, "fedavg", 8)
    search = run.strategy.optimizer.step_size
    assert isinstance(search, LineSearch)
    module, x = factories.model_of(CONFIG), factories.validation_of(CONFIG)
    arrays = {name: value.numpy() for name, value in run.arrays.items()}
    load_arrays(module, arrays)
    assert search.evaluate(arrays) == pytest.approx(evaluate(module, x, default_loss)["loss"])
    test = evaluate(module, Examples(*load("digits").test), default_loss)["loss"]
    assert search.evaluate(arrays) != test
    done = fedexp.simulate(strategy="fedavg", rounds=3, local_steps=5, **SEARCH)
    assert {row["server-step-size"] for row in done.metrics} <= set(search.candidates)


def test_limits_stay_and_a_rule_that_chooses_its_own_step_keeps_it():
    capped = Run(CONFIG.model_copy(update={"max_step_size": 2.0}), "fedavg", 8).strategy
    assert isinstance(capped.optimizer.step_size, Capped)
    robust = Run(CONFIG.model_copy(update={"robust": True}), "fedavg", 8).strategy
    assert robust.optimizer.step_size.max_step_size == robust.bounds.step
    both = Run(CONFIG, "fedavg(relaxation=0.5, max-step-size=2)", 8).strategy.optimizer.step_size
    assert (both.max_step_size, both.step_size.factor) == (2, 0.5)
    assert isinstance(both.step_size.step_size, LineSearch)
    own = Run(CONFIG, "fedexp", 8).strategy.optimizer
    assert own == ServerOptimizer(Identity(), Extrapolation())


@pytest.mark.parametrize(
    ("key", "given", "said"),
    [
        ("fedschedulefree", {}, "Use Constant, not LineSearch"),
        ("flwr.serverapp.strategy:FedAvgM", {}, "FedAvgM takes its own"),
        ("fedavg", {"privacy": "central(noise-multiplier=1, clip=1)"}, "privacy is to hide"),
        ("fedavg+dp-sgd", {}, "privacy is to hide"),
        ("fedavg", {"private_layers": "3.*"}, "Leave private-layers out"),
        ("fedavg", {"server_learning_rate": 2.0}, "fedavg has a fixed step, too"),
        ("fedavgm(server-learning-rate=2)", {}, "has a fixed step, too"),
        ("fedadam(eta=0.1)", {}, "has a fixed step, too"),
    ],
)
def test_what_cannot_search_is_refused_in_one_line(key, given, said):
    with pytest.raises(ValueError, match=said) as caught:
        Run(Config(strategy=key, **SEARCH, **given), key, 8)
    assert "\n" not in str(caught.value)


def test_data_of_ones_own_and_a_setting_in_vain_are_refused():
    with pytest.raises(ValueError, match="Give a strategy with a LineSearch of your own"):
        fedexp.simulate(strategy="fedavg", data=load("digits"), rounds=1, **SEARCH)
    with pytest.raises(ValueError, match="no chosen strategy reads server-step-size"):
        check_read(Config(strategy="fedexp", **SEARCH))
