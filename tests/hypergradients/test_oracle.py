"""Hypergradients against a second graph, finite differences, and torch's own optimizers."""

from dataclasses import replace

import pytest
import reference_towers as slow
import torch
from torch.func import functional_call

from fedexp.hypergradients.adaptive_rules import Adagrad, Adam, RMSprop
from fedexp.hypergradients.optimizer import Hypergradient
from fedexp.hypergradients.presets import (
    HyperAdagrad,
    HyperAdam,
    HyperAdamW,
    HyperRMSprop,
    HyperSGD,
)
from fedexp.hypergradients.rules import SGD

BETAS = {"lr": 0.01, "beta1": 0.9, "beta2": 0.99}
ALL = ("lr", "beta1", "beta2")
PAIRS = {
    "sgd": (SGD(0.1), slow.sgd, {"lr": 0.1}),
    "momentum": (
        SGD(0.1, momentum=0.5, tuned=("lr", "momentum")),
        slow.momentum,
        {"lr": 0.1, "momentum": 0.5},
    ),
    "nesterov": (
        SGD(0.1, momentum=0.5, nesterov=True, tuned=("lr", "momentum")),
        slow.nesterov,
        {"lr": 0.1, "momentum": 0.5},
    ),
    **{
        f"{name}, decay": (
            SGD(0.1, weight_decay=0.2, tuned=("lr", "weight_decay", *more), **shape),
            slow.decayed(update),
            {"lr": 0.1, "weight_decay": 0.2} | dict.fromkeys(more, 0.5),
        )
        for name, update, more, shape in (
            ("sgd", slow.sgd, (), {}),
            ("momentum", slow.momentum, ("momentum",), {"momentum": 0.5}),
            ("nesterov", slow.nesterov, ("momentum",), {"momentum": 0.5, "nesterov": True}),
        )
    },
    "adam": (Adam(0.01, beta2=0.99, first_v=1e-8, tuned=ALL), slow.adam, BETAS),
    "adamw": (
        Adam(0.01, beta2=0.99, first_v=1e-8, tuned=ALL, decoupled=True, weight_decay=0.1),
        slow.adamw,
        BETAS,
    ),
    "rmsprop": (
        RMSprop(0.01, alpha=0.9, tuned=("lr", "alpha")),
        slow.rmsprop,
        {"lr": 0.01, "alpha": 0.9},
    ),
    "adagrad": (Adagrad(0.1, first_v=0.1), slow.adagrad, {"lr": 0.1}),
}


def network(seed):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)
    ).double()
    data = [(torch.randn(6, 5).double(), torch.randn(6, 3).double()) for _ in range(6)]

    def loss(params, step):
        x, y = data[step]
        return ((functional_call(model, params, (x,)) - y) ** 2).mean()

    return model, loss


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("above", ["sgd", "adam", "rmsprop", "adagrad"])
@pytest.mark.parametrize("name", PAIRS)
def test_towers_equal_those_of_a_second_graph(name, above, foreach):
    rule, update, values = PAIRS[name]
    up_rule, up_update, up_values = PAIRS[above]
    small = {k: 1e-3 if k == "lr" else v for k, v in up_values.items()}
    top = SGD(1e-6)
    rule = replace(rule, hyper=replace(up_rule, lr=1e-3, hyper=top))
    middle = slow.Reference(up_update, small, up_rule.tuned, slow.Reference(slow.sgd, {"lr": 1e-6}))
    model, loss = network(seed=len(name) + len(above))
    start = {k: p.detach().clone() for k, p in model.named_parameters()}
    expected = slow.walk(slow.Reference(update, values, rule.tuned, middle), loss, start, 6)
    optimizer = Hypergradient(model.parameters(), rule, foreach=foreach)
    for step, (params, here, higher, _) in enumerate(expected):
        optimizer.zero_grad()
        loss(dict(model.named_parameters()), step).backward()
        optimizer.step()
        learned = optimizer.learned()
        for key, value in here.items():
            assert getattr(learned, key) == pytest.approx(value, rel=1e-9), (step, key)
        for key, value in higher.items():
            assert getattr(learned.hyper, key) == pytest.approx(value, rel=1e-9), (step, key)
        for key, value in model.named_parameters():
            torch.testing.assert_close(value.detach(), params[key], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda p: HyperSGD(p, 0.1), lambda p: torch.optim.SGD(p, 0.1)),
        (
            lambda p: HyperSGD(p, 0.1, momentum=0.9, weight_decay=0.01),
            lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
        ),
        (
            lambda p: HyperSGD(p, 0.1, momentum=0.9, nesterov=True),
            lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
        ),
        (
            lambda p: HyperAdam(p, 0.01, weight_decay=0.1),
            lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1),
        ),
        (lambda p: HyperAdamW(p, 0.01), lambda p: torch.optim.AdamW(p, 0.01)),
        (lambda p: HyperRMSprop(p, 0.01), lambda p: torch.optim.RMSprop(p, 0.01)),
        (lambda p: HyperAdagrad(p, 0.01), lambda p: torch.optim.Adagrad(p, 0.01)),
    ],
)
def test_without_a_tower_it_is_the_optimizer_of_torch(ours, theirs, foreach):
    ends = []
    for make in (ours, theirs):
        model, loss = network(seed=0)
        optimizer = make(model.parameters())
        optimizer.param_groups[0]["foreach"] = foreach
        for step in range(6):
            optimizer.zero_grad()
            loss(dict(model.named_parameters()), step).backward()
            optimizer.step()
        ends.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-12)


