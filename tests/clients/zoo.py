"""Models and losses that a fast path could take for something else, and a plain loop for them."""

from functools import partial

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

from fedexp.clients import Examples, default_loss

N, CLASSES = 48, 3
RNG = torch.Generator().manual_seed(5)
INPUTS = {  # by what models are named, below
    "vectors": torch.randn(N, 6, generator=RNG),
    "tokens": torch.randint(1, 7, (N, 6), generator=RNG) * (torch.arange(6) < 4),
    "images": torch.randn(N, 2, 6, 6, generator=RNG),
    "doubles": torch.randn(N, 6, generator=RNG).double(),
    "halves": torch.randn(N, 6, generator=RNG).half(),
}
CLASS = torch.randint(CLASSES, (N,), generator=RNG)
TARGETS = {
    "classes": CLASS,
    "uint8": CLASS.to(torch.uint8),
    "some left out": torch.where(torch.arange(N) % 3 == 0, -100, CLASS),
    "values": torch.randn(N, CLASSES, generator=RNG),
    "shares": torch.rand(N, CLASSES, generator=RNG).softmax(1),
    "one value": torch.randn(N, generator=RNG),
}


def examples(client, inputs="vectors", targets="classes"):
    return Examples(INPUTS[inputs], TARGETS[targets], torch.arange(client, N, 4))


# Models: a function of nothing each, and whether a group may take them; None: either way.


class Does(nn.Module):
    """Parts by name, and a forward pass that is a function of them and of the input."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.does = [forward]

    def forward(self, x):
        return self.does[0](self, x)


def net(*layers):
    return nn.Sequential(nn.Linear(6, 5), *layers, nn.Linear(5, CLASSES))


def two(forward):
    return lambda: Does(forward, a=nn.Linear(6, 5), b=nn.Linear(5, CLASSES))


def changed(change, *layers):
    """A net after ``change(net)``."""

    def make():
        module = net(nn.Tanh(), *layers)
        change(module)
        return module

    return make


def on_tokens(layer, flat=True):
    return lambda: nn.Sequential(
        layer(), *([nn.Flatten()] if flat else []), nn.Linear(24 if flat else 4, CLASSES)
    )


def tie(module):
    module.insert(1, nn.Linear(5, 6))
    module.insert(2, nn.Linear(6, 5))
    module[2].weight = module[0].weight


def repeat(module):
    module.insert(1, nn.Linear(5, 5))
    module.insert(2, module[1])


class Twice(nn.Module):
    def forward(self, w):
        return 2 * w


def parametrized(module):
    parametrize.register_parametrization(module[0], "weight", Twice())


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        return 3 * ctx.saved_tensors[0] ** 2 * grad


class Counting(nn.Module):
    """Another function from its thousandth call on."""

    def __init__(self):
        super().__init__()
        self.layer, self.calls = nn.Linear(6, CLASSES), 0

    def forward(self, x):
        self.calls += 1
        return self.layer(x) if self.calls < 1000 else x[:, :CLASSES]


class Shadowed(nn.Module):
    """Adds a running mean of its inputs, in a buffer that is not part of its state."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, CLASSES)
        self.register_buffer("mean", torch.zeros(6), persistent=False)

    def forward(self, x):
        self.mean = 0.5 * self.mean + 0.5 * x.detach().mean(0)
        return self.layer(x + self.mean)


class Clamping(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, CLASSES)

    def forward(self, x):
        self.layer.weight.data.mul_(0.9)
        return self.layer(x)


