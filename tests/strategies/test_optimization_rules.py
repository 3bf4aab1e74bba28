"""Steps from optimization at large, against closed forms and slow loops from the formulae."""

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedexp.config import Config
from fedexp.runs.run import Run
from fedexp.simulation import SerialGrid
from fedexp.stats import PseudoGradientStats, total
from fedexp.strategies import (
    Adam,
    BarzilaiBorwein,
    Capped,
    DistanceOverGradients,
    DistanceOverWeightedGradients,
    FedBB,
    FedDoG,
    Momentum,
    PolynomialAverage,
    ServerOptimizer,
)

NAMES = frozenset({"w"})
rng = np.random.default_rng(0)
MATRICES = [a @ a.T / 4 for a in rng.normal(size=(3, 4, 4))]
WEIGHTS = [1.0, 2.0, 3.0]
FIRST = rng.normal(size=4)


def stats_at(w):
    """Of three clients whose updates are linear, ``Δᵢ = Aᵢ w / 10``."""
    return total(
        PseudoGradientStats.of({"w": w}, {"w": w - a @ w / 10}, weight=p, trainable=NAMES)
        for a, p in zip(MATRICES, WEIGHTS, strict=True)
    )


def stepped(optimizer, num_rounds, w=FIRST):
    """The iterates after each round, and the steps."""
    state, iterates, etas = {}, [], []
    for _ in range(num_rounds):
        new, state, eta = optimizer.step({"w": w}, stats_at(w), state)
        w = new["w"]
        iterates.append(w)
        etas.append(eta)
    return np.array(iterates), np.array(etas)


def mean_update(w):
    return np.average([a @ w / 10 for a in MATRICES], axis=0, weights=WEIGHTS)


def fedexp_step(w):
    squares = np.average([np.sum((a @ w / 10) ** 2) for a in MATRICES], weights=WEIGHTS)
    return max(1.0, squares / 2 / np.sum(mean_update(w) ** 2))


def by_barzilai_borwein(num_rounds, cap=np.inf):
    w, old, iterates = FIRST, None, []
    for _ in range(num_rounds):
        eta = fedexp_step(w)
        if old is not None:
            s, y = w - old, mean_update(w) - mean_update(old)
            eta = s @ y / (y @ y) if s @ y > 0 else eta
        old, w = w, w - min(eta, cap) * mean_update(w)
        iterates.append(w)
    return np.array(iterates)


@pytest.mark.parametrize("cap", [np.inf, 3.0])
def test_barzilai_borwein_is_that_of_its_formula_also_where_its_step_is_capped(cap):
    got, _ = stepped(ServerOptimizer(step_size=Capped(BarzilaiBorwein(), cap)), 8)
    np.testing.assert_allclose(got, by_barzilai_borwein(8, cap), rtol=1e-9)


def test_barzilai_borwein_solves_a_linear_update_of_one_dimension_in_its_second_step():
    rule, w, state = ServerOptimizer(step_size=BarzilaiBorwein()), {"w": np.array([3.0])}, {}
    for _ in range(2):
        end = {"w": w["w"] - (w["w"] - 1) / 3}  # Δ = (w - 1)/3
        stats = PseudoGradientStats.of(w, end, weight=1.0, trainable=NAMES)
        w, state, _ = rule.step(w, stats, state)
    assert w["w"] == pytest.approx(1.0)


def test_where_the_curvature_is_negative_the_step_is_fedexps():
    rule = ServerOptimizer(step_size=BarzilaiBorwein())
    w, state = {"w": np.array([1.0])}, {}
    for _ in range(2):
        end = {"w": w["w"] - 1 / w["w"]}  # Δ = 1/w falls as w grows
        stats = PseudoGradientStats.of({"w": w["w"]}, end, weight=1.0, trainable=NAMES)
        w, state, eta = rule.step({"w": np.array([1.0])} if not state else w, stats, state)
        w = {"w": np.array([2.0])}
    assert eta == 1.0


