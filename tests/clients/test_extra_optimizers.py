"""Optimizers that fedexp does not have itself: of extras, and torch's Muon with company."""

import numpy as np
import pytest
import torch
from torch import nn

from fedexp import extras
from fedexp.clients import ClientSettings, Examples, extra_optimizers, train
from fedexp.clients.extra_optimizers import EXTRA_OPTIMIZERS
from fedexp.clients.factories import Factory
from fedexp.clients.muon_adamw import MuonAdamW, _warn
from fedexp.clients.named import named_optimizer, optimizers, told
from fedexp.clients.trial import try_model

CURVATURE = np.array([1.0, 4.0])
EXAMPLES = Examples(torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))


class Quadratic(nn.Module):
    """``½ Σ hᵢ wᵢ²``, whatever the inputs are."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([2.0, -1.0], dtype=torch.float64))

    def forward(self, inputs):
        return 0.5 * (torch.from_numpy(CURVATURE) * self.w.square()).sum()


def trained(text, num_steps=5, **settings):
    model, settings = Quadratic(), ClientSettings(num_steps, 1, **settings)
    optimizer = named_optimizer(text)(list(model.parameters()), settings)
    train(model, EXAMPLES, settings, optimizer, lambda loss, _: loss, np.random.default_rng(0))
    return model.w.detach().numpy()


def test_schedule_free_sgd_returns_the_average_of_the_papers_recursion():
    pytest.importorskip("schedulefree")
    # Defazio et al. 2024, arXiv:2405.15682, eq. 3 to 5: y is where gradients are taken.
    x = z = np.array([2.0, -1.0])
    for t in range(1, 6):
        y = 0.1 * z + 0.9 * x
        z = z - 0.05 * CURVATURE * y
        x = x + (z - x) / t
    np.testing.assert_allclose(trained("schedule-free-sgd", lr=0.05), x, rtol=1e-12)


def test_schedule_free_adamw_is_the_librarys_in_the_mode_for_evaluation():
    kind = pytest.importorskip("schedulefree").AdamWScheduleFree
    model = Quadratic()
    optimizer = kind(model.parameters(), lr=0.05, warmup_steps=2, weight_decay=0.1)
    optimizer.train()
    for _ in range(5):
        model.w.grad = torch.from_numpy(CURVATURE) * model.w.detach()
        optimizer.step()
    optimizer.eval()
    found = trained("schedule-free-adamw(warmup-steps=2)", lr=0.05, weight_decay=0.1)
    np.testing.assert_allclose(found, model.w.detach().numpy(), rtol=1e-12)


def test_prodigy_comes_with_the_rate_that_its_authors_advise(capsys):
    kind = pytest.importorskip("prodigyopt").Prodigy
    assert told("prodigy") == {"local-optimizer": "prodigy", "learning-rate": 1.0}
    assert told("prodigy(lr=0.5, d-coef=2)")["learning-rate"] == 0.5
    model = Quadratic()
    optimizer = kind(model.parameters(), lr=1.0, weight_decay=0.1)
    capsys.readouterr()
    for _ in range(5):
        model.w.grad = torch.from_numpy(CURVATURE) * model.w.detach()
        optimizer.step()
    found = trained("prodigy", lr=1.0, weight_decay=0.1)
    np.testing.assert_allclose(found, model.w.detach().numpy(), rtol=1e-12)
    assert capsys.readouterr().out == ""  # the library prints at every client that decays weights


@pytest.mark.parametrize("name", EXTRA_OPTIMIZERS)
def test_a_package_that_is_not_installed_is_named_with_its_extra(name, monkeypatch):
    for module in (extras, extra_optimizers):
        monkeypatch.setattr(module, "find_spec", lambda package: None)
    named_optimizer.cache_clear()
    extra = EXTRA_OPTIMIZERS[name].extra
    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'fedexp\[{extra}\]'"):
        named_optimizer(name)
    lines = {key: line for key, line, _ in optimizers()}
    assert f"needs fedexp[{extra}]" in lines[name]


OUTSIDE = [
    ("prodigy", "d-coef=-1", "must be greater than 0"),
    ("prodigy", "d-coef=0", "must be greater than 0"),
    ("prodigy", "d0=inf", "must be a finite number"),
    ("prodigy", "growth-rate=0.5", "must be at least 1"),
    ("prodigy", "beta3=2", "must be at least 0 and less than 1"),
    ("prodigy", "beta3=nan", "must be a number"),
    ("prodigy", "slice-p=0", "must be at least 1"),
    ("prodigy", "slice-p=1.5", "must be a whole number"),
    ("schedule-free-adamw", "warmup-steps=-5", "must be at least 0"),
    ("schedule-free-adamw", "warmup-steps=1.5", "must be a whole number"),
    ("schedule-free-adamw", "betas=[0, 0.9]", "must be greater than 0 and less than 1"),
    ("schedule-free-adamw", "eps=-1", "must be at least 0"),
    ("schedule-free-sgd", "weight-lr-power=-1", "must be at least 0"),
    ("schedule-free-sgd", "r=inf", "must be a finite number"),
]


@pytest.mark.parametrize(("name", "setting", "rule"), OUTSIDE)
def test_a_setting_that_a_package_takes_without_a_look_has_its_range(name, setting, rule):
    pytest.importorskip(EXTRA_OPTIMIZERS[name].package)
    with pytest.raises(ValueError, match=rf"{name}.*: {setting.partition('=')[0]}=.* {rule}"):
        named_optimizer(f"{name}({setting})")


def test_the_ends_of_the_ranges_can_be_had():
    pytest.importorskip("prodigyopt")
    named_optimizer("prodigy(growth-rate=inf, beta3=none, slice-p=1, d-coef=0.5)")
    named_optimizer("prodigy(growth-rate=1, beta3=0)")


@pytest.mark.parametrize("name", EXTRA_OPTIMIZERS)
def test_every_range_is_that_of_a_setting_and_holds_its_default(name):
    extra = EXTRA_OPTIMIZERS[name]
    pytest.importorskip(extra.package)
    defaults = Factory(extra.load(), name).own
    assert extra.ranges.keys() <= defaults.keys()
    extra.check(name, defaults)


@pytest.fixture
def layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def test_matrices_get_muons_steps_and_the_rest_adamws(layers, logged):
    both = {name: p.detach().clone().requires_grad_() for name, p in layers.named_parameters()}
    matrices, others = ([p for p in both.values() if p.dim() == d] for d in (2, 1))
    parts = [
        torch.optim.Muon(matrices, lr=0.1, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=0.1, weight_decay=0.01),
    ]
    _warn.cache_clear()
    optimizers = [MuonAdamW(layers.parameters(), 0.1, 0.01) for _ in range(2)]
    assert logged == ["muon: 2 of 4 parameters are no matrices and get AdamW's steps instead."]
    for _ in range(3):
        for name, p in layers.named_parameters():
            both[name].grad = torch.ones_like(p) + p.detach()
            p.grad = torch.ones_like(p) + p.detach()
        for one in (optimizers[0], *parts):
            one.step()
    for name, p in layers.named_parameters():
        torch.testing.assert_close(p, both[name], rtol=0, atol=0)


def test_muon_trains_a_model_with_biases_and_refuses_one_without_matrices(layers):
    x = torch.eye(3, dtype=torch.float64)
    examples = Examples(x, torch.zeros(3, dtype=torch.int64))
    try_model("own", layers, examples, named_optimizer("muon"), ClientSettings())
    with pytest.raises(ValueError, match="none is a matrix"):
        MuonAdamW([nn.Parameter(torch.zeros(2))])
