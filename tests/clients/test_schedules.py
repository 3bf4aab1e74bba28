"""Learning rates over the rounds against torch's own schedulers driving one optimizer."""

import math
import sys
from functools import partial
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from fedexp.clients.schedules import SCHEDULERS, schedule

ROUNDS, RATE = 12, 0.2


def driven(make, num_rounds=ROUNDS):
    """The rates that one optimizer trains at: a step of each between the rounds."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=RATE, momentum=0.9)
    scheduler, rates = make(optimizer), []
    for _ in range(num_rounds):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


WRITTEN = {
    "cosine": partial(lr_scheduler.CosineAnnealingLR, T_max=ROUNDS),
    "cosine(eta-min=0.001)": partial(lr_scheduler.CosineAnnealingLR, T_max=ROUNDS, eta_min=0.001),
    "cosine(t-max=5)": partial(lr_scheduler.CosineAnnealingLR, T_max=5),
    "CosineAnnealingLR(T_max=5)": partial(lr_scheduler.CosineAnnealingLR, T_max=5),
    "step(step-size=4, gamma=0.5)": partial(lr_scheduler.StepLR, step_size=4, gamma=0.5),
    "torch.optim.lr_scheduler.StepLR(step_size=3)": partial(lr_scheduler.StepLR, step_size=3),
    "multistep(milestones=[2, 7])": partial(lr_scheduler.MultiStepLR, milestones=[2, 7]),
    "exponential(gamma=0.9)": partial(lr_scheduler.ExponentialLR, gamma=0.9),
    "linear": partial(lr_scheduler.LinearLR, total_iters=ROUNDS),
    "linear(start-factor=1.0, end-factor=0.1)": partial(
        lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.1, total_iters=ROUNDS
    ),
    "polynomial(power=2)": partial(lr_scheduler.PolynomialLR, total_iters=ROUNDS, power=2),
    "constant(factor=0.5, total-iters=3)": partial(
        lr_scheduler.ConstantLR, factor=0.5, total_iters=3
    ),
    "cyclic(base-lr=0.05, step-size-up=3)": partial(
        lr_scheduler.CyclicLR, base_lr=0.05, max_lr=RATE, step_size_up=3
    ),
    "warm-restarts(T-0=4)": partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=4),
}


@pytest.mark.parametrize("text", WRITTEN)
def test_a_round_has_the_rate_that_torchs_scheduler_gives(text):
    found = schedule(text, ROUNDS, RATE)
    assert [found(t) for t in range(1, ROUNDS + 1)] == driven(WRITTEN[text])


def test_one_cycle_is_over_all_rounds_and_peaks_at_the_learning_rate():
    found = schedule("onecycle", ROUNDS, RATE)
    make = partial(lr_scheduler.OneCycleLR, max_lr=RATE, total_steps=ROUNDS + 1)
    shorter = partial(lr_scheduler.OneCycleLR, max_lr=RATE, total_steps=ROUNDS)
    assert [found(t) for t in range(1, ROUNDS)] == driven(shorter, ROUNDS - 1)
    given = schedule(f"onecycle(total-steps={ROUNDS + 1}, max-lr={RATE})", ROUNDS, 9.0)
    assert [given(t) for t in range(1, ROUNDS + 1)] == driven(make)
    passes = schedule("onecycle(epochs=3, steps-per-epoch=4)", ROUNDS, RATE)
    assert [passes(t) for t in range(1, ROUNDS + 1)] == [found(t) for t in range(1, ROUNDS + 1)]


def test_cosine_is_the_formula():
    found = schedule("cosine(eta-min=0.02)", 40, 0.1)
    for t in (1, 2, 17, 40):
        expected = 0.02 + 0.08 * (1 + math.cos(math.pi * (t - 1) / 40)) / 2
        assert found(t) == pytest.approx(expected, rel=1e-9)


def test_the_rate_of_a_round_depends_on_nothing_else():
    forwards, resumed = schedule("warm-restarts(T-0=4)", ROUNDS, RATE), None
    rates = [forwards(t) for t in range(1, ROUNDS + 1)]
    resumed = schedule("warm-restarts(T-0=4)", ROUNDS, RATE)
    assert [resumed(t) for t in (9, 3, 9, 1)] == [rates[t - 1] for t in (9, 3, 9, 1)]


def warm(optimizer, last=1.0):
    first = lr_scheduler.LinearLR(optimizer, 0.25, total_iters=3)
    then = lr_scheduler.ConstantLR(optimizer, last, total_iters=99)
    return lr_scheduler.SequentialLR(optimizer, [first, then], milestones=[3])


@pytest.fixture
def own(monkeypatch):
    module = ModuleType("own_schedules")
    module.warm = warm
    module.plateau = lr_scheduler.ReduceLROnPlateau
    monkeypatch.setitem(sys.modules, "own_schedules", module)


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # of SequentialLR's own call
def test_functions_classes_and_partials_are_schedulers_too(own):
    expected = driven(partial(warm, last=0.5))
    for choice in ("own_schedules:warm(last=0.5)", partial(warm, last=0.5), lambda o: warm(o, 0.5)):
        found = schedule(choice, ROUNDS, RATE)
        assert [found(t) for t in range(1, ROUNDS + 1)] == expected
    cosine = schedule(lr_scheduler.CosineAnnealingLR, ROUNDS, RATE)
    low = schedule(partial(lr_scheduler.CosineAnnealingLR, eta_min=0.1), ROUNDS, RATE)
    assert [cosine(t) for t in range(1, ROUNDS + 1)] == driven(WRITTEN["cosine"])
    assert low(ROUNDS) > 0.1


REFUSED = {
    "cosin": "unknown. Did you mean 'cosine'? Known: cosine",
    "lambda": "`module:function` of your own",
    "cyclic": "needs base-lr. Set it, as in cyclic(base-lr=...)",
    "step": "needs step-size. Set it, as in step(step-size=...)",
    "step(stepsize=3)": "no setting 'stepsize'. Did you mean 'step-size'?",
    "step(step-size=3, last-epoch=2)": "no setting 'last-epoch'",
    "multistep(milestones=3)": "TypeError",
    "step(step-size=2, gamma=abc)": "gamma='abc' must be a number",
    "step(step-size=1.5)": "step-size=1.5 must be a whole number",
    "onecycle(three-phase=maybe)": "three-phase='maybe' must be true or false",
    "exponential(gamma=nan)": "gamma='nan' must be a number",
    "exponential(gamma=-1)": "gives -0.2 in round 2, must be at least 0",
    "exponential(gamma=1e300)": "gives inf in round 3",
    "onecycle(total-steps=3)": "fails in round 5",
    "ReduceLROnPlateau": "Use cosine",
    "own_schedules:plateau": "Use cosine",
    "own_schedules:other": "AttributeError",
    "cosine(": "bracket is missing",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(own, text):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        schedule(text, ROUNDS, RATE)
    assert REFUSED[text] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        (lr_scheduler.ReduceLROnPlateau, "Use cosine"),
        (lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer), "waits for a loss"),
        (lambda optimizer: None, "fails in round 2"),
        (lr_scheduler.StepLR, "needs step-size"),
        (0.1, "must be text, a class or a function"),
    ],
)
def test_objects_that_give_no_rate_are_refused(choice, reason):
    with pytest.raises(ValueError, match=reason):
        schedule(choice, ROUNDS, RATE)


def test_every_scheduler_of_torch_that_text_can_make_has_a_name():
    classes = {x for x in vars(lr_scheduler).values() if isinstance(x, type)}
    ours = {x for x in classes if issubclass(x, lr_scheduler.LRScheduler)}
    need_functions = {"ChainedScheduler", "LambdaLR", "MultiplicativeLR", "SequentialLR"}
    names = {x.__name__ for x in ours} - need_functions - {"LRScheduler", "_LRScheduler"}
    assert {x.__name__ for x in SCHEDULERS.values()} == names
