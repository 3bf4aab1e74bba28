"""The server's step by trial on its own data."""

import re
from pathlib import Path

import numpy as np
import pytest

from fedexp.stats import PseudoGradientStats, total
from fedexp.strategies import (
    Adam,
    Anderson,
    Capped,
    Constant,
    FedAvg,
    FedOpt,
    Identity,
    LineSearch,
    Momentum,
    ServerOptimizer,
)
from fedexp.strategies.privacy import needs_norms

rng = np.random.default_rng(0)
PARAMS = {"w": rng.normal(size=3), "norm.running_var": np.ones(2)}
STATS = total(
    PseudoGradientStats.of(PARAMS, after, weight=1.0, trainable=frozenset({"w"}))
    for after in ({"w": rng.normal(size=3), "norm.running_var": np.full(2, 3.0)} for _ in range(2))
)
STEPS = (4.0, 0.25, 1.0, 2.0)


@pytest.mark.parametrize("direction", [Identity(), Momentum(0.9, nesterov=True), Adam()])
def test_it_is_the_best_candidate_along_any_direction_with_one_evaluation_for_each(direction):
    seen = []

    def loss(arrays):
        assert arrays["norm.running_var"].tolist() == [3.0, 3.0]  # the buffers of the new model
        seen.append(arrays["w"])
        return np.sum((arrays["w"] - 0.2) ** 2)

    params, state, eta = ServerOptimizer(direction, LineSearch(loss, STEPS)).step(PARAMS, STATS, {})
    d, _ = direction(STATS.mean_update, {})
    tried = [PARAMS["w"] - step * d["w"] for step in sorted(STEPS)]
    np.testing.assert_allclose(seen, tried)
    losses = [np.sum((w - 0.2) ** 2) for w in tried]
    assert eta == sorted(STEPS)[int(np.argmin(losses))]
    np.testing.assert_allclose(params["w"], tried[int(np.argmin(losses))])
    assert not {"iterate", "model", "shift"} & state.keys()


def test_a_shift_of_the_direction_is_part_of_what_is_tried():
    rule, params, state = ServerOptimizer(Anderson(), Constant(1.0)), {"w": np.ones(2)}, {}
    spread = np.array([0.5, 0.1])
    for _ in range(2):
        end = {"w": params["w"] * (1 - spread)}
        stats = PseudoGradientStats.of(params, end, weight=1.0, trainable=frozenset({"w"}))
        before, (params, state, _) = (params, state), rule.step(params, stats, state)
    tried = []
    search = LineSearch(lambda arrays: tried.append(arrays["w"]) or 0.0, (1.0,))
    ServerOptimizer(Anderson(), search).step(before[0], stats, before[1])
    np.testing.assert_allclose(tried[0], params["w"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.0])
def test_of_equal_losses_and_of_none_that_is_finite_the_shortest_step_is_taken(value):
    rule = ServerOptimizer(step_size=LineSearch(lambda arrays: value, STEPS))
    assert rule.step(PARAMS, STATS, {})[2] == 0.25


def test_a_loss_that_is_not_finite_is_not_chosen():
    losses = iter([float("nan"), 7.0, float("inf"), 9.0])
    rule = ServerOptimizer(step_size=LineSearch(lambda arrays: next(losses), STEPS))
    assert rule.step(PARAMS, STATS, {})[2] == 1.0


def test_it_needs_no_norms_and_a_cap_is_not_overstepped():
    def fails(arrays):
        raise AssertionError

    assert not needs_norms(LineSearch(fails))
    rule = LineSearch(lambda arrays: -float(np.sum(arrays["w"])), STEPS)
    strategy = FedOpt(optimizer=ServerOptimizer(step_size=rule), max_step_size=0.3)
    assert strategy.optimizer.step_size == Capped(rule, 0.3)
    assert strategy.optimizer.step(PARAMS, STATS, {})[2] <= 0.3
    assert FedAvg().optimizer.averages


@pytest.mark.parametrize("candidates", [(), (0.0, 1.0), (-1.0,), (float("inf"),), (float("nan"),)])
def test_candidates_are_positive(candidates):
    with pytest.raises(ValueError, match="must be positive numbers"):
        LineSearch(lambda arrays: 0.0, candidates)


def test_the_example_of_the_document_runs_and_its_steps_are_among_the_candidates():
    text = (Path(__file__).parents[2] / "docs" / "strategies.md").read_text(encoding="utf-8")
    (block,) = (x for x in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "LineSearch" in x)
    shown = {}
    exec(block, shown)
    steps = [row["server-step-size"] for row in shown["run"].metrics]
    assert len(steps) == 2
    assert set(steps) <= {0.5, 1.0, 2.0, 4.0}
