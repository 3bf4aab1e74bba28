"""What version 0.1.0 saved can be read: pickles by the old names, and states of optimizers."""

import pickle

import pytest
import torch

from fedexp import clients, hypergradients
from fedexp.hypergradients import (
    SGD,
    Adagrad,
    AdagradRule,
    Adam,
    AdamRule,
    Hypergradient,
    HypergradientOptimizer,
    RMSprop,
    RMSpropRule,
    SGDRule,
)

OLD_NAMES = {
    "SGD": SGDRule,
    "Adam": AdamRule,
    "RMSprop": RMSpropRule,
    "Adagrad": AdagradRule,
    "Hypergradient": HypergradientOptimizer,
}


@pytest.mark.parametrize("name", OLD_NAMES)
def test_short_names_are_the_same_objects(name):
    assert getattr(hypergradients, name) is getattr(clients, name) is OLD_NAMES[name]


def by_old_names(thing):
    """Its pickle, as if the classes had never been renamed."""
    data = pickle.dumps(thing, protocol=0)  # In which every name stands on a line.
    for old, new in OLD_NAMES.items():
        data = data.replace(f"\n{new.__name__}\n".encode(), f"\n{old}\n".encode())
        data = data.replace(f" {new.__name__}\n".encode(), f" {old}\n".encode())
        assert new.__name__.encode() not in data
    return data


@pytest.mark.parametrize("rule", [SGD(0.1), Adam(0.1), RMSprop(0.1), Adagrad(0.1)])
def test_pickled_rules_can_be_read(rule):
    tower = SGD(0.2, hyper=rule)
    assert pickle.loads(by_old_names(tower)) == tower


def test_pickled_optimizers_can_be_read():
    w = torch.nn.Parameter(torch.ones(2))
    w.grad = torch.ones(2)
    optimizer = Hypergradient([w], SGD(0.5, hyper=SGD(0.1)))
    optimizer.step()
    again = pickle.loads(by_old_names(optimizer))
    [same] = again.param_groups[0]["params"]
    for parameter, stepper in ((w, optimizer), (same, again)):
        parameter.grad = torch.full((2,), 3.0)
        stepper.step()
    assert again.learned() == optimizer.learned() != optimizer.rule
    assert torch.equal(w, same)


def test_a_saved_state_has_the_derivative_of_the_last_step():
    kept = {"direction": 4.0, "beta1": 21.0, "beta2": -2300.0}
    weights = {
        "direction": {"lr": -0.25, "beta1": -0.5},
        "beta1": {"beta1": 0.125},
        "beta2": {"beta2": -0.01},
    }
    exact = {"dtype": torch.float64}
    values = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99}
    tower = {
        "values": values,
        "slots": {name: {} for name in values},
        "slopes": {},
        "above": {"values": {}},
    }
    betas = dict.fromkeys(("betas", "shown_betas"), (0.9, 0.99))
    saved = {
        "state": {
            0: {
                "slots": {
                    "step": 2.0,
                    "m": torch.tensor([0.2], **exact),
                    "v": torch.tensor([0.01], **exact),
                },
                "weights": weights,
                "kept": {name: torch.tensor([x], **exact) for name, x in kept.items()},
                "seen": 2,
            }
        },
        "param_groups": [
            {
                **values,
                **betas,
                "weight_decay": 0.0,
                "foreach": True,
                "maximize": False,
                "towers": [tower],
                "shown": dict(values),
                "steps": 2,
                "params": [0],
            }
        ],
    }
    w = torch.nn.Parameter(torch.ones(1, **exact))
    optimizer = Hypergradient([w], Adam(0.1, tuned=tuple(values), hyper=SGD(1e-3)))
    optimizer.load_state_dict(saved)
    w.grad = torch.tensor([3.0], **exact)
    optimizer.step()
    learned = optimizer.learned()
    assert learned.lr == pytest.approx(0.1 + 1e-3 * 3.0 * 0.25 * 4.0, rel=1e-12)
    for beta, slope in (("beta1", 0.125 * 21.0 - 0.5 * 4.0), ("beta2", 23.0)):
        old = values[beta]
        # The step is one of θ, where β = (tanh θ + 1) / 2 and dβ/dθ = 2β(1 - β).
        theta = torch.atanh(torch.tensor(2 * old - 1, **exact)).item()
        theta -= 1e-3 * 3.0 * slope * 2 * old * (1 - old)
        new = (torch.tanh(torch.tensor(theta, **exact)).item() + 1) / 2
        assert getattr(learned, beta) == pytest.approx(new, rel=1e-12)