class Backdoor(nn.Module):
    """Its parameters are also in a list, and there it looks."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, CLASSES)
        self.all = [self.layer.weight, self.layer.bias]

    def forward(self, x):
        return functional.linear(x, *self.all)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = (
            nn.MultiheadAttention(2, 1, bias=False, batch_first=True),
            nn.Linear(6, CLASSES),
        )

    def forward(self, x):
        x = x.view(len(x), 3, 2)
        return self.head(self.inner(x, x, x)[0].flatten(1))


def shrink(layer, x):
    layer.weight.data.mul_(0.9)


def hooked(place, kind, hook):
    return changed(lambda m: getattr(m[place], f"register_{kind}_hook")(hook))


def hook_on_stored(module):
    module[0].weight.register_post_accumulate_grad_hook(halve)


def halve(p):
    p.grad.mul_(0.5)


def forward_of_its_own(module):
    layer = module[0]
    layer.forward = lambda x: functional.linear(x, layer.weight**2, layer.bias)


def no_grad(m, x):
    with torch.no_grad():
        hidden = m.a(x)
    return m.b(hidden.tanh())


def in_place(m, x):
    return m.b(m.a(x).mul_(2).add_(0.1).relu_())


def by_data(m, x):
    return m.b(m.a(x).tanh() if x.mean() > 0 else m.a(x).relu())


def dropping(m, x):
    return m.b(functional.dropout(m.a(x), 0.4, m.training))


def layer_drop(m, x):
    return m.b(m.a(x) * float(torch.rand(()) < 0.5))


def remembered(m, x):
    m.last = m.a(x)
    return m.b(m.last.tanh())


MODELS = {
    "linear": (lambda: nn.Linear(6, CLASSES), True),
    "no bias": (lambda: nn.Sequential(nn.Linear(6, CLASSES, bias=False)), True),
    "rectified": (lambda: net(nn.ReLU(inplace=True)), True),
    "deep": (lambda: net(nn.GELU(), nn.Linear(5, 5), nn.SiLU(), nn.Identity()), True),
    "nested": (lambda: nn.Sequential(net(nn.ELU()), nn.Sequential(nn.Softplus())), True),
    "layer norm": (lambda: net(nn.LayerNorm(5), nn.Tanh()), True),
    "own slope": (lambda: net(nn.PReLU()), True),
    "residual": (two(lambda m, x: m.b(m.a(x).tanh() + x[:, :5])), True),
    "in place": (two(in_place), True),
    "one number": (lambda: Does(lambda m, x: m.w * x[:, :3], w=nn.Parameter(torch.ones(()))), True),
    "by batch size": (two(lambda m, x: m.b(m.a(x).tanh()) / len(x) ** 0.5), True),
    "list": (
        lambda: Does(
            lambda m, x: sum(x @ w for w in m.ws),
            ws=nn.ParameterList([torch.full((6, CLASSES), v) for v in (0.1, -0.3)]),
        ),
        True,
    ),
    "attention": (Attention, None),
    "bilinear": (lambda: Does(lambda m, x: m.w(x, x), w=nn.Bilinear(6, 6, CLASSES)), None),
    "tied": (changed(tie), True),
    "a layer twice": (changed(repeat), False),
    "subclass": (lambda: nn.Sequential(Doubled(6, CLASSES)), True),
    "frozen": (changed(lambda m: m[0].requires_grad_(False)), False),
    "frozen bias": (changed(lambda m: m[0].bias.requires_grad_(False)), False),
    "unused": (two(lambda m, x: m.a(x)[:, :3]), False),
    "no gradient in part": (two(no_grad), False),
    "detached": (two(lambda m, x: m.b(m.a(x).detach())), False),
    "weight norm": (changed(lambda m: parametrizations.weight_norm(m[0])), None),
    "spectral norm": (changed(lambda m: parametrizations.spectral_norm(m[0])), False),
    "parametrized": (changed(parametrized), None),
    "old spectral norm": (changed(lambda m: nn.utils.spectral_norm(m[0])), False),
    "forward replaced": (changed(forward_of_its_own), None),
    "forward hook": (hooked(0, "forward", lambda m, x, y: 2 * y), False),
    "hook before": (hooked(2, "forward_pre", lambda m, x: x[0] ** 2), False),
    "hook that writes": (hooked(0, "forward_pre", shrink), False),
    "backward hook": (hooked(2, "full_backward", lambda m, x, y: (x[0] * 3,)), False),
    "backward hook before": (hooked(2, "full_backward_pre", lambda m, y: (y[0] * 3,)), False),
    "hook on a weight": (changed(lambda m: m[0].weight.register_hook(lambda g: g * 2)), False),
    "hook on a stored gradient": (changed(hook_on_stored), False),
    "dropout": (lambda: net(nn.Dropout(0.4)), False),
    "dropout by function": (two(dropping), False),
    "layers left out": (two(layer_drop), False),
    "batch norm": (
        lambda: nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.Linear(5, 3)),
        False,
    ),
    "constant buffer": (changed(lambda m: m.register_buffer("scale", torch.ones(2))), False),
    "shadowed": (Shadowed, False),
    "writes to weights": (Clamping, False),
    "counts": (Counting, False),
    "remembers": (two(remembered), False),
    "looks elsewhere": (Backdoor, False),
    "by data": (two(by_data), False),
    "function of its own": (two(lambda m, x: m.b(Cube.apply(m.a(x)))), None),
    "doubles": (lambda: net(nn.ReLU()).double(), True),
    "halves": (lambda: net(nn.ReLU()).half(), True),
    "recurrent": (
        lambda: Does(
            lambda m, x: m.b(m.a(x[..., None])[0][:, -1]),
            a=nn.GRU(1, 5, batch_first=True),
            b=nn.Linear(5, CLASSES),
        ),
        False,
    ),
    "convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, CLASSES)
        ),
        None,
    ),
    "embedding": (on_tokens(partial(nn.Embedding, 7, 4)), True),
    "padding": (on_tokens(partial(nn.Embedding, 7, 4, padding_idx=0)), False),
    "padding by function": (
        lambda: Does(
            lambda m, x: functional.embedding(x, m.w, padding_idx=0).sum(1)[:, :3],
            w=nn.Parameter(torch.randn(7, 4)),
        ),
        False,
    ),
    "padding not met": (on_tokens(partial(nn.Embedding, 9, 4, padding_idx=8)), False),
    "max norm": (on_tokens(partial(nn.Embedding, 7, 4, max_norm=0.5)), False),
    "scaled by frequency": (on_tokens(partial(nn.Embedding, 7, 4, scale_grad_by_freq=True)), False),
    "sparse": (on_tokens(partial(nn.Embedding, 7, 4, sparse=True)), False),
    "bag": (on_tokens(partial(nn.EmbeddingBag, 7, 4), flat=False), False),
    "bag, max norm": (on_tokens(partial(nn.EmbeddingBag, 7, 4, max_norm=0.5), flat=False), False),
    "bag, padding": (
        on_tokens(partial(nn.EmbeddingBag, 7, 4, padding_idx=0, mode="sum"), flat=False),
        False,
    ),
}

INPUTS_OF = {
    **dict.fromkeys(("doubles", "halves"), None),
    "convolution": "images",
    **{name: "tokens" for name in list(MODELS)[list(MODELS).index("embedding") :]},
}
TOLERANCE = {"halves": 0.02}


def inputs_of(name):
    return INPUTS_OF.get(name, "vectors") or name


# Losses: a function of what gives the model in training, the targets, whether groups may be used.


class Remembering(nn.Module):
    """Weighs by a running mean from its thousandth call on."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, outputs, targets):
        loss = functional.cross_entropy(outputs, targets)
        self.seen.append(1)
        return loss if len(self.seen) < 1000 else 0 * loss


