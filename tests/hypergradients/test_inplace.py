"""The rules in place equal the pure rules, whatever a program does between steps."""

import pytest
import torch

from fedexp.hypergradients.adaptive_rules import Adagrad, Adam, RMSprop
from fedexp.hypergradients.batches import ParamBatch
from fedexp.hypergradients.inner_products import quotient_dots
from fedexp.hypergradients.optimizer import Hypergradient
from fedexp.hypergradients.rules import SGD

UP = SGD(1e-3, hyper=SGD(1e-6))
ALL = ("lr", "beta1", "beta2")
ADAMS = {
    "lr": Adam(0.01, hyper=UP),
    "decayed": Adam(0.01, weight_decay=0.1, first_v=1e-8, hyper=UP),
    "decoupled": Adam(0.01, weight_decay=0.1, decoupled=True, hyper=UP),
    "normalised": Adam(0.01, lr_form="log", normalised=True, hyper=SGD(0.1)),
    "betas": Adam(0.01, tuned=ALL, hyper=UP),
    "betas, decayed": Adam(0.01, weight_decay=0.1, tuned=ALL, hyper=UP),
    "betas, decoupled": Adam(0.01, weight_decay=0.1, decoupled=True, tuned=ALL, hyper=UP),
    "beta1 small": Adam(0.01, beta1=1e-5, tuned=ALL, hyper=UP),
    "beta2": Adam(0.01, tuned=("beta2",), hyper=UP),
}
RULES = {
    "sgd": SGD(0.1, hyper=UP),
    "sgd, decayed": SGD(0.1, weight_decay=0.1, hyper=UP),
    "nesterov": SGD(0.1, momentum=0.5, nesterov=True, tuned=("lr", "momentum"), hyper=UP),
    "rmsprop": RMSprop(0.01, tuned=("lr", "alpha"), hyper=UP),
    "adagrad": Adagrad(0.1, hyper=UP),
    **ADAMS,
}


