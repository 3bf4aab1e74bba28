"""Six more rules: four against slow references; their published tables are those of the runs."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from builders import content, grid_of, partition

from experiments.server_step_tables import TUNING, read, reported
from experiments.untried_rules import ALL, PLACES, SEEDS, chosen, document, missing
from experiments.untried_steps import RESULT
from experiments.which_step import AVERAGE
from fedexp.records import from_record, to_record
from fedexp.rounds import rounds
from fedexp.strategies import FedExP, NesterovExP, PolynomialAverage

ROOT = Path(__file__).parents[2]
ROWS = read(ROOT / "docs" / "untried-rules.jsonl")
WEIGHTS = (1, 2, 5)
MODEL = {
    "0.weight": np.array([[3.0, -1.0], [0.5, 2.0]]),
    "0.bias": np.array([1.0, -4.0]),
    "1.weight": np.array([2.0, 1.0, -2.0]),
}


def update(client, name, w):
    """``Δᵢ``: the clients agree in one array, differ in another, and cancel in the bias."""
    if name == "0.bias":
        return (client - 1.3) * np.ones_like(w) + 0.1 * w
    own = np.arange(w.size).reshape(w.shape) == client
    return 0.3 * w if name == "0.weight" else 0.8 * own * (w - client)


def run(strategy, num_rounds=5, model=MODEL):
    """The models of all rounds, and what the strategy remembers after each."""

    def train(message, context):
        w, i = from_record(message.content["arrays"]), partition(context)
        after = {name: x - update(i, name, x) for name, x in w.items()}
        return content(after, num_examples=WEIGHTS[i])

    models, states = [model], [{}]
    for round_ in rounds(strategy, grid_of(3, train), to_record(model), num_rounds=num_rounds):
        models.append(from_record(round_.arrays))
        states.append(strategy.state)
    return models, states


def strategy_of(name):
    return ALL[name].strategy(**ALL[name].settings, min_available_nodes=3, seed=0)


def sums(w, names):
    """``Σ pᵢ‖Δᵢ‖²/Σ pᵢ`` and ``‖Δ̄‖²`` over some arrays."""
    updates = [np.concatenate([update(i, k, w[k]).ravel() for k in names]) for i in range(3)]
    mean = np.average(updates, axis=0, weights=WEIGHTS)
    return np.average([u @ u for u in updates], weights=WEIGHTS), mean @ mean


def steps(models, names):
    """The running ratio of each round, by its formula: a sum over all earlier rounds."""
    now, etas = np.array([sums(w, names) for w in models]), []
    for t in range(len(now)):
        weights = np.array([0.5**t, *(0.5 * 0.5 ** (t - s) for s in range(1, t + 1))])
        n, q = weights @ now[: t + 1]
        etas.append(max(1.0, n / (2 * q)))
    return etas


def mean_update(w, name):
    return np.average([update(i, name, w[name]) for i in range(3)], axis=0, weights=WEIGHTS)


LAYERS = [["0.weight", "0.bias"], ["1.weight"]]


@pytest.mark.parametrize(
    ("name", "momentum", "factor"),
    [("FedExP per layer", 0.0, 1.0), ("NesterovExP per layer", 0.9, 0.5)],
)
def test_every_layer_has_the_step_of_its_own_running_ratio(name, momentum, factor):
    models, _ = run(strategy_of(name))
    different = set()
    for names in LAYERS:
        etas = steps(models[:-1], names)
        different |= {round(eta, 6) for eta in etas}
        for k in names:
            m = 0.0
            for eta, (w, after) in zip(etas, pairwise(models), strict=True):
                m = mean_update(w, k) + momentum * m
                expected = w[k] - factor * eta * (mean_update(w, k) + momentum * m)
                np.testing.assert_allclose(after[k], expected, rtol=1e-10)
    assert len(different) > 3  # not all at the lower bound


@pytest.mark.parametrize(
    ("name", "known"),
    [("FedExP per layer", FedExP(smoothing=0.5)), ("NesterovExP per layer", NesterovExP())],
)
def test_with_one_layer_it_is_the_rule_of_the_library(name, known):
    model = {name: x for name, x in MODEL.items() if name.startswith("0")}
    known.min_available_nodes, known.seed = 3, 0
    ours, theirs = (run(strategy, model=model)[0][-1] for strategy in (strategy_of(name), known))
    for k in model:
        np.testing.assert_allclose(ours[k], theirs[k], rtol=1e-10)


@pytest.mark.parametrize(("letter", "power"), [("η²/Σ η²", 2), ("1/t", 0)])
def test_schedule_free_descent_returns_the_weighted_mean_of_the_plain_iterates(letter, power):
    models, states = run(strategy_of(f"schedule-free, c = {letter}"))
    etas = steps(models[:-1], list(MODEL))
    assert len(set(etas)) > 2
    for k in MODEL:
        zs = MODEL[k] - np.cumsum(
            [eta * mean_update(y, k) for eta, y in zip(etas, models, strict=False)], axis=0
        )
        for t in range(1, len(models)):
            x = np.average(zs[:t], axis=0, weights=np.array(etas[:t]) ** power)
            np.testing.assert_allclose(states[t][RESULT][k], x, rtol=1e-10)
            np.testing.assert_allclose(models[t][k], 0.9 * x + 0.1 * zs[t - 1], rtol=1e-10)


def test_with_equal_weights_the_result_is_the_average_that_goes_with_schedule_free_descent():
    models, states = run(strategy_of("schedule-free, c = 1/t"))
    average, memory = PolynomialAverage(9.0), {}
    for model in models[1:]:
        memory = average.update(memory, model)
    for k, x in average.mean(memory, frozenset(MODEL)).items():
        np.testing.assert_allclose(states[-1][RESULT][k], x, rtol=1e-8)


def test_the_document_has_the_tables_of_the_runs():
    assert document(ROWS) in (ROOT / "docs" / "untried-rules.md").read_text(encoding="utf-8")


def test_every_method_was_tuned_on_the_same_rates_and_reported_with_the_same_seeds():
    for name, place in PLACES.items():
        assert not [run for seed in (*TUNING, *SEEDS) for run in missing(name, seed, ROWS)]
        mine = [row for row in ROWS if row["federation"] == name]
        assert len(mine) == len(place.methods) * (len(place.rates) * len(TUNING) + len(SEEDS))
        for method in place.methods:
            assert {row["seed"] for row in chosen(mine, method)} == set(SEEDS)
            assert len({row["rate"] for row in reported(mine, method)}) == 1


def test_the_methods_of_the_study_have_the_runs_of_the_study():
    study = {key(row): row["accuracy"][AVERAGE] for row in read(ROOT / "docs/server-steps.jsonl")}
    both = [row for row in ROWS if key(row) in study]
    assert len(both) > 100
    assert all(row["accuracy"][AVERAGE] == study[key(row)] for row in both)


def key(row):
    return row["federation"], row["method"], row["rate"], row["seed"]
