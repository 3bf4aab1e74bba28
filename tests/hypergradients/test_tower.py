"""Pure rules and functional towers: derivatives, vmap, rules of one's own."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad, vmap

from fedexp.hypergradients.adaptive_rules import Adagrad, Adam, RMSprop
from fedexp.hypergradients.optimizer import Hypergradient
from fedexp.hypergradients.rules import SGD, Rule
from fedexp.hypergradients.scales import BETWEEN_0_AND_1, Scale
from fedexp.hypergradients.tower import Tower

UP = SGD(1e-3)
ALL = ("lr", "beta1", "beta2")
RULES = {
    "sgd": SGD(0.1, hyper=UP),
    "log": SGD(0.1, lr_form="log", hyper=UP),
    "normalised": SGD(0.1, normalised=True, hyper=SGD(0.1)),
    "nesterov": SGD(
        0.1, momentum=0.5, weight_decay=0.1, nesterov=True, tuned=("lr", "momentum"), hyper=UP
    ),
    "decay": SGD(0.1, weight_decay=0.1, tuned=("lr", "weight_decay"), hyper=UP),
    "heavy-ball": SGD(0.1, momentum=0.5, tuned=("momentum",), hyper=UP),
    "adam": Adam(0.01, weight_decay=0.1, tuned=ALL, hyper=UP),
    "adamw": Adam(0.01, weight_decay=0.1, decoupled=True, tuned=ALL, hyper=UP),
    "normalised-adam": Adam(0.01, lr_form="log", normalised=True, hyper=SGD(0.1)),
    "rmsprop": RMSprop(0.01, tuned=("lr", "alpha"), weight_decay=0.1, hyper=UP),
    "adagrad": Adagrad(0.1, hyper=SGD(1e-2, hyper=Adagrad(1e-3))),
    "tall": SGD(0.1, hyper=Adam(1e-3, tuned=ALL, hyper=RMSprop(1e-4, hyper=SGD(1e-5)))),
}


def moments(rule, seed):
    """A parameter, a gradient and a state in mid-flight."""
    generator = torch.Generator().manual_seed(seed)
    w, *grads = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    slots = rule.init(w)
    for g in grads[:2]:
        w, slots = rule.update(w, g, slots, rule.values())
    return w, grads[2], slots


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
@pytest.mark.parametrize("name", RULES)
def test_closed_forms_equal_forward_differentiation(name, seed):
    rule = RULES[name]
    w, g, slots = moments(rule, seed)
    closed = rule.slopes(w, g, slots, rule.values(), rule.tuned)
    automatic = Rule.slopes(rule, w, g, slots, rule.values(), rule.tuned)
    for h in rule.tuned:
        torch.testing.assert_close(closed[h], automatic[h], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_floats_and_tensors_take_the_same_step(name):
    rule = RULES[name]
    w, g, slots = moments(rule, seed=1)
    new, _ = rule.update(w, g, slots, rule.values())
    first = {k: v[0].item() if torch.is_tensor(v) else v for k, v in slots.items()}
    at = w[0].item(), g[0].item(), first, rule.values()
    assert rule.update(*at)[0] == pytest.approx(new[0].item(), rel=1e-12)
    by_float = Rule.slopes(rule, *at, rule.tuned)
    for h, slope in rule.slopes(*at, rule.tuned).items():
        if h in rule.tuned:
            assert slope == pytest.approx(by_float[h], rel=1e-9)


def problem(num_clients):
    generator = torch.Generator().manual_seed(0)
    shape = (num_clients, 6, 4)
    return torch.randn(shape, generator=generator).double() / 2, torch.ones(num_clients, 6).double()


def loss(params, x, y):
    return ((x @ params["w"] * params["scale"] + params["b"] - y) ** 2).mean()


def first_params():
    return {
        "w": torch.linspace(-1, 1, 4, dtype=torch.float64),
        "b": torch.zeros(1, dtype=torch.float64),
        "scale": torch.tensor(0.5, dtype=torch.float64),
    }


@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_a_cohort_under_vmap_steps_as_separate_optimizers(name, per_tensor):
    rule, rates = RULES[name], [0.02, 0.05, 0.1]
    tower = Tower(rule, per_tensor=per_tensor)
    x, y = problem(len(rates))
    params = {k: v.expand(3, *v.shape).clone() for k, v in first_params().items()}
    tuned = {"lr": torch.tensor(rates, dtype=torch.float64)} if "lr" in rule.tuned else {}
    state = vmap(lambda p, v: tower.init(p, **v))(params, tuned)
    for _ in range(5):
        grads = vmap(grad(loss))(params, x, y)
        params, state = vmap(tower.update)(params, grads, state)
    reported = vmap(tower.learning_rate)(state)
    for i, rate in enumerate(rates if tuned else [rule.lr] * 3):
        alone = {k: torch.nn.Parameter(v) for k, v in first_params().items()}
        per = "tensor" if per_tensor else "all"
        optimizer = Hypergradient(alone.values(), replace(rule, lr=rate), per=per)
        for _ in range(5):
            optimizer.zero_grad()
            loss(alone, x[i], y[i]).backward()
            optimizer.step()
        for k, v in alone.items():
            torch.testing.assert_close(params[k][i], v.detach(), rtol=1e-9, atol=1e-12)
        assert reported[i].item() == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)


def test_single_precision_cohorts_keep_their_precision():
    tower = Tower(RULES["adam"])
    params = {k: v.float().expand(2, *v.shape) for k, v in first_params().items()}
    state = vmap(tower.init)(params)
    for _ in range(3):
        new, new_state = vmap(tower.update)(params, params, state)
        assert {k: v.dtype for k, v in new.items()} == {k: torch.float32 for k in new}
        assert new["scale"].shape == params["scale"].shape
        leaves, same = (
            torch.utils._pytree.tree_flatten(new_state)[0],
            torch.utils._pytree.tree_flatten(state)[0],
        )
        assert [x.dtype for x in leaves] == [x.dtype for x in same]
        params, state = new, new_state


@dataclass(frozen=True)
class Lion(Rule):
    """A rule as a user writes it: no derivative given."""

    lr: float = 1e-2
    beta1: float = 0.9
    beta2: float = 0.99

    names: ClassVar = ("lr", "beta1", "beta2")
    scales: ClassVar = {"beta1": BETWEEN_0_AND_1, "beta2": Scale("tanh", 1e-6, 0.999)}

    def init(self, param):
        """Momentum."""
        return {"m": param * 0}

    def update(self, param, grad, slots, values):
        """A smooth sign of an interpolated momentum."""
        c = values["beta1"] * slots["m"] + (1 - values["beta1"]) * grad
        m = values["beta2"] * slots["m"] + (1 - values["beta2"]) * grad
        return param - values["lr"] * c / (c * c + 1e-2) ** 0.5, {"m": m}


def test_a_rule_of_ones_own_is_tuned_at_the_bottom_and_above():
    rule = Lion(0.01, tuned=("lr", "beta1"), hyper=Lion(1e-3, hyper=SGD(1e-5)))
    w = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = Hypergradient([w], rule)
    rates = []
    for _ in range(30):
        optimizer.zero_grad()
        (w**2).sum().backward()
        optimizer.step()
        rates.append(optimizer.learned().lr)
    assert rates[0] == 0.01
    assert rates[-1] > 0.02
    assert optimizer.learned().beta1 != 0.9
    assert optimizer.learned().hyper.lr != 1e-3


def test_the_one_step_hypergradient_is_the_finite_difference_of_the_loss():
    def loss_after(lr):
        w = torch.tensor([1.0, -2.0], dtype=torch.float64)
        g = torch.tensor([1.0, 3.0], dtype=torch.float64) * w
        return ((w - lr * g) ** 2 * torch.tensor([1.0, 3.0])).sum().item() / 2

    difference = (loss_after(0.1 + 1e-6) - loss_after(0.1 - 1e-6)) / 2e-6
    w = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = Hypergradient([w], SGD(0.1, hyper=UP))
    for _ in range(2):
        w.grad = torch.tensor([1.0, 3.0], dtype=torch.float64) * w.detach()
        optimizer.step()
    assert (0.1 - optimizer.learned().lr) / 1e-3 == pytest.approx(difference, rel=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(-1.0), r"SGDRule\(lr=-1.0\): must lie in"),
        (lambda: Adam(1e-3, beta1=1.0), r"AdamRule\(beta1=1.0\): must lie in"),
        (lambda: SGD(0.1, tuned=("beta1",)), r"SGDRule\(tuned=\['beta1'\]\): not tunable"),
        (lambda: SGD(0.0, lr_form="log"), r"SGDRule\(lr=0.0\): must lie in"),
        (
            lambda: SGD(0.1, normalised=True, tuned=("lr", "momentum")),
            r"SGDRule\(tuned=\('lr', 'momentum'\)\): normalised, only lr is tuned",
        ),
        (lambda: SGD(0.1, momentum=1.5), r"SGDRule\(momentum=1.5\): must lie in"),
    ],
)
def test_impossible_rules_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
