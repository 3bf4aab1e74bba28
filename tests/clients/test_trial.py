"""Models that cannot work are found before round 1, and those that can are left as they were."""

import copy

import pytest
import torch
from torch import nn

from fedexp.clients import ClientSettings, Examples, as_optimizer, sgd
from fedexp.clients.named import named_optimizer
from fedexp.clients.trial import try_model

IMAGES = Examples(torch.randn(30, 1, 4, 4), torch.arange(30) % 5)
VALUES = Examples(torch.randn(30, 16), torch.randn(30))


class Forward(nn.Module):
    def __init__(self, forward, outputs=5):
        super().__init__()
        self.head = nn.Linear(16, outputs)
        self.way = forward

    def forward(self, x):
        return self.way(self, self.head(x.flatten(1)))


def flat(*layers):
    return nn.Sequential(nn.Flatten(), *layers)


def broken(module, _):
    raise KeyError("two\nlines")


def grown(module, outputs):
    if not hasattr(module, "late"):
        module.late = nn.Linear(5, 5)
    return module.late(outputs)


BAD = {
    "bfloat16": (lambda: flat(nn.Linear(16, 5)).bfloat16(), "'1.weight' is torch.bfloat16"),
    "complex": (lambda: flat(nn.Linear(16, 5, dtype=torch.complex64)), "is torch.complex64"),
    "lazy": (lambda: flat(nn.LazyLinear(5)), "'1.weight' of a lazy layer has no shape yet"),
    "lazy buffers": (lambda: nn.Sequential(nn.LazyBatchNorm2d()), "of a lazy layer"),
    "nothing to learn": (flat, "has no parameter that learns"),
    "frozen": (lambda: flat(nn.Linear(16, 5)).requires_grad_(False), "no parameter that learns"),
    "half": (lambda: flat(nn.Linear(16, 5)).half(), "forward with inputs float32.*same dtype"),
    "none": (lambda: Forward(lambda m, x: None), "outputs=NoneType.*must be a tensor"),
    "tuple": (lambda: Forward(lambda m, x: (x, x)), "outputs=tuple.*give client_app a loss"),
    "dict": (lambda: Forward(lambda m, x: {"logits": x}), "outputs=dict"),
    "too few outputs": (lambda: flat(nn.Linear(16, 4)), "gives 4 outputs for the classes 0 to 4"),
    "one output": (lambda: flat(nn.Linear(16, 1)), "gives 1 outputs for the classes 0 to 4"),
    "flat output": (lambda: flat(nn.Linear(16, 1), nn.Flatten(0)), r"outputs=\[\d\], targets=\[\d"),
    "wrong width": (lambda: flat(nn.Linear(17, 5)), r"forward with inputs float32 \[.*17x5"),
    "raises": (lambda: Forward(broken), "KeyError"),
    "detached": (lambda: Forward(lambda m, x: x.detach()), "depends on no parameter"),
    "made late": (lambda: Forward(grown), "forward makes arrays"),
    "not finite": (lambda: Forward(lambda m, x: x / 0), "loss of the first model is nan"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_model_that_cannot_work_is_one_line(name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message) as error:
        try_model("Config(model='own')", make(), IMAGES, sgd, ClientSettings())
    assert str(error.value).startswith("Config(model='own'): ")
    assert "\n" not in str(error.value)


class Tables(nn.Linear):
    """Keeps something that no message takes along."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("table", torch.ones(2).bfloat16(), persistent=False)


GOOD = {
    "a table that is not sent": lambda: flat(Tables(16, 5)),
    "linear": lambda: flat(nn.Linear(16, 5)),
    "batch norm": lambda: flat(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)),
    "dropout": lambda: flat(nn.Dropout(0.5), nn.Linear(16, 5)),
    "convolution": lambda: nn.Sequential(nn.Conv2d(1, 5, 4), nn.Flatten()),
    "more outputs than classes": lambda: flat(nn.Linear(16, 9)),
    "partly frozen": lambda: flat(nn.Linear(16, 4).requires_grad_(False), nn.Linear(4, 5)),
}


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("name", GOOD)
def test_a_model_that_works_is_left_as_it_was(name, mode):
    module = GOOD[name]().train(mode)
    module[-1].eval()
    before = copy.deepcopy(module)
    random = torch.random.get_rng_state()
    try_model("own", module, IMAGES, sgd, ClientSettings(weight_decay=0.1, proximal_mu=0.1))
    assert torch.equal(torch.random.get_rng_state(), random)
    assert [m.training for m in module.modules()] == [m.training for m in before.modules()]
    for (key, now), then in zip(
        module.state_dict().items(), before.state_dict().values(), strict=True
    ):
        assert torch.equal(now, then), key
    assert all(p.grad is None for p in module.parameters())


def test_a_regression_needs_a_number_per_example():
    try_model("own", nn.Linear(16, 1), VALUES, sgd, ClientSettings())
    with pytest.raises(ValueError, match=r"outputs=\[\d, 3\], targets=\[\d\]\): must have one sh"):
        try_model("own", nn.Linear(16, 3), VALUES, sgd, ClientSettings())


def test_the_largest_token_is_among_the_rows_that_are_tried():
    tokens = torch.zeros(30, 4, dtype=torch.int64)
    tokens[13, 2] = 50
    net = nn.Sequential(nn.Embedding(50, 3), nn.Flatten(), nn.Linear(12, 5))
    with pytest.raises(ValueError, match=r"forward with inputs int64.*IndexError"):
        try_model("own", net, Examples(tokens, torch.arange(30) % 5), sgd, ClientSettings())
    tokens[13, 2] = 49
    try_model("own", net, Examples(tokens, torch.arange(30) % 5), sgd, ClientSettings())


def test_batch_norm_cannot_have_batches_of_one():
    net = flat(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 5))
    with pytest.raises(ValueError, match=r"a local step fails.*more than 1 value per channel"):
        try_model("own", net, IMAGES, sgd, ClientSettings(batch_size=1))


def test_a_loss_and_an_optimizer_of_ones_own_are_tried_too():
    both = Forward(lambda m, x: (x, x))
    summed = lambda outputs, targets: nn.functional.cross_entropy(sum(outputs), targets)  # noqa: E731
    try_model("own", both, IMAGES, sgd, ClientSettings(), summed)
    with pytest.raises(ValueError, match="the loss is no single number"):
        try_model("own", GOOD["linear"](), IMAGES, sgd, ClientSettings(), lambda x, y: x)

    def refused(params, settings):
        raise TypeError("no such optimizer")

    with pytest.raises(ValueError, match="a local step fails: TypeError: no such optimizer"):
        try_model("own", GOOD["linear"](), IMAGES, refused, ClientSettings())


class Fussy(torch.optim.SGD):
    """Fails in its step."""

    def step(self, closure=None):
        raise RuntimeError("no such step")


def tried(make, optimizer, settings):
    with pytest.raises(ValueError, match="a local step") as error:
        try_model("Config(model='own')", make(), IMAGES, optimizer, settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_step_that_plain_sgd_can_take_is_the_optimizers_fault():
    text = f"{__name__}:Fussy(momentum=0.5)"
    line = tried(GOOD["linear"], named_optimizer(text), ClientSettings(optimizer=text))
    assert line.startswith(f"Config(local-optimizer={text!r}): a local step with ")
    assert "fails: RuntimeError: no such step. Choose other settings, or another" in line
    line = tried(GOOD["linear"], as_optimizer(Fussy), ClientSettings())
    assert line.startswith(f"optimizer={__name__}.Fussy: ")


def test_a_step_that_no_optimizer_can_take_is_the_models_fault():
    net = flat(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 5))
    for optimizer in (named_optimizer("adam"), as_optimizer(Fussy)):
        line = tried(lambda: net, optimizer, ClientSettings(batch_size=1, optimizer="adam"))
        assert line.startswith("Config(model='own'): a local step fails: ")


def test_a_setting_that_is_named_already_is_not_named_again():
    settings = ClientSettings(optimizer="rprop", step_scheduler="cosine")
    with pytest.raises(ValueError, match=r"^ClientSettings\(local-scheduler='cosine'\): Rprop"):
        try_model("own", GOOD["linear"](), IMAGES, named_optimizer("rprop"), settings)


def test_a_schedule_with_which_a_step_fails_is_named():
    def by_rate(params, settings):
        made = torch.optim.SGD(params, settings.lr)
        made.param_groups[0]["lr"] = "fast" if settings.step_scheduler else 0.1
        return made

    line = tried(GOOD["linear"], by_rate, ClientSettings(step_scheduler="cosine"))
    assert line.startswith("Config(local-scheduler='cosine'): a local step fails: ")


def test_one_row_is_enough_for_batch_norm():
    one = Examples(*IMAGES.take(torch.tensor([3])))
    try_model("own", GOOD["batch norm"](), one, sgd, ClientSettings())
