"""The bound on a step relative to the model."""

import numpy as np
import pytest

from fedexp.config import Config
from fedexp.stats import PseudoGradientStats, total
from fedexp.strategies import (
    Adam,
    BarzilaiBorwein,
    Capped,
    Constant,
    Momentum,
    NesterovExP,
    Relaxed,
    RunningRatio,
    ScheduleFree,
    ServerOptimizer,
    TrustRegion,
)
from fedexp.strategy_factory import strategy_of

NAMES = frozenset({"w", "v"})


def rounds_of(seed, scale, num_rounds=6):
    rng = np.random.default_rng(seed)
    return scale * rng.normal(size=(num_rounds, 3, 5))


def stepped(optimizer, rounds, start):
    """The lengths of iterates and of steps, and the step sizes."""
    params, state, lengths, ways, etas = dict(start), {}, [], [], []
    for updates in rounds:
        ends = ({"w": params["w"] - d[:3], "v": params["v"] - d[3:]} for d in updates)
        stats = total(PseudoGradientStats.of(params, e, weight=1.0, trainable=NAMES) for e in ends)
        new, state, eta = optimizer.step(params, stats, state)
        lengths.append(np.sqrt(sum(np.sum(x**2) for x in params.values())))
        ways.append(np.sqrt(sum(np.sum((new[k] - params[k]) ** 2) for k in new)))
        etas.append(eta)
        params = new
    return np.array(lengths), np.array(ways), np.array(etas)


START = {"w": np.array([3.0, 0.0, 0.0]), "v": np.array([0.0, 4.0])}
RULE = Relaxed(RunningRatio(), 0.5)
NESTEROV = Momentum(0.9, nesterov=True)


@pytest.mark.parametrize("direction", [NESTEROV, Adam()])
def test_a_long_step_is_cut_to_the_share_of_the_model_and_a_short_one_is_kept_to_the_bit(direction):
    inner = RULE if direction == NESTEROV else Constant(3.0)
    long = 5.0 if direction == NESTEROV else 1.0
    bounded = ServerOptimizer(direction, TrustRegion(inner, 0.25))
    lengths, ways, _ = stepped(bounded, rounds_of(0, long), START)
    np.testing.assert_allclose(ways, 0.25 * lengths)
    if direction == NESTEROV:
        free = stepped(ServerOptimizer(direction, inner), rounds_of(0, 1e-3), START)
        np.testing.assert_array_equal(stepped(bounded, rounds_of(0, 1e-3), START), free)
        assert (free[1] < 0.25 * free[0]).all()


def test_a_model_that_is_zero_sets_no_bound():
    zero = {name: 0 * x for name, x in START.items()}
    rule = ServerOptimizer(step_size=TrustRegion(Constant(1.0), 0.1))
    lengths, ways, etas = stepped(rule, rounds_of(1, 1.0, 2), zero)
    assert (lengths[0], etas[0]) == (0.0, 1.0)
    assert ways[1] == pytest.approx(0.1 * lengths[1])


def test_the_preset_bounds_the_step_that_it_takes_where_it_is_asked_to():
    assert NesterovExP().optimizer == ServerOptimizer(NESTEROV, RULE)
    bounded = ServerOptimizer(NESTEROV, TrustRegion(RULE, 0.2))
    assert NesterovExP(max_relative_step=0.2).optimizer == bounded
    made = strategy_of(Config(), "nesterovexp(max-relative-step=0.2)", 4)
    assert made.optimizer == bounded
    capped = NesterovExP(max_relative_step=0.2, max_step_size=2.0).optimizer.step_size
    assert capped == Capped(TrustRegion(RULE, 0.2), 2.0)


def test_what_the_inner_rule_needs_holds_for_the_whole():
    assert ServerOptimizer(step_size=TrustRegion(BarzilaiBorwein())).needs_all_clients
    with pytest.raises(ValueError, match="cannot step along Adam"):
        ServerOptimizer(Adam(), TrustRegion(RunningRatio()))
    with pytest.raises(ValueError, match="Use Constant, not TrustRegion"):
        ServerOptimizer(ScheduleFree(), TrustRegion(Constant(1.0)))
    with pytest.raises(ValueError, match=r"TrustRegion\(radius=0\): must be > 0"):
        TrustRegion(Constant(1.0), 0)
