"""Slow references: textbook updates, and towers by a second graph as in the paper."""

import torch


def sgd(w, g, s, h):
    return w - h["lr"] * g, s


def momentum(w, g, s, h):
    buffer = h["momentum"] * s.get("b", 0 * w) + g
    return w - h["lr"] * buffer, {"b": buffer}


def nesterov(w, g, s, h):
    buffer = h["momentum"] * s.get("b", 0 * w) + g
    return w - h["lr"] * (g + h["momentum"] * buffer), {"b": buffer}


def decayed(update):
    return lambda w, g, s, h: update(w, g + h["weight_decay"] * w, s, h)


def adam(w, g, s, h, decay=0.0):
    t = s.get("t", 0) + 1
    m = h["beta1"] * s.get("m", 0 * w) + (1 - h["beta1"]) * g
    v = h["beta2"] * s.get("v", 0 * w + 1e-8) + (1 - h["beta2"]) * g**2
    m_hat, v_hat = m / (1 - h["beta1"] ** t), v / (1 - h["beta2"] ** t)
    new = w - h["lr"] * decay * w - h["lr"] * m_hat / (v_hat.sqrt() + 1e-8)
    return new, {"t": t, "m": m, "v": v}


def adamw(w, g, s, h):
    return adam(w, g, s, h, decay=0.1)


def rmsprop(w, g, s, h):
    v = h["alpha"] * s.get("v", 0 * w) + (1 - h["alpha"]) * g**2
    root = torch.where(v > 0, v, 1).sqrt() * (v > 0)  # differentiable at 0
    return w - h["lr"] * g / (root + 1e-8), {"v": v}


def adagrad(w, g, s, h):
    v = s.get("v", 0 * w + 0.1) + g**2
    return w - h["lr"] * g / (v.sqrt() + 1e-10), {"v": v}


def squash(name, theta):
    """The tuned value of an unconstrained number."""
    return (torch.tanh(theta) + 1) / 2 if name in ("beta1", "beta2", "alpha") else theta


def unsquash(name, value):
    value = torch.tensor(value, dtype=torch.float64)
    return torch.atanh(2 * value - 1) if name in ("beta1", "beta2", "alpha") else value


class Reference:
    """A tower whose hypergradients come from ``backward(create_graph=True)``.

    Args:
        update: ``(w, g, state, values) -> (w, state)``, differentiable.
        values: Its hyperparameters.
        tuned: Those that move.
        above: The next level, or None.
    """

    def __init__(self, update, values, tuned=("lr",), above=None):
        self.update, self.fixed, self.above, self.state, self.grads = update, values, above, {}, {}
        self.theta = {k: unsquash(k, values[k]).requires_grad_() for k in tuned if above}

    def values(self):
        return self.fixed | {k: squash(k, x) for k, x in self.theta.items()}

    def step(self, params, grads):
        """New parameters, attached to this tower's hyperparameters and nothing older."""
        if self.above is not None:
            at = {k: self.grads.get(k, torch.zeros_like(x)) for k, x in self.theta.items()}
            self.theta = self.above.step({k: x.detach() for k, x in self.theta.items()}, at)
            self.theta = {k: x if x.grad_fn else x.requires_grad_() for k, x in self.theta.items()}
        new = {}
        for k, w in params.items():
            old = {
                i: x.detach() if torch.is_tensor(x) else x for i, x in self.state.get(k, {}).items()
            }
            new[k], self.state[k] = self.update(w.detach(), grads[k].detach(), old, self.values())
        return new


def walk(tower, loss, params, num_steps):
    """``[params, values, values above, ...]`` after each step of a tower on `loss`."""
    path, levels = [], [tower]
    while levels[-1].above:
        levels.append(levels[-1].above)
    for step in range(num_steps):
        params = {k: w if w.grad_fn else w.detach().requires_grad_() for k, w in params.items()}
        wanted = [params, *(level.theta for level in levels)]
        flat = [x for group in wanted for x in group.values()]
        found = iter(
            torch.autograd.grad(loss(params, step), flat, create_graph=True, allow_unused=True)
        )
        grads = [{k: g for k in group if (g := next(found)) is not None} for group in wanted]
        for level, grad in zip(levels, grads[1:], strict=True):
            level.grads = grad
        params = tower.step(params, grads[0])
        values = [{k: float(x.detach()) for k, x in tensors(level).items()} for level in levels]
        path.append([{k: w.detach() for k, w in params.items()}, *values])
    return path


def tensors(level):
    return {k: torch.as_tensor(x, dtype=torch.float64) for k, x in level.values().items()}
