"""What any user of `torch.optim` expects of an optimizer."""

import copy
import gc
import io
import math
import re
import resource
import sys
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedexp.hypergradients.adaptive_rules import Adagrad, Adam, RMSprop
from fedexp.hypergradients.optimizer import Hypergradient
from fedexp.hypergradients.presets import HyperAdam, HyperSGD
from fedexp.hypergradients.rules import SGD

UP = SGD(1e-3)
ALL = ("lr", "beta1", "beta2")
RULES = {
    "sgd": SGD(0.1, hyper=SGD(1e-3, hyper=SGD(1e-6))),
    "decayed": SGD(0.1, weight_decay=0.1, lr_form="log", hyper=UP),
    "momentum": SGD(0.1, momentum=0.5, tuned=("lr", "momentum"), hyper=Adam(1e-3)),
    "nesterov": SGD(0.1, momentum=0.5, nesterov=True, tuned=("lr", "momentum"), hyper=UP),
    "decay": SGD(0.1, weight_decay=0.2, tuned=("lr", "weight_decay"), hyper=UP),
    "normalised": SGD(0.1, momentum=0.5, normalised=True, hyper=SGD(0.1)),
    "adam": Adam(0.01, weight_decay=0.1, tuned=ALL, hyper=UP),
    "adamw": Adam(0.01, weight_decay=0.1, decoupled=True, tuned=ALL, hyper=UP),
    "rmsprop": RMSprop(0.01, tuned=("lr", "alpha"), weight_decay=0.1, hyper=UP),
    "adagrad": Adagrad(0.1, weight_decay=0.1, hyper=Adagrad(0.01)),
}
PERS = ("all", "group", "tensor")


def parameters(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 4), (4,), ())
    return [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


def give_gradients(params, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        noise = torch.randn(p.shape, generator=generator).to(p.dtype)
        p.grad = p.detach() + 0.1 * noise


def run(optimizer, params, steps):
    for seed in steps:
        give_gradients(params, seed)
        optimizer.step()
    return [p.detach().clone() for p in params]


def split(params):
    return [{"params": params[:1]}, {"params": params[1:], "weight_decay": 0.2}]


@pytest.mark.parametrize("per", PERS)
@pytest.mark.parametrize("name", RULES)
def test_lists_and_single_tensors_agree(name, per):
    ends, learned = [], []
    for foreach in (True, False):
        params = parameters()
        optimizer = Hypergradient(split(params), RULES[name], per=per, foreach=foreach)
        ends.append(run(optimizer, params, range(6)))
        learned.append(optimizer.learned())
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-12)
    for key, value in learned[0].values().items():
        assert value == pytest.approx(getattr(learned[1], key), rel=1e-9)


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("per", PERS)
@pytest.mark.parametrize("name", RULES)
def test_a_saved_state_continues_to_the_last_bit(name, per, foreach):
    params = parameters(torch.float32)
    optimizer = Hypergradient(split(params), RULES[name], per=per, foreach=foreach)
    run(optimizer, params, range(3))
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), [p.detach() for p in params]], file)
    file.seek(0)
    expected = run(optimizer, params, range(3, 6))
    state, values = torch.load(file, weights_only=True)
    again = [torch.nn.Parameter(v) for v in values]
    other = Hypergradient(split(again), RULES[name], per=per, foreach=foreach)
    other.load_state_dict(state)
    for x, y in zip(run(other, again, range(3, 6)), expected, strict=True):
        assert torch.equal(x, y)
    assert other.learned() == optimizer.learned()


def test_a_deep_copy_continues_as_the_original():
    params = parameters()
    optimizer = Hypergradient(params, RULES["adam"])
    run(optimizer, params, range(3))
    twin = copy.deepcopy(optimizer)
    twins = [p for group in twin.param_groups for p in group["params"]]
    for x, y in zip(run(optimizer, params, [4]), run(twin, twins, [4]), strict=True):
        assert torch.equal(x, y)


def test_groups_tune_apart_and_all_together():
    rates = {}
    for per in PERS:
        params = parameters()
        optimizer = Hypergradient(split(params), RULES["sgd"], per=per)
        run(optimizer, params, range(3))
        rates[per] = [group["lr"] for group in optimizer.param_groups]
    assert rates["group"][0] != rates["group"][1]
    assert rates["all"][0] == rates["all"][1]
    moved = {per: sum(rate) / 2 for per, rate in rates.items()}
    assert moved["all"] > moved["group"] > 0.1