@pytest.mark.parametrize(
    ("rule", "weighted"),
    [(DistanceOverGradients(1e-3), False), (DistanceOverWeightedGradients(1e-3), True)],
)
def test_dog_and_dowg_are_those_of_their_formulae(rule, weighted):
    w, path, updates, expected = FIRST, [], [], []
    for _ in range(12):
        path.append(w)
        updates.append(mean_update(w))
        first = 1e-3 * (1 + np.linalg.norm(FIRST))
        r = np.maximum.accumulate([max(first, np.linalg.norm(x - FIRST)) for x in path])
        scales = r if weighted else np.ones_like(r)
        length = np.sqrt(np.sum(scales**2 * np.sum(np.square(updates), axis=1)))
        w = w - r[-1] * scales[-1] / length * updates[-1]
        expected.append(w)
    np.testing.assert_allclose(stepped(ServerOptimizer(step_size=rule), 12)[0], expected)


def test_a_polynomial_average_weighs_late_iterates_by_binomials():
    """With γ = 2 the weight of ``w_t`` is ``(t + 1) t`` over their sum, by induction."""
    average, memory, iterates = PolynomialAverage(2.0), {}, rng.normal(size=7)
    for w in iterates:
        memory = average.update(memory, {"w": np.array([w])})
    weights = [(t + 1) * t for t in range(1, 8)]
    got = average.mean(memory, NAMES)["w"]
    assert got == pytest.approx(np.average(iterates, weights=weights))


@pytest.mark.parametrize("radius", [0.0, -1.0, float("nan")])
def test_a_radius_is_positive_and_a_decay_is_not_negative(radius):
    with pytest.raises(ValueError, match="must be > 0"):
        FedDoG(radius=radius)
    with pytest.raises(ValueError, match="must be >= 0"):
        PolynomialAverage(-1.0)


@pytest.mark.parametrize(
    "step_size", [BarzilaiBorwein(), DistanceOverGradients(), Capped(BarzilaiBorwein(), 2.0)]
)
@pytest.mark.parametrize("direction", [Adam(), Momentum(0.9)])
def test_steps_that_measure_the_mean_update_step_along_it(step_size, direction):
    with pytest.raises(ValueError, match="cannot step along"):
        ServerOptimizer(direction, step_size)


def run(strategy, num_nodes=4):
    app = ClientApp()

    @app.train()
    def train(message, context):
        metrics = MetricRecord({"num-examples": 1})
        content = {"arrays": message.content["arrays"], "metrics": metrics}
        return Message(RecordDict(content), reply_to=message)

    return strategy.start(SerialGrid(app, num_nodes), ArrayRecord([np.ones(2)]), num_rounds=1)


def test_rules_for_all_clients_refuse_a_sample_unless_it_is_asked_for():
    run(FedBB(fraction_evaluate=0.0))
    run(FedBB(0.5, fraction_evaluate=0.0, sampled=True))
    with pytest.raises(ValueError, match=r"FedBB: 2 of 4 clients train, .* sampled=True"):
        run(FedBB(0.5, fraction_evaluate=0.0, max_step_size=2.0))


@pytest.mark.parametrize("strategy", ["fedbb(max-step-size=2)", FedBB(0.5), BarzilaiBorwein()])
def test_a_run_of_sampled_clients_is_refused_before_its_first_round(strategy):
    name, settings = strategy if isinstance(strategy, str) else "fedavg", {"fraction_train": 0.5}
    config = Config(strategy=name, num_clients=4, **settings)
    given = None if isinstance(strategy, str) else strategy
    with pytest.raises(ValueError, match=r"2 of 4 clients train, .* sampled=True") as caught:
        Run(config, name, 4, strategy=given)
    assert "\n" not in str(caught.value)


def test_a_run_of_all_clients_is_not_refused_nor_one_that_is_to_be_tried():
    Run(Config(strategy="fedbb", fraction_train=1.0, num_clients=4), "fedbb", 4)
    Run(Config(strategy="fedbb", fraction_train=0.9, num_clients=1), "fedbb", 1)  # at least one
    Run(Config(num_clients=4), key := "fedbb(sampled=true)", 4)
    Run(Config(num_clients=4), key, 4, strategy=FedBB(0.5, sampled=True))
