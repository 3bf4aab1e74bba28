"""Training as everyone writes it: ``torch.optim``, ``model(x)``, ``loss.backward()``."""

import math

import torch


class DeltaSGD:
    """Kim et al. 2024, arXiv:2306.11201: both gradients on one minibatch, as the authors do it."""

    def __init__(self, params, settings, *, gamma=2.0, delta=0.02):
        self.params, self.lr, self.theta, self.last = params, settings.lr, 1.0, None
        self.gamma, self.delta = gamma, delta

    def zero_grad(self):
        for p in self.params:
            p.grad = None

    def step(self, closure, model):
        numbers = torch.get_rng_state()
        value = closure()
        grads = self.grads()
        here = [p.detach().clone() for p in self.params]
        if self.last is not None:
            after, buffers = torch.get_rng_state(), [b.clone() for b in model.buffers()]
            self.put(self.last)
            torch.set_rng_state(numbers)
            closure()
            dg = self.distance(grads, self.grads())
            dx = self.distance(here, self.last)
            self.put(here)
            torch.set_rng_state(after)
            for b, x in zip(model.buffers(), buffers, strict=True):
                b.data.copy_(x)
            longest = math.sqrt(1 + self.delta * self.theta) * self.lr
            new = min(self.gamma * dx / (2 * dg), longest) if dx and dg else longest
            self.theta, self.lr = new / self.lr, new
        self.last = here
        for p, g in zip(self.params, grads, strict=True):
            p.data.sub_(self.lr * g)
        return value

    def grads(self):
        return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self.params]

    def put(self, values):
        for p, x in zip(self.params, values, strict=True):
            p.data.copy_(x)

    def distance(self, a, b):
        return math.sqrt(
            sum(float((x - y).double().square().sum()) for x, y in zip(a, b, strict=True))
        )


class FedHyper:
    """Wang, Wang & Li 2024, arXiv:2310.03156, eq. 20, without a global update."""

    def __init__(self, params, settings):
        self.params, self.lr, self.beta, self.last = params, settings.lr, 1.0, None
        self.zero_grad = torch.optim.SGD(params, lr=1.0).zero_grad

    def step(self):
        grads = [p.grad.clone() for p in self.params if p.grad is not None]
        if self.last:
            pairs = zip(grads, self.last, strict=True)
            growth = 1 + sum(float((g.double() * h.double()).sum()) for g, h in pairs)
            self.beta = min(max(self.beta * min(growth, 1.1), 0.1), 10.0)
        self.last = grads
        for p in self.params:
            if p.grad is not None:
                p.data.sub_(self.lr * self.beta * p.grad)


OPTIMIZERS = {
    "sgd": lambda p, s: torch.optim.SGD(p, s.lr, weight_decay=s.weight_decay),
    "hypersgd": lambda p, s: torch.optim.SGD(p, s.lr, weight_decay=s.weight_decay),
    "hyperadam": lambda p, s: torch.optim.Adam(p, s.lr, weight_decay=s.weight_decay),
    "hyperadamw": lambda p, s: torch.optim.AdamW(p, s.lr, weight_decay=s.weight_decay),
    "hyperrmsprop": lambda p, s: torch.optim.RMSprop(p, s.lr, weight_decay=s.weight_decay),
    "hyperadagrad": lambda p, s: torch.optim.Adagrad(p, s.lr, weight_decay=s.weight_decay),
    "momentum": lambda p, s: torch.optim.SGD(p, s.lr, momentum=0.9),
    "delta-sgd": DeltaSGD,
    "fedhyper": FedHyper,
}
"""By ``local-optimizer``, where nothing is tuned by hypergradients."""


def train(model, loss, batches, settings):
    """Take the steps; the mean loss before each."""
    model.train()
    params = [p for p in model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in params]
    optimizer = OPTIMIZERS[settings.optimizer](params, settings)
    total = 0.0
    for x, y in batches:

        def closure(x=x, y=y):
            optimizer.zero_grad()
            value = loss(model(x), y)
            value.backward()
            for p, w in zip(params, start, strict=True):
                if settings.proximal_mu:
                    grad = torch.zeros_like(p) if p.grad is None else p.grad
                    p.grad = grad + settings.proximal_mu * (p.detach() - w)
            if settings.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(params, settings.max_grad_norm)
            return value

        if isinstance(optimizer, DeltaSGD):
            value = optimizer.step(closure, model)
        else:
            value = closure()
            optimizer.step()
        total += value.item()
    return total / settings.num_steps
