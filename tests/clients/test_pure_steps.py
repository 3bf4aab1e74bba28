"""A method written once, as pure functions: torch's form and a group take its steps."""

import functools

import pytest
import torch
from test_local_optimizers import Nodes, assert_close, data, model
from torch import nn

from fedexp.clients import LocalOptimizer, client_app
from fedexp.clients.optimizers import AdaptiveSGD, FunctionalOptimizer


class FunctionalSignSGD(FunctionalOptimizer):
    """`w ← w - η sign(g)`."""

    def init(self, params, lr):
        return {"lr": lr}

    def update(self, params, grads, state):
        return {
            k: (w - state["lr"] * grads[k].sign()).to(w.dtype) for k, w in params.items()
        }, state


class FunctionalMomentum(FunctionalOptimizer):
    """`m ← 0.9 m + g`, `w ← w - η m`."""

    def init(self, params, lr):
        return {"lr": lr, "m": {k: torch.zeros_like(w) for k, w in params.items()}}

    def update(self, params, grads, state):
        m = {k: 0.9 * state["m"][k] + g for k, g in grads.items()}
        new = {k: (w - state["lr"] * m[k]).to(w.dtype) for k, w in params.items()}
        return new, {**state, "m": m}


class SignSGD(torch.optim.SGD):
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.grad = p.grad.sign()
        return super().step(closure)


FORMS = {FunctionalSignSGD: SignSGD}
FORMS |= {FunctionalMomentum: functools.partial(torch.optim.SGD, momentum=0.9)}
SCHEDULES = [{}, {"learning_rate_exponent": 0.7, "server_round": 3}, {"local_scheduler": "cosine"}]


def local(form, keeps="nothing"):
    make = lambda params, s: AdaptiveSGD(params, s.lr, form())  # noqa: E731
    return LocalOptimizer("own", make, lambda s: form(), adapts_lr=False, keeps=keeps)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("form", FORMS)
def test_a_method_steps_alone_and_in_a_group_as_torchs_optimizer(form, schedule):
    expected = Nodes(app=client_app(model, data, FORMS[form])).train("sgd", **schedule)
    app = client_app(model, data, local(form))
    assert_close(Nodes(app=app).train("sgd", **schedule), expected)
    assert_close(Nodes("on", app).train("sgd", **schedule), expected)


def test_a_parameter_without_a_gradient_stays_and_groups_of_unlike_rates_are_refused():
    first, second = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = AdaptiveSGD([first, second], 0.25, FunctionalSignSGD())
    first.grad = torch.tensor([3.0, -2.0])
    optimizer.step()
    assert first.tolist() == [0.75, 1.25]
    assert second.tolist() == [1.0, 1.0]
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 0.5})
    with pytest.raises(ValueError, match="FunctionalSignSGD steps at one rate"):
        optimizer.step()


def test_a_group_does_not_take_clients_that_keep_more_than_a_rate():
    group = Nodes("on", client_app(model, data, local(FunctionalMomentum, "state"))).cohort
    assert group.takes({})
    assert not group.takes({"hyper-between-rounds": "carry"})
