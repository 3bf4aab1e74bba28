import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedexp.arrays import trainable_names
from fedexp.stats import PseudoGradientStats, total
from fedexp.strategies import (
    Adagrad,
    Adam,
    Anderson,
    BarzilaiBorwein,
    Capped,
    Constant,
    DistanceOverGradients,
    DistanceOverWeightedGradients,
    Extrapolation,
    GradientDiversity,
    HypergradientStep,
    Identity,
    LineSearch,
    Momentum,
    Relaxed,
    RunningExtrapolation,
    RunningRatio,
    ScheduleFree,
    ServerOptimizer,
    StochasticPolyak,
    TrustRegion,
    Yogi,
)
from fedexp.strategies.step_sizes import ITERATE

RULES = {
    "average": ServerOptimizer(),
    "long": ServerOptimizer(Identity(), Constant(1.7)),
    "heavy ball": ServerOptimizer(Momentum(0.9)),
    "nesterov": ServerOptimizer(Momentum(0.9, nesterov=True)),
    "adagrad": ServerOptimizer(Adagrad(), Constant(0.1)),
    "adam": ServerOptimizer(Adam(), Constant(0.1)),
    "adam corrected": ServerOptimizer(Adam(bias_correction="adam"), Constant(0.1)),
    "adam of flower": ServerOptimizer(Adam(initial=0.0, bias_correction="flower"), Constant(0.1)),
    "yogi": ServerOptimizer(Yogi(), Constant(0.1)),
    "fedexp": ServerOptimizer(Identity(), Extrapolation()),
    "fedexp decaying": ServerOptimizer(Identity(), Extrapolation(0.1, 0.9, True)),
    "fedexp capped": ServerOptimizer(Identity(), Capped(Extrapolation(), 1.2)),
    "fedexp relaxed": ServerOptimizer(Identity(), Relaxed(Extrapolation(), 0.8)),
    "fedexp with momentum": ServerOptimizer(Momentum(0.9), RunningExtrapolation()),
    "running ratio": ServerOptimizer(Identity(), RunningRatio()),
    "running ratio along nesterov": ServerOptimizer(
        Momentum(0.9, nesterov=True), Relaxed(RunningRatio(), 0.5)
    ),
    "grads": ServerOptimizer(Identity(), GradientDiversity()),
    "stops": ServerOptimizer(Identity(), StochasticPolyak(2.0)),
    "hyper": ServerOptimizer(Identity(), HypergradientStep()),
    "hyper of adam": ServerOptimizer(Adam(), HypergradientStep(normalised=True)),
    "barzilai-borwein": ServerOptimizer(Identity(), BarzilaiBorwein()),
    "barzilai-borwein capped": ServerOptimizer(Identity(), Capped(BarzilaiBorwein(), 2.0)),
    "dog": ServerOptimizer(Identity(), DistanceOverGradients()),
    "anderson": ServerOptimizer(Anderson(), RunningRatio(0.0)),
    "anderson mixed": ServerOptimizer(Anderson(2), Capped(Constant(0.5), 2.0)),
    "within a trust region": ServerOptimizer(
        Momentum(0.9, nesterov=True), TrustRegion(Relaxed(RunningRatio(), 0.5), 0.1)
    ),
    "line search": ServerOptimizer(step_size=LineSearch(lambda x: float(np.abs(x["scale"])))),
    "line search along anderson": ServerOptimizer(
        Anderson(), LineSearch(lambda x: float(np.sum(x["weight"] ** 2)), (0.3, 3.0))
    ),
    "schedule-free": ServerOptimizer(ScheduleFree(), Constant(2.0)),
    "dowg": ServerOptimizer(Identity(), DistanceOverWeightedGradients()),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())

NAMES = frozenset({"weight", "scale"})


def model(rng, dtype=np.float64):
    return {
        "weight": rng.normal(size=(3, 2)).astype(dtype),
        "scale": np.asarray(rng.normal(), dtype),
        "norm.running_var": rng.uniform(1, 2, size=3).astype(dtype),
        "norm.num_batches_tracked": np.asarray(rng.integers(100)),
    }


def round_of(before, afters, weights=(1.0, 2.0, 3.0)):
    parts = [
        PseudoGradientStats.of(before, after, weight=p, trainable=trainable_names(before))
        for after, p in zip(afters, weights, strict=False)
    ]
    stats = total(parts)
    return PseudoGradientStats(**{**vars(stats), "loss": stats.weight})


def rounds(rule, params, state, seed, num_rounds):
    rng = np.random.default_rng(seed)
    for _ in range(num_rounds):
        params, state, eta = rule.step(
            params, round_of(params, [model(rng) for _ in range(3)]), state
        )
    return params, state, eta


@every_rule
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_names_shapes_and_dtypes_are_kept(rule, dtype):
    rng = np.random.default_rng(0)
    params, state = model(rng, dtype), {}
    for _ in range(3):
        new, state, eta = rule.step(params, round_of(params, [model(rng, dtype)] * 2), state)
        assert type(eta) is float
        assert [(k, x.shape, x.dtype) for k, x in new.items()] == [
            (k, x.shape, x.dtype) for k, x in params.items()
        ]
        params = new