def baydin(kind, gradients, w, alpha, beta, mu=0.9):
    """The recursions as printed, by hand: additive ones and the multiplicative one."""
    u, v, m, s = 0 * w, 0 * w, 0 * w, 0 * w
    for t, gradient in enumerate(gradients, start=1):
        g = gradient(w)
        h = (g @ u).item()
        if kind == "multiplicative":
            alpha *= 1 + beta * h / (g.norm() * u.norm()).item() if t > 1 else 1
        else:
            alpha += beta * h
        if kind == "nesterov":
            v = mu * v + g
            u = g + mu * v
        elif kind == "adam":
            m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g**2
            u = (1 - 0.999**t) ** 0.5 / (1 - 0.9**t) * m / s.sqrt()
        else:
            u = g
        w = w - alpha * u
    return w, alpha


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        ("sgd", SGD(0.05, hyper=SGD(1e-3))),
        ("nesterov", SGD(0.05, momentum=0.9, nesterov=True, hyper=SGD(1e-3))),
        ("adam", Adam(0.05, eps=1e-14, hyper=SGD(1e-3))),
        ("multiplicative", SGD(0.05, normalised=True, hyper=SGD(1e-3))),
    ],
)
def test_one_level_is_the_rule_of_baydin(kind, rule):
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(8, 4, generator=generator, dtype=torch.float64) for _ in range(8)]
    gradients = [lambda w, a=a: a.T @ (a @ w - 1) / 8 for a in matrices]
    start = torch.ones(4, dtype=torch.float64)
    expected, alpha = baydin(kind, gradients, start, 0.05, 1e-3)
    w = torch.nn.Parameter(start.clone())
    optimizer = Hypergradient([w], rule)
    for gradient in gradients:
        w.grad = gradient(w.detach())
        optimizer.step()
    assert optimizer.learned().lr == pytest.approx(alpha, rel=1e-9)
    torch.testing.assert_close(w.detach(), expected, rtol=1e-9, atol=0)


def test_multiplicative_steps_in_one_dimension_have_period_three_at_the_golden_ratio():
    beta = (5**0.5 - 1) / 2
    w = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = HyperSGD([w], 0.9, normalised=True, hyper=SGD(beta))
    rates = []
    for _ in range(10):
        w.grad = w.detach().clone()  # λ = 1, so q = lr: below 1 it grows, above 1 it shrinks.
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[1] == pytest.approx(0.9 * (1 + beta))
    # (1 + β)² (1 - β) = 1 at the golden ratio, so two rises and a fall close the circle.
    assert rates[4] == pytest.approx(rates[1])
    assert rates[7] == pytest.approx(rates[1])
