"""The authors' code on ``(w₁² + 3w₂²)/2`` from ``(1, -2)``: its first four steps."""

from math import tanh

import pytest
import torch

from fedexp.hypergradients.adaptive_rules import Adam
from fedexp.hypergradients.optimizer import Hypergradient
from fedexp.hypergradients.rules import SGD, Rule
from fedexp.hypergradients.tower import Tower

EXACT = {"abs": 1e-8, "rel": 0}
UP = SGD(1e-3)
PUBLISHED: dict[str, tuple[Rule, dict[str, list[float]], list[float]]] = {
    "sgd-sgd": (
        SGD(0.1, hyper=UP),
        {"lr": [0.1, 0.1261, 0.137774647, 0.1423080058]},
        [0.5816428501, -0.2926304241],
    ),
    "sgd-sgd-sgd": (
        SGD(0.1, hyper=SGD(1e-3, hyper=SGD(1e-6))),
        {
            "lr": [0.1, 0.1261, 0.1413320087, 0.1473809744],
            "above": [0.001, 0.001, 0.0013047083, 0.0013567585],
        },
        [0.575817079, -0.2796773716],
    ),
    "momentum": (
        SGD(0.05, momentum=0.5, tuned=("lr", "momentum"), hyper=UP),
        {
            "lr": [0.05, 0.08155, 0.1080145546, 0.1147312684],
            "momentum": [0.5, 0.5, 0.5015936307, 0.5023898468],
        },
        [0.4973797442, 0.2409461065],
    ),
    "adam": (
        Adam(0.1, first_v=1e-8, tuned=("lr", "beta1", "beta2"), hyper=UP),
        {
            "lr": [0.1, 0.1065999952, 0.1127623348, 0.118461135],
            # Published before the tanh: (tanh θ + 1) / 2.
            "beta1": [
                (tanh(x) + 1) / 2 for x in (1.0986122887, 1.0986122887, 1.0991914844, 1.0999109609)
            ],
            "beta2": [
                (tanh(x) + 1) / 2 for x in (3.4533773893, 3.4533773883, 3.4530303309, 3.452576636)
            ],
        },
        [0.5667352842, -1.5637017988],
    ),
    "adam-baydin": (
        Adam(0.1, first_v=1e-8, hyper=UP),
        {"lr": [0.1, 0.1065999952, 0.1127623348, 0.1184564463]},
        [0.5670746388, -1.5640275936],
    ),
}
CURVATURE = torch.tensor([1.0, 3.0], dtype=torch.float64)


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("per", ["all", "group", "tensor"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_an_optimizer_walks_the_published_path(name, per, foreach):
    rule, values, last = PUBLISHED[name]
    w = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = Hypergradient([w], rule, per=per, foreach=foreach)
    seen = {key: [] for key in values}
    for _ in range(4):
        optimizer.zero_grad()
        ((CURVATURE * w**2).sum() / 2).backward()
        optimizer.step()
        now = optimizer.learned()
        for key in values:
            seen[key].append(now.hyper.lr if key == "above" else getattr(now, key))
    for key, expected in values.items():
        assert seen[key] == pytest.approx(expected, **EXACT)
    assert w.tolist() == pytest.approx(last, **EXACT)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_functional_tower_walks_the_published_path(name):
    rule, values, last = PUBLISHED[name]
    tower = Tower(rule)
    params = {"w": torch.tensor([1.0, -2.0], dtype=torch.float64)}
    state = tower.init(params)
    rates = []
    for _ in range(4):
        params, state = tower.update(params, {"w": CURVATURE * params["w"]}, state)
        rates.append(tower.learning_rate(state).item())
    assert rates == pytest.approx(values["lr"], **EXACT)
    assert params["w"].tolist() == pytest.approx(last, **EXACT)
