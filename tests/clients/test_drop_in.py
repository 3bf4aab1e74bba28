"""Our optimizers in the place of `torch.optim`'s: the same calls give the same numbers."""

from itertools import product

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, OneCycleLR

from fedexp.clients import (
    SGD,
    FedHyperSGD,
    HyperAdagrad,
    HyperAdam,
    HyperAdamW,
    HyperRMSprop,
    HyperSGD,
)

NAMED = {"sgd": HyperSGD, "adam": HyperAdam, "adamw": HyperAdamW}
NAMED |= {"rmsprop": HyperRMSprop, "adagrad": HyperAdagrad}
TORCHS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
TORCHS |= {"rmsprop": torch.optim.RMSprop, "adagrad": torch.optim.Adagrad}
STILL = {"hyper": SGD(0.0)}  # the rate is tuned, by nothing
ALL = STILL | {"tuned": ("lr", "beta1", "beta2")}
CALLS = [
    ("sgd", {"lr": 0.05, "momentum": 0.9}, STILL),
    ("sgd", {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}, {}),
    ("sgd", {"lr": 0.05, "momentum": 0.9}, STILL | {"tuned": ("lr", "momentum")}),
    ("adam", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3}, {}),
    ("adam", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}, ALL),
    ("adam", {"lr": 0.01, "eps": 1e-3}, STILL),
    ("adam", {"lr": 0.01, "eps": 1e-3}, STILL | {"per": "tensor"}),
    ("adam", {"lr": 0.01, "eps": 1e-3}, ALL | {"foreach": False}),
    ("adamw", {"betas": (0.8, 0.95), "eps": 1e-3}, ALL),
    ("adamw", {"betas": (0.8, 0.95), "eps": 1e-3}, {}),
    ("rmsprop", {"lr": 0.01, "eps": 1e-3}, STILL | {"tuned": ("lr", "alpha")}),
    ("adagrad", {"lr": 0.05}, STILL),
]
CYCLES = {
    "none": lambda optimizer: LambdaLR(optimizer, lambda step: 1.0),
    "one cycle": lambda optimizer: OneCycleLR(optimizer, max_lr=0.05, total_steps=12),
    "cyclic": lambda optimizer: CyclicLR(optimizer, 0.01, 0.05, step_size_up=3),
    "one cycle of the rate": lambda optimizer: OneCycleLR(
        optimizer, max_lr=0.05, total_steps=12, cycle_momentum=False
    ),
}


def net(dtype=torch.float32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).to(dtype)


def trained(make, cycle="none", dtype=torch.float32, steps=12):
    model, rng = net(dtype), torch.Generator().manual_seed(1)
    optimizer = make(model.parameters())
    scheduler = CYCLES[cycle](optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.randn(8, 4, generator=rng).to(dtype)
        (model(x) - 1).square().mean().backward()
        optimizer.step()
        scheduler.step()
    return optimizer, [p.detach() for p in model.parameters()]


def assert_alike(one, other, tolerance=1e-5):
    (ours, ends), (theirs, expected) = one, other
    torch.testing.assert_close(ends, expected, rtol=tolerance, atol=tolerance)
    for key in ("lr", "betas", "momentum"):
        if key in theirs.param_groups[0] and key in ours.defaults:
            assert ours.param_groups[0][key] == pytest.approx(theirs.param_groups[0][key])


WITHOUT_MOMENTUM = "rmsprop", "adagrad"


@pytest.mark.parametrize(
    ("name", "told", "own", "cycle"),
    [
        (*call, cycle)
        for call, cycle in product(CALLS, CYCLES)
        if call[0] not in WITHOUT_MOMENTUM or cycle not in ("one cycle", "cyclic")
    ],
)
def test_the_same_calls_give_the_same_numbers(name, told, own, cycle):
    assert_alike(
        trained(lambda p: NAMED[name](p, **told, **own), cycle),
        trained(lambda p: TORCHS[name](p, **told), cycle),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("name", "told", "own"), CALLS)
def test_so_they_do_in_half_precision(name, told, own, dtype):
    assert_alike(
        trained(lambda p: NAMED[name](p, **told, **own), dtype=dtype),
        trained(lambda p: TORCHS[name](p, **told), dtype=dtype),
        4 * torch.finfo(dtype).eps,
    )


@pytest.mark.parametrize("foreach", [True, False])
def test_what_is_tuned_in_half_precision_is_what_floats_tune(foreach):
    def make(params):
        tuned = {"tuned": ("lr", "beta1", "beta2"), "hyper": SGD(1e-3), "foreach": foreach}
        return HyperAdam(params, 0.01, eps=1e-3, **tuned)

    (half, _), (full, _) = (trained(make, dtype=d) for d in (torch.float16, torch.float32))
    for key, value in full.learned().values().items():
        assert half.learned().values()[key] == pytest.approx(value, rel=0.02)
    assert full.learned().lr != 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_agreement_that_no_half_can_hold_still_shows(dtype):
    w = nn.Parameter(torch.ones(4, dtype=dtype))
    optimizer = FedHyperSGD([w], 1e-5)
    for _ in range(2):
        w.grad = torch.full_like(w, 300.0)
        optimizer.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1.1e-5)