def test_a_group_of_its_own_joins_later():
    params = parameters()
    optimizer = HyperSGD(params[:1], 0.1, hyper=UP)
    run(optimizer, params[:1], range(2))
    optimizer.add_param_group({"params": params[1:], "lr": 0.05})
    assert optimizer.param_groups[1]["lr"] == 0.05
    run(optimizer, params, range(3))
    assert optimizer.param_groups[1]["lr"] > 0.05


@pytest.mark.parametrize("per", PERS)
def test_a_group_may_be_empty(per):
    w = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = Hypergradient([{"params": []}, {"params": [w]}], SGD(0.1, hyper=SGD(0.01)), per=per)
    for _ in range(2):
        w.grad = w.detach().clone()
        optimizer.step()
    assert optimizer.param_groups[1]["lr"] == pytest.approx(0.1 + 0.01 * 1.8)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.118 if per == "all" else 0.1)


def test_groups_that_share_a_rate_must_agree_on_it():
    params = parameters()
    optimizer = HyperSGD(params[:1], 0.1, hyper=UP, per="all")
    with pytest.raises(ValueError, match=r"groups differ in \['lr'\]"):
        optimizer.add_param_group({"params": params[1:], "lr": 0.05})
    assert len(optimizer.param_groups) == 1


def test_the_closure_is_differentiated_and_its_loss_returned():
    [w, *_] = parameters()
    optimizer = HyperSGD([w], 0.1, hyper=UP)

    def closure():
        optimizer.zero_grad()
        loss = (w**2).sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(3)]
    assert losses[2] < losses[1] < losses[0]


@pytest.mark.parametrize("per", PERS)
def test_a_scheduler_scales_the_tuned_rate(per):
    params = parameters()
    optimizer = HyperSGD(params, 0.1, hyper=UP, per=per)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    run(optimizer, params, range(3))
    tuned = optimizer.param_groups[0]["lr"]
    assert tuned > 0.1
    scheduler.step()
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.zeros_like(p)  # No hypergradient: only the schedule moves the rate.
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(tuned / 2)
    for p, was in zip(params, before, strict=True):
        assert torch.equal(p, was)


def test_ascent_mirrors_descent():
    up, down = parameters(), parameters()
    ascent = HyperSGD(up, 0.1, hyper=UP, maximize=True)
    descent = HyperSGD(down, 0.1, hyper=UP)
    for _ in range(4):
        for p, q in zip(up, down, strict=True):
            p.grad, q.grad = -p.detach(), q.detach().clone()
        ascent.step()
        descent.step()
    assert ascent.learned() == descent.learned()
    torch.testing.assert_close(up, down)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("name", RULES)
def test_other_dtypes_are_tuned_too(name, dtype):
    params = parameters(dtype)
    optimizer = Hypergradient(params, RULES[name])
    run(optimizer, params, range(4))
    assert all(
        p.dtype == dtype and torch.isfinite(torch.view_as_real(p) if p.is_complex() else p).all()
        for p in params
    )
    assert optimizer.learned().values() != RULES[name].values()


def test_sparse_gradients_are_refused():
    embedding = torch.nn.Embedding(5, 2, sparse=True)
    optimizer = HyperSGD(embedding.parameters(), 0.1, hyper=UP)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"HyperSGD\(gradient=sparse\): only dense"):
        optimizer.step()


def test_a_tensor_that_sat_out_the_last_step_has_no_hypergradient():
    params = parameters()
    optimizer = HyperAdam(params, 0.1, hyper=UP)
    give_gradients(params, 0)
    optimizer.step()
    for p in params:
        p.grad = None
    optimizer.step()
    give_gradients(params, 1)
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.1
    params[0].grad = None
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] != 0.1
    give_gradients(params, 2)
    optimizer.step()  # Adam's corrections differ by tensor now.
    assert sorted(s["slots"]["step"] for s in optimizer.state.values()) == [3, 4, 4]


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_may_be_zeroed_in_place(set_to_none):
    [w, *_] = parameters()
    optimizer = HyperSGD([w], 0.1, hyper=UP)
    for _ in range(3):
        optimizer.zero_grad(set_to_none=set_to_none)
        (w**2).sum().backward()
        optimizer.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 + expected_rise(), rel=1e-12)


