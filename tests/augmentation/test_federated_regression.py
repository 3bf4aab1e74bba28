"""Federations of linear regression against the exact recursions of one machine.

Clients that hold equally many examples, take one local step on all of them, and are averaged, take
the step of gradient descent on all examples. So at every seed the weights have the distribution
whose first two moments `fedexp.augmentation` gives.
"""

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from torch import nn

import fedexp
from fedexp.augmentation import (
    Moments,
    PowerLaw,
    ProjectionMoments,
    min_norm,
    noise_step,
    projection_fixed_point,
    projection_step,
    unseen_component,
)
from fedexp.clients import Examples, client_app
from fedexp.datasets import Dataset
from fedexp.simulation.grid import context_of

CLIENTS, RUNS = 3, 60
DRAW = np.random.default_rng(0)
X, W = DRAW.normal(size=(6, 3)), DRAW.normal(size=(1, 6))  # a column is an example
Y, START = W @ X, DRAW.normal(size=(1, 6))
ETA, SIGMA = PowerLaw(0.25, 0.5, 3.0), PowerLaw(1.0, 0.2)
SCHEDULED = {
    **{"learning-rate": 0.25, "learning-rate-exponent": 0.5, "learning-rate-offset": 3.0},
    "augmentation": "noise(exponent=0.4)",
}


def line():
    return nn.Sequential(nn.Linear(6, 1, bias=False), nn.Flatten(0)).double()


def mine(context):
    """One example for each client."""
    own = slice(context.node_config["partition-id"], None, CLIENTS)
    return (Examples(torch.from_numpy(X.T.copy()[own]), torch.from_numpy(Y[0][own])),) * 2


def averaged(num_seeds, num_rounds, start=START, **settings):
    """Weights ``[seeds, 6]`` after rounds of one local step in which all clients take part."""
    trainer, found = client_app(lambda context: line(), mine).trainer, []
    for seed in range(num_seeds):
        config = {"local-steps": 1, "batch-size": 1, "seed": seed, **settings}
        contexts = [context_of(2 + i, CLIENTS, config, None) for i in range(CLIENTS)]
        w = start
        for t in range(num_rounds):
            sent = {"0.weight": w}
            told = {**config, "server-round": t + 1}
            results = [trainer.fit(told, sent, RecordDict(), context) for context in contexts]
            w = np.mean([result.arrays["0.weight"] for result in results], axis=0)
        found.append(w[0])
    return np.array(found)


def assert_moments(runs, exact, target):
    """Within Monte Carlo error, of five standard deviations."""
    root = len(runs) ** 0.5
    assert (abs(runs.mean(0) - exact.mean[0]) < 5 * runs.std(0, ddof=1) / root).all()
    squares = ((runs - target) ** 2).sum(1)
    assert abs(squares.mean() - exact.sq_distance(target)) < 5 * squares.std(ddof=1) / root


def test_one_local_step_under_noise_has_the_moments_of_the_recursion():
    exact = Moments.certain(START)
    for t in range(3):
        exact = noise_step(exact, X, Y, ETA(t), SIGMA(t))
    assert_moments(averaged(RUNS, 3, **SCHEDULED), exact, min_norm(X, Y))


def test_one_local_step_under_projections_has_the_mean_of_the_recursion():
    """Each client projects by itself, so that only the mean is that of one projection for all."""
    exact, drops = Moments.certain(START), PowerLaw(0.5, 0.4)
    for t in range(3):
        exact = projection_step(exact, ProjectionMoments.dropping(X, drops(t)), X, Y, ETA(t))
    settings = SCHEDULED | {"augmentation": "projection(exponent=0.4)"}
    runs = averaged(RUNS, 3, **settings)
    error = runs.std(0, ddof=1) / RUNS**0.5
    assert (abs(runs.mean(0) - exact.mean[0]) < 5 * error).all()


@pytest.mark.parametrize("rank", [1, 4])
def test_the_fixed_point_of_projections_stays_in_the_mean(rank):
    start = projection_fixed_point(X, Y, rank)
    settings = {"learning-rate": 0.2, "augmentation": f"projection(rank={rank})"}
    runs = averaged(RUNS, 3, start, **settings)
    error = runs.std(0, ddof=1) / RUNS**0.5
    assert (abs(runs.mean(0) - start[0]) < 5 * error).all()
    assert (error > 0).all()


def federation(**settings):
    """The same through the front door; the test loss is the squared distance to minimum norm."""
    inputs, n = torch.from_numpy(X.T.copy()), 6
    test = torch.eye(n, dtype=torch.float64) * n**0.5, torch.from_numpy(min_norm(X, Y)[0] * n**0.5)
    data = Dataset((inputs, torch.from_numpy(Y[0])), test, 0, np.arange(CLIENTS))
    return fedexp.Simulation(
        strategy="fedavg",
        model=line,
        data=data,
        initial_model={"0.weight": START},
        **{"partitioner": "natural", "fraction_train": 1.0, "engine": "serial"},
        **{"local_steps": 1, "batch_size": 1},
        **{key.replace("-", "_"): value for key, value in settings.items()},
    )


def test_a_run_takes_the_very_steps():
    w = averaged(3, 4, **SCHEDULED)[2]
    run = federation(seed=2, **SCHEDULED)
    rows = run.run(rounds=4).metrics
    distance = ((w - min_norm(X, Y)[0]) ** 2).sum()
    assert rows[-1]["test-loss"] == pytest.approx(distance, rel=1e-9)
    rates = [row["learning-rate"] for row in rows]
    assert rates == pytest.approx([ETA(t) for t in range(4)], rel=1e-12)


def test_a_federation_goes_to_the_solution_of_minimum_norm():
    """Without noise, what the examples do not see stays. The recursion says how far the mean is."""
    rounds, seeds = 60, 3
    exact, eta, sigma = Moments.certain(START), PowerLaw(0.25, 0.2), PowerLaw(1.0, 0.25)
    for t in range(rounds):
        exact = noise_step(exact, X, Y, eta(t), sigma(t))
    hidden = float((unseen_component(START, X) ** 2).sum())
    assert exact.sq_distance(min_norm(X, Y)) < 0.25 * hidden
    settings = {"learning-rate": 0.25, "learning-rate-exponent": 0.2}
    noisy = settings | {"augmentation": "noise(exponent=0.5)"}
    ends = [federation(seed=s, **noisy).run(rounds=rounds).metrics[-1] for s in range(seeds)]
    assert np.mean([end["test-loss"] for end in ends]) < 0.5 * hidden
    clean = federation(**settings).run(rounds=rounds).metrics[-1]
    assert clean["test-loss"] >= hidden * (1 - 1e-9)