@every_rule
def test_buffers_are_the_mean_of_the_clients_whatever_the_rule(rule):
    rng = np.random.default_rng(1)
    params, afters = model(rng), [model(rng) for _ in range(3)]
    new, _, _ = rule.step(params, round_of(params, afters, (1.0, 1.0, 2.0)), {})
    for name in params.keys() - NAMES:
        mean = np.average([a[name] for a in afters], axis=0, weights=[1, 1, 2])
        expected = np.rint(mean) if params[name].dtype.kind == "i" else mean
        np.testing.assert_allclose(new[name], expected)


@every_rule
@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(4)), cut=st.integers(0, 4), seed=st.integers(0, 99))
def test_order_and_grouping_of_clients_do_not_matter(rule, order, cut, seed):
    rng = np.random.default_rng(seed)
    params, afters = model(rng), [model(rng) for _ in range(4)]
    weights = rng.uniform(1, 5, size=4).tolist()
    parts = [
        PseudoGradientStats.of(params, a, weight=p, trainable=NAMES)
        for a, p in zip(afters, weights, strict=True)
    ]
    parts = [PseudoGradientStats(**{**vars(s), "loss": s.weight}) for s in parts]
    shuffled = [parts[i] for i in order]
    _, state, _ = rounds(rule, params, {}, seed, 1)
    one, _, eta_one = rule.step(params, total(parts), state)
    two, _, eta_two = rule.step(params, total(shuffled[:cut]) + total(shuffled[cut:]), state)
    assert eta_one == pytest.approx(eta_two, rel=1e-9)
    for name in params:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-9, atol=1e-12)


@every_rule
def test_state_saved_and_loaded_gives_the_same_continuation(rule):
    params, state, _ = rounds(rule, model(np.random.default_rng(2)), {}, 3, 3)
    file = io.BytesIO()
    np.savez(file, **{f"{owner}/{k}": x for owner, xs in state.items() for k, x in xs.items()})
    file.seek(0)
    loaded = {}
    for key, x in np.load(file).items():
        owner, name = key.split("/", 1)
        loaded.setdefault(owner, {})[name] = x
    for a, b in zip(rounds(rule, params, state, 4, 3), rounds(rule, params, loaded, 4, 3)):  # noqa: B905
        np.testing.assert_equal(a, b)


@every_rule
def test_a_zero_update_moves_nothing(rule):
    params = model(np.random.default_rng(5))
    new, _, _ = rule.step(params, round_of(params, [params] * 3), {})
    np.testing.assert_equal(new, params)


@every_rule
def test_nothing_that_came_in_is_changed(rule):
    params = model(np.random.default_rng(6))
    _, state, _ = rounds(rule, params, {}, 7, 2)
    stats = round_of(params, [model(np.random.default_rng(8))])
    copies = [
        {k: x.copy() for k, x in params.items()},
        {k: x.copy() for k, x in stats.update.items()},
    ]
    owners = {owner: {k: x.copy() for k, x in xs.items()} for owner, xs in state.items()}
    rule.step(params, stats, state)
    np.testing.assert_equal([params, dict(stats.update), state], [*copies, owners])


@every_rule
def test_the_new_model_is_a_step_along_one_direction(rule):
    params = model(np.random.default_rng(9))
    stats = round_of(params, [model(np.random.default_rng(10))] * 2)
    new, _, eta = rule.step(params, stats, {})
    direction, _ = rule.direction(stats.mean_update, {ITERATE: params})
    for name in NAMES:
        np.testing.assert_allclose(new[name], params[name] - eta * direction[name])


@pytest.mark.parametrize("direction", [Identity(), Momentum(0.9), lambda d, state: (d, {})])
def test_a_rule_of_ones_own_may_keep_nothing_of_the_state(direction):
    params = model(np.random.default_rng(11))
    stats = round_of(params, [model(np.random.default_rng(12))] * 2)
    rule = ServerOptimizer(direction, lambda stats, d, state: (0.5, {}))
    new, state, _ = rule.step(params, stats, {})
    assert state == {}
    for name in NAMES:
        np.testing.assert_allclose(new[name], params[name] - 0.5 * stats.mean_update[name])


def test_a_rule_of_ones_own_may_remember_numbers():
    params = model(np.random.default_rng(11))
    stats = round_of(params, [params] * 2)
    arrays = {"x": np.ones(2)}

    def step_size(stats, direction, state):
        t = 1 + float(state.get("own", {"t": 0})["t"])
        return 1 / t, {**state, "own": {"t": t}, "other": arrays}

    rule, state, sizes = ServerOptimizer(step_size=step_size), {}, []
    for _ in range(3):
        _, state, eta = rule.step(params, stats, state)
        sizes.append(eta)
    assert sizes == [1, 1 / 2, 1 / 3]
    assert isinstance(state["own"]["t"], np.ndarray)
    assert state["other"] is arrays


@pytest.mark.parametrize("entry", [3.0, None, {"t": "now"}, {"t": None}, [1.0]])
def test_what_no_checkpoint_could_hold_is_refused(entry):
    params = model(np.random.default_rng(11))
    rule = ServerOptimizer(step_size=lambda stats, d, state: (1.0, {"own": entry}))
    with pytest.raises(ValueError, match=r"state\['own'\]=.*can remember a dict of arrays"):
        rule.step(params, round_of(params, [params] * 2), {})