def expected_rise():
    w, rate, last, start = parameters()[0].detach(), 0.1, None, 0.1
    for _ in range(3):
        g = 2 * w
        rate += 0 if last is None else 1e-3 * (g * last).sum().item()
        w, last = w - rate * g, g
    return rate - start


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.sampled_from([0.0, 1.0, -1.0, 1e-30, 1e30, -1e38, math.inf, -math.inf, math.nan]),
        min_size=2,
        max_size=8,
    ),
    st.sampled_from([*RULES.values(), SGD(0.1, hyper=SGD(1e3, hyper=SGD(1e3, hyper=Adam(10.0))))]),
    st.sampled_from(PERS),
)
def test_hyperparameters_stay_in_range_whatever_the_gradients(scales, rule, per):
    params = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(()))]
    optimizer = Hypergradient(params, rule, per=per)
    for scale in scales:
        for p in params:
            p.grad = torch.full_like(p, scale)
        optimizer.step()
        level = optimizer.learned()  # Rules refuse values outside their range.
        while level is not None:
            assert all(math.isfinite(value) for value in level.values().values())
            level = level.hyper


def test_ten_thousand_steps_leave_no_garbage_and_take_no_memory():
    w = torch.nn.Parameter(torch.ones(2))
    optimizer = HyperSGD([w], 1e-4, hyper=SGD(1e-9, hyper=Adam(1e-9)))

    def steps(count):
        for _ in range(count):
            w.grad = 2 * w.detach()
            optimizer.step()

    def growth():
        blocks, size = sys.getallocatedblocks(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        steps(10_000)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        gc.set_debug(0)
        ours = [x for x in gc.garbage if type(x).__module__.startswith(("torch", "fedexp"))]
        garbage = len(ours)
        del ours
        gc.garbage.clear()
        blocks = sys.getallocatedblocks() - blocks
        return garbage, blocks, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - size

    steps(100)
    gc.collect()
    gc.disable()
    try:  # other threads of the process allocate too: one of three counts is of ours alone
        counts = []
        while len(counts) < 3 and not any(_is_clean(*count) for count in counts):
            counts.append(growth())
        assert any(_is_clean(*count) for count in counts), counts
    finally:
        gc.enable()


def _is_clean(garbage, blocks, size):
    return garbage == 0 and blocks < 200 and size < 2_000  # kB


def test_an_optimizer_dies_with_its_last_name():
    w = torch.nn.Parameter(torch.ones(2))
    optimizer = HyperSGD([w], 0.1, hyper=UP)
    w.grad = torch.ones(2)
    optimizer.step()
    gone = weakref.ref(optimizer)
    gc.collect()
    gc.disable()
    try:
        del optimizer
        assert gone() is None
    finally:
        gc.enable()


W = [torch.nn.Parameter(torch.ones(1))]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Adam(eps=-1.0), "AdamRule(eps=-1.0): must be at least 0"),
        (lambda: Adam(first_v=None), "AdamRule(first_v=None): must be a number"),
        (lambda: Adam(max_lr=-1), "AdamRule(max_lr=-1): must be at least 0"),
        (lambda: Adam(lr_form="foo"), "AdamRule(lr_form='foo'): must be one of"),
        (lambda: Adam(hyper=0.1), "AdamRule(hyper=0.1): must be a rule"),
        (lambda: SGD("x"), "SGDRule(lr='x'): must be a number"),
        (lambda: SGD(nesterov="no"), "SGDRule(nesterov='no'): must be True or False"),
        (lambda: Hypergradient(W, 3), "(rule=3): must be a rule"),
        (lambda: Hypergradient(W, SGD(0.1), per="x"), "(per='x'): must be one of"),
        (lambda: HyperAdam(W, 0.1, (0.9,)), "HyperAdam(betas=(0.9,)): must be a pair"),
        (lambda: HyperAdam(W, 0.1, 0.9), "HyperAdam(betas=0.9): must be a pair"),
    ],
)
def test_what_cannot_be_meant_is_one_line(make, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        make()
