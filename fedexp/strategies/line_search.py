"""The server's step by trial: the one of a few that does best on data of the server's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from fedexp.arrays import Arrays, Float64s
from fedexp.stats import PseudoGradientStats
from fedexp.strategies.directions import State
from fedexp.strategies.step_sizes import after_step


@dataclass(frozen=True)
class LineSearch:
    """The best of a few steps, ``η = argmin f(w - η d)`` over ``candidates``.

    ``f`` is the loss on a validation set that the server holds, such as a part of the training data
    that no client gets; never the test set, which would then not be one any more. It works along
    every direction. Each round costs one evaluation of ``f`` for each candidate, at the server, and
    nothing at the clients. Of equal losses the shortest step is taken, and so it is if none is
    finite. The rule is our own.

    Attributes:
        evaluate: ``f``, from the model's arrays by name to a number.
        candidates: the steps to try, > 0.

    Raises:
        ValueError: there are no candidates, or one is not positive.

    Example:
        ``f`` is least at 0, and from ``w = 4`` along ``d = 1.9`` the step 2 ends closest to it.

        >>> import numpy as np
        >>> from fedexp.stats import PseudoGradientStats
        >>> from fedexp.strategies import LineSearch, ServerOptimizer
        >>> rule = ServerOptimizer(step_size=LineSearch(lambda arrays: float(arrays["w"][0] ** 2)))
        >>> stats = PseudoGradientStats(1, 1.0, {"w": np.array([1.9])}, sq_norm=3.61)
        >>> params, _, eta = rule.step({"w": np.array([4.0])}, stats, {})
        >>> eta, round(params["w"].item(), 6)
        (2.0, 0.2)
    """

    evaluate: Callable[[Arrays], float]
    candidates: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)

    def __post_init__(self) -> None:
        if not self.candidates or not all(0 < eta < math.inf for eta in self.candidates):
            raise ValueError(
                f"LineSearch(candidates={self.candidates}): must be positive numbers. "
                "Use (0.5, 1, 2, 4)."
            )

    def __call__(
        self, stats: PseudoGradientStats, direction: Float64s, state: State
    ) -> tuple[float, State]:
        """The step ``η`` of this round."""
        steps = sorted(map(float, self.candidates))
        losses = [float(self.evaluate(after_step(direction, eta, state))) for eta in steps]
        # A model that has diverged has the loss NaN, which is neither more nor less than another.
        losses = [loss if math.isfinite(loss) else math.inf for loss in losses]
        return steps[losses.index(min(losses))], state
