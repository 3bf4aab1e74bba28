"""Every direction with every step size: either it works, or it is refused in one line."""

from pathlib import Path

import numpy as np
import pytest

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
    Yogi,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "strategies.md"
NAMES = frozenset({"w"})
rng = np.random.default_rng(0)
SOLUTION = np.array([1.0, -2.0, 0.5])
MATRICES = [np.eye(3) / 4 + x @ x.T / 40 for x in rng.normal(size=(4, 3, 3))]


def distance(arrays):
    return float(np.linalg.norm(arrays["w"] - SOLUTION))


DIRECTIONS = {
    "Identity": Identity(),
    "Momentum": Momentum(0.9),
    "Nesterov": Momentum(0.9, nesterov=True),
    "Adagrad": Adagrad(),
    "Adam": Adam(),
    "Yogi": Yogi(),
    "Anderson": Anderson(),
    "ScheduleFree": ScheduleFree(),
}
STEP_SIZES = {
    "Constant": Constant(0.3),
    "Extrapolation": Extrapolation(),
    "RunningExtrapolation": RunningExtrapolation(),
    "RunningRatio": RunningRatio(),
    "GradientDiversity": GradientDiversity(),
    "StochasticPolyak": StochasticPolyak(2.0),
    "HypergradientStep": HypergradientStep(),
    "BarzilaiBorwein": BarzilaiBorwein(),
    "DistanceOverGradients": DistanceOverGradients(),
    "DistanceOverWeightedGradients": DistanceOverWeightedGradients(),
    "LineSearch": LineSearch(distance),
}
# Steps that measure lengths fit directions that are sums of updates; a rescaled coordinate has
# another unit. A step of one's own choice fits all, but where all rounds must have the same.
ALLOWED = {
    "Identity": set(STEP_SIZES),
    "Momentum": {
        *("Constant", "RunningExtrapolation", "RunningRatio", "HypergradientStep", "LineSearch")
    },
    "Nesterov": {"Constant", "RunningRatio", "HypergradientStep", "LineSearch"},
    "Adagrad": {"Constant", "HypergradientStep", "LineSearch"},
    "Adam": {"Constant", "HypergradientStep", "LineSearch"},
    "Yogi": {"Constant", "HypergradientStep", "LineSearch"},
    "Anderson": {"Constant", "RunningRatio", "HypergradientStep", "LineSearch"},
    "ScheduleFree": {"Constant"},
}
PAIRS = [(d, s) for d in DIRECTIONS for s in STEP_SIZES]


def stats_at(w):
    """Of four clients that share the solution, with the losses that Polyak's step asks for."""
    stats = total(
        PseudoGradientStats.of({"w": w}, {"w": w - a @ (w - SOLUTION)}, weight=1.0, trainable=NAMES)
        for a in MATRICES
    )
    loss = sum((w - SOLUTION) @ a @ (w - SOLUTION) / 2 for a in MATRICES)
    return PseudoGradientStats(**{**vars(stats), "loss": loss})


@pytest.mark.parametrize(("direction", "step_size"), PAIRS)
def test_a_pair_comes_closer_to_the_solution_or_is_refused_in_one_line(direction, step_size):
    d, s = DIRECTIONS[direction], STEP_SIZES[step_size]
    if step_size not in ALLOWED[direction]:
        for wrapped in (s, Capped(Relaxed(s, 0.5), 2.0)):
            with pytest.raises(ValueError, match=r"\w+.*: .*\. Use [A-Z]") as caught:
                ServerOptimizer(d, wrapped)
            assert "\n" not in str(caught.value)
        return
    rule, w, state = ServerOptimizer(d, s), {"w": np.zeros(3)}, {}
    for _ in range(30):
        w, state, eta = rule.step(w, stats_at(w["w"]), state)
        assert 0 < eta < np.inf
    assert distance(w) < 0.75 * np.linalg.norm(SOLUTION)


def test_the_document_says_which_pairs_work():
    head = "| direction | step sizes |\n|---|---|\n"
    named = {
        direction: ", ".join(f"`{s}`" for s in STEP_SIZES if s in some)
        for direction, some in ALLOWED.items()
    }
    lines = [f"| `{d}` | {steps} |\n" for d, steps in (named | {"Identity": "all"}).items()]
    assert head + "".join(lines) in DOCUMENT.read_text(encoding="utf-8")