class Margin:
    """A loss that is an object of no module's class."""

    def __call__(self, outputs, targets):
        own = outputs.gather(1, targets[:, None])
        return (1 + outputs - own).relu().mean()


def counting():
    calls = 0

    def loss(outputs, targets):
        nonlocal calls
        calls += 1
        return functional.cross_entropy(outputs, targets) * (1 if calls < 1000 else 0)

    return loss


def focal(outputs, targets):
    logs = functional.log_softmax(outputs, 1).gather(1, targets[:, None])
    return -((1 - logs.exp()) ** 2 * logs).mean()


def noisy(outputs, targets):
    return functional.cross_entropy(outputs + 0.3 * torch.randn(outputs.shape), targets)


def by_outputs(outputs, targets):
    loss = functional.cross_entropy(outputs, targets)
    return loss if loss.item() > 1 else 2 * loss


def writing(outputs, targets):
    return functional.cross_entropy(outputs.mul_(2), targets)


def of_weights(factor, detach=False):
    def make(model):
        def loss(outputs, targets):
            weights = model()[0].weight
            penalty = (weights.detach() if detach else weights).square().sum()
            scale = 1 + penalty if detach else 1
            return scale * functional.cross_entropy(outputs, targets) + factor * penalty

        return loss

    return make


def plain(loss):
    return lambda model: loss


WEIGHT = torch.tensor([1.0, 2.0, 0.5])
LOSSES = {
    "default": (plain(default_loss), "classes", True),
    "default, bytes": (plain(default_loss), "uint8", True),
    "default, some left out": (plain(default_loss), "some left out", True),
    "default, values": (plain(default_loss), "values", True),
    "cross-entropy": (plain(functional.cross_entropy), "classes", True),
    "module": (plain(nn.CrossEntropyLoss()), "classes", True),
    "module, sum": (plain(nn.CrossEntropyLoss(reduction="sum")), "classes", True),
    "weighted": (plain(nn.CrossEntropyLoss(weight=WEIGHT)), "classes", True),
    "smoothed": (plain(nn.CrossEntropyLoss(label_smoothing=0.1)), "classes", None),
    "weighted, smoothed": (
        plain(nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.1)), "classes", None
    ),
    "without a class": (plain(nn.CrossEntropyLoss(ignore_index=1)), "classes", True),
    "some left out": (plain(functional.cross_entropy), "some left out", True),
    "focal": (plain(focal), "classes", True),
    "a part of it": (
        plain(partial(functional.cross_entropy, label_smoothing=0.2)), "classes", None
    ),
    "soft targets": (plain(functional.cross_entropy), "shares", True),
    "bytes, own": (plain(lambda o, y: functional.cross_entropy(o, y.long())), "uint8", True),
    "bytes": (plain(functional.cross_entropy), "uint8", None),
    "squares": (plain(functional.mse_loss), "values", True),
    "absolute": (plain(nn.L1Loss()), "values", True),
    "huber": (plain(nn.HuberLoss(delta=0.3)), "values", True),
    "logistic": (plain(functional.binary_cross_entropy_with_logits), "shares", True),
    "one value": (plain(lambda o, y: (o.sum(1) - y).square().mean()), "one value", True),
    "margin": (plain(nn.MultiMarginLoss()), "classes", None),
    "margin, own": (plain(Margin()), "classes", True),
    "shape (1,)": (plain(lambda o, y: functional.cross_entropy(o, y)[None]), "classes", None),
    "double": (plain(lambda o, y: functional.cross_entropy(o.double(), y)), "classes", True),
    "writes to outputs": (plain(writing), "classes", None),
    "of the model's weights": (of_weights(0.1), "classes", False),
    "of the model's weights, a little": (of_weights(1e-6), "classes", False),
    "by the model's weights": (of_weights(0.0, detach=True), "classes", False),
    "noisy": (plain(noisy), "classes", False),
    "counts": (plain(counting()), "classes", False),
    "remembers": (plain(Remembering()), "classes", False),
    "by value": (plain(by_outputs), "classes", False),
}  # fmt: skip