def parameters(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 4), (4,), (), (2, 3, 2, 2))
    return [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


def gradients(params, seed):
    """One coordinate of each is always zero, as of a pixel that is always dark."""
    generator = torch.Generator().manual_seed(seed)
    noise = [torch.randn(p.shape, generator=generator).to(p.dtype) for p in params]
    found = [p.detach() + 0.1 * x for p, x in zip(params, noise, strict=True)]
    for g in found:
        if g.dim():
            g[(0,) * g.dim()] = 0.0
    return found


def run(optimizer, params, seeds):
    for seed in seeds:
        for p, g in zip(params, gradients(params, seed), strict=True):
            p.grad = g
        optimizer.step()
    return [p.detach().clone() for p in params]


def assert_alike(one, other, tolerance=1e-9):
    (optimizer, ends), (reference, expected) = one, other
    torch.testing.assert_close(ends, expected, rtol=tolerance, atol=tolerance / 1e3)
    values, wanted = optimizer.learned(), reference.learned()
    while values is not None:
        for key, value in values.values().items():
            assert value == pytest.approx(getattr(wanted, key), rel=tolerance)
        values, wanted = values.hyper, wanted.hyper


def trained(rule, seeds=range(8), dtype=torch.float64, **settings):
    params = parameters(dtype)
    optimizer = Hypergradient(params, rule, **settings)
    return optimizer, run(optimizer, params, seeds)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("name", ADAMS)
def test_adam_in_place_is_the_pure_rule(name, dtype, tolerance):
    fast, pure = (trained(ADAMS[name], dtype=dtype, foreach=foreach) for foreach in (True, False))
    assert_alike(fast, pure, tolerance)


def test_adam_runs_torchs_kernel(monkeypatch):
    calls, kernel = [], torch._fused_adam_
    monkeypatch.setattr(torch, "_fused_adam_", lambda *a, **k: calls.append(1) or kernel(*a, **k))
    trained(ADAMS["lr"])
    trained(ADAMS["betas"])
    assert len(calls) == 16
    trained(ADAMS["lr"], dtype=torch.bfloat16)
    trained(ADAMS["betas"], dtype=torch.bfloat16)
    trained(Adam(0.01))
    assert len(calls) == 24
    trained(ADAMS["betas, decoupled"])
    assert len(calls) == 32


@pytest.mark.parametrize("name", RULES)
def test_a_graph_of_before_the_step_fails_rather_than_be_wrong(name):
    params = parameters()
    optimizer = Hypergradient(params, RULES[name])
    loss = sum((p * p).sum() for p in params)
    run(optimizer, params, [0])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", RULES)
def test_gradients_and_parameters_may_lie_in_memory_in_any_order(name):
    plain, odd = parameters(), parameters()
    for p in odd:
        if p.dim() == 4:
            p.data = p.data.to(memory_format=torch.channels_last)
    runs = []
    for params, turned in ((plain, False), (odd, True)):
        optimizer = Hypergradient(params, RULES[name])
        for seed in range(6):
            for p, g in zip(params, gradients(params, seed), strict=True):
                p.grad = g.t().contiguous().t() if turned and g.dim() == 2 else g
            optimizer.step()
        runs.append((optimizer, [p.detach().contiguous() for p in params]))
    assert_alike(*runs)


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("name", RULES)
def test_programs_may_write_into_the_memory_of_gradients(name, seen):
    """By PyTorch as a backward pass does, or past it as a CUDA graph does that is played again."""
    params = parameters()
    optimizer = Hypergradient(params, RULES[name])
    for p in params:
        p.grad = torch.zeros_like(p)
    memory = [p.grad if seen else torch.from_numpy(p.grad.numpy()) for p in params]
    for seed in range(8):
        for kept, g in zip(memory, gradients(params, seed), strict=True):
            kept.copy_(g)  # The same memory in every step.
        optimizer.step()
    assert_alike((optimizer, [p.detach() for p in params]), trained(RULES[name]))


@pytest.mark.parametrize("name", RULES)
def test_gradients_may_add_up(name):
    """Every other step, the backward pass adds to the gradients of the step before."""
    runs = []
    for accumulate in (False, True):
        params = parameters()
        optimizer = Hypergradient(params, RULES[name])
        for seed in range(6):
            old = [p.grad for p in params]
            adds = seed % 2 == 1
            if not (accumulate and adds):
                optimizer.zero_grad()
            new = gradients(params, seed)
            if adds and not accumulate:
                new = [g + before for g, before in zip(new, old, strict=True)]
            sum((p * g).sum().real for p, g in zip(params, new, strict=True)).backward()
            optimizer.step()
        runs.append((optimizer, [p.detach() for p in params]))
    assert_alike(*runs)


@pytest.mark.parametrize("name", RULES)
def test_steps_do_not_hold_the_gradients(name):
    params = parameters()
    optimizer = Hypergradient(params, RULES[name])
    for seed in range(3):
        run(optimizer, params, [seed])
        held = {
            x.untyped_storage().data_ptr()
            for s in optimizer.state.values()
            for x in (*s["kept"].values(), *s["slots"].values())
            if torch.is_tensor(x)
        }
        assert held.isdisjoint(p.grad.untyped_storage().data_ptr() for p in params)


@pytest.mark.parametrize("name", RULES)
def test_one_that_sits_out_leaves_the_others_as_they_are(name):
    runs = []
    for foreach in (True, False):
        params = parameters()
        optimizer = Hypergradient(params, RULES[name], foreach=foreach)
        for seed in range(8):
            for p, g in zip(params, gradients(params, seed), strict=True):
                p.grad = g
            if seed in (3, 4):
                params[seed - 3].grad = None
            optimizer.step()
        runs.append((optimizer, [p.detach() for p in params]))
    assert_alike(*runs)


@pytest.mark.parametrize("name", RULES)
def test_lists_may_be_switched_off_and_on(name):
    params = parameters()
    optimizer = Hypergradient(params, RULES[name])
    for seed in range(8):
        optimizer.param_groups[0]["foreach"] = seed not in (2, 3, 6)
        run(optimizer, params, [seed])
    assert_alike((optimizer, [p.detach() for p in params]), trained(RULES[name]))


@pytest.mark.parametrize("name", ["sgd", "lr", "betas"])
def test_state_and_parameters_may_be_exchanged_between_steps(name):
    params = parameters()
    optimizer = Hypergradient(params, RULES[name])
    run(optimizer, params, range(3))
    group, fresh = optimizer.param_groups[0], [torch.nn.Parameter(p.detach()) for p in params]
    group["params"] = fresh  # As programs do that grow or prune their model.
    for old, new in zip(params, fresh, strict=True):
        optimizer.state[new] = optimizer.state.pop(old)
    run(optimizer, fresh, range(3, 8))
    assert_alike((optimizer, [p.detach() for p in fresh]), trained(RULES[name]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("name", RULES)
def test_the_memory_of_parameters_may_be_exchanged_between_steps(name, dtype):
    params = parameters(dtype)
    optimizer = Hypergradient(params, RULES[name])
    for seed in range(8):
        run(optimizer, params, [seed])
        for p in params:
            p.data = p.data.clone()
    assert_alike((optimizer, [p.detach() for p in params]), trained(RULES[name], dtype=dtype))


def test_cleared_state_begins_anew():
    params = parameters()
    optimizer = Hypergradient(params, RULES["lr"])
    run(optimizer, params, range(3))
    rate = optimizer.learned().lr
    optimizer.state.clear()
    run(optimizer, params, [3])
    assert optimizer.learned().lr == rate
    assert {s["slots"]["step"] for s in optimizer.state.values()} == {1}


def test_a_state_loaded_before_the_first_step_counts():
    params = parameters()
    optimizer, other = Hypergradient(params, RULES["sgd"]), Hypergradient(params, RULES["sgd"])
    optimizer.load_state_dict({**other.state_dict()})
    run(optimizer, params, range(3))
    assert optimizer.param_groups[0]["lr"] == optimizer.learned().lr > 0.1


def test_hooks_run_and_profiles_have_the_step():
    seen, params = [], parameters()
    optimizer = Hypergradient(params, RULES["sgd"])
    before = optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    after = optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    run(optimizer, params, [0])
    before.remove()
    after.remove()
    run(optimizer, params, [1])
    assert seen == ["before", "after"]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run(optimizer, params, [2])
    assert "Optimizer.step#HypergradientOptimizer.step" in {
        event.key for event in profile.key_averages()
    }


@pytest.mark.parametrize("name", ["betas", "betas, decayed"])
def test_a_saved_state_is_no_larger_than_with_the_pure_rule(name, tmp_path):
    optimizer, _ = trained(RULES[name])
    sizes = []
    for foreach in (True, False):
        optimizer, _ = trained(RULES[name], foreach=foreach)
        torch.save(optimizer.state_dict(), tmp_path / "state")
        sizes.append((tmp_path / "state").stat().st_size)
    assert sizes[0] < 1.1 * sizes[1]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_step_writes_its_derivative_over_the_last(device):
    x, y = (torch.full((3,), z, device=device) for z in (2.0, 6.0))
    batch = ParamBatch({}, [x], [y], [{}])
    [first] = batch.write("direction", "sqrt", [y])
    [second] = batch.write("direction", "addcmul", [y], [x], [x], value=-0.5)
    [third] = batch.write("direction", "div", [y], [second])
    assert first is second is third
    if device == "cpu":
        assert third.tolist() == [1.5] * 3  # 6 / (6 - 0.5 · 2 · 2)


@pytest.mark.parametrize(
    "rule",
    [
        Adam(0.01, beta1=1e-5, tuned=("beta1",), hyper=SGD(1e3)),
        Adam(0.01, beta2=1e-5, tuned=("beta2",), hyper=SGD(1e3)),
        RMSprop(0.01, alpha=1e-5, tuned=("alpha",), hyper=SGD(1e3)),
    ],
)
def test_a_small_rate_of_decay_is_tuned_as_precisely(rule):
    [name] = rule.tuned
    single, double = (
        getattr(trained(rule, range(3), dtype)[0].learned(), name) / getattr(rule, name) - 1
        for dtype in (torch.float32, torch.float64)
    )
    assert single == pytest.approx(double, rel=1e-4, abs=0) != 0


def test_a_weight_without_a_gradient_has_no_hypergradient():
    runs = []
    for shape in ((2,), (3,)):  # The third weight, whose v stays 0, changes nothing.
        w = torch.nn.Parameter(torch.ones(shape))
        optimizer = Hypergradient([w], ADAMS["betas"])
        for seed in range(4):
            w.grad = torch.zeros(shape)
            w.grad[:2] = w.detach()[:2] + 0.1 * seed
            optimizer.step()
        runs.append((optimizer, [w.detach()[:2]]))
    assert_alike(*runs, tolerance=1e-6)
    assert w[2] == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_second_moment_that_has_underflowed_has_no_slope(dtype):
    """Else the square of the gradient, which float32 holds, would be divided by nearly nothing."""
    slots = {"m": torch.full([3], 0.01, dtype=dtype), "v": torch.tensor([0, 1e-4, 1], dtype=dtype)}
    grad = torch.tensor([1e-3, 0, 0], dtype=dtype)
    state = {"slots": slots, "kept": {"grad": grad}, "root": {"eps": 1e-3, "kappa": 10.0}}
    batch = ParamBatch({}, [torch.ones(3, dtype=dtype)], [torch.ones(3, dtype=dtype)], [state])
    (found,) = quotient_dots(batch)["curve"]
    m, v = slots["m"].double()[1:], slots["v"].double()[1:]
    assert found.item() == pytest.approx((v.sqrt() * m / (v.sqrt() + 1e-3) ** 2).sum().item(), 1e-5)