def test_a_group_may_have_betas_of_its_own_and_take_others_later():
    def step(kind, **own):
        model, rng = net(), torch.Generator().manual_seed(1)
        first, last = model[0].parameters(), model[2].parameters()
        optimizer = kind([{"params": first, "betas": (0.5, 0.9)}, {"params": last}], 0.01, **own)
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "betas": (0.1, 0.2)})
        for i in range(6):
            optimizer.zero_grad()
            model(torch.randn(8, 4, generator=rng)).square().mean().backward()
            optimizer.step()
            if i == 2:
                optimizer.param_groups[1]["betas"] = (0.3, 0.7)
        return [p.detach() for p in model.parameters()], [
            g["betas"] for g in optimizer.param_groups
        ]

    ends, betas = step(HyperAdam)
    expected, theirs = step(torch.optim.Adam)
    torch.testing.assert_close(ends, expected, rtol=1e-5, atol=1e-6)
    assert betas == theirs == [(0.5, 0.9), (0.3, 0.7), (0.1, 0.2)]


def test_betas_are_their_parts_either_way():
    optimizer, _ = trained(lambda p: HyperAdam(p, beta1=0.8, beta2=0.95))
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.95)
    optimizer.param_groups[0]["beta1"] = 0.7
    optimizer.step()
    assert optimizer.param_groups[0]["betas"] == (0.7, 0.95)
    tuned, _ = trained(lambda p: HyperAdam(p, tuned=("beta1",), hyper=SGD(0.1)))
    group = tuned.param_groups[0]
    assert group["betas"] == (group["beta1"], 0.999) != (0.9, 0.999)


def test_betas_survive_a_state_dict():
    optimizer, _ = trained(lambda p: HyperAdam(p, betas=(0.8, 0.95)))
    other = HyperAdam(net().parameters())
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["betas"] == (0.8, 0.95)
    assert other.learned().values() == optimizer.learned().values()


@pytest.mark.parametrize("kind", [HyperAdam, HyperAdamW])
def test_a_beta_given_twice_is_refused(kind):
    with pytest.raises(ValueError, match=r"betas=\(0.8, 0.9\)\): beta1 is given too. Leave one"):
        kind(net().parameters(), betas=(0.8, 0.9), beta1=0.8)
    with pytest.raises(ValueError, match=r"beta2=1\.5"):
        kind(net().parameters(), betas=(0.8, 1.5))


@pytest.mark.parametrize("kind", [HyperSGD, FedHyperSGD])
def test_a_class_that_is_mixed_in_sees_every_group(kind):
    class Counted(torch.optim.Optimizer):
        def add_param_group(self, param_group):
            super().add_param_group(param_group)
            self.seen = len(self.param_groups)

    class Both(kind, Counted):
        pass

    assert Both([nn.Parameter(torch.ones(2))]).seen == 1
