"""Armijo's line search, privately: which step along a noisy gradient decreases the loss enough.

Chen & Lee 2020 (arXiv:2008.07978) search by the sparse vector technique, so that steps which are
rejected cost nothing. Only the abstract of their paper was at hand: what a step is compared with,
how differences are clipped and how the square of the gradient is corrected are of our own design.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from fedexp.privacy.mechanisms import Floats, first_above
from fedexp.privacy.noise import Noise


@dataclass(frozen=True)
class ArmijoSearch:
    """Tries ``η = η₀, β η₀, β² η₀, …`` and takes the first that decreases the loss enough.

    The test is ``Σ clip(ℓᵢ(w) - ℓᵢ(w - η g)) >= c η ‖g‖² n`` over the examples drawn, where ``n``
    is their expected number. A difference is clipped to ``±η L``, by which a step changes a loss of
    slope ``L`` along ``g``; so all answers, over ``η L``, have sensitivity 1.

    Attributes:
        first: ``η₀``.
        shrink: ``β`` in (0, 1).
        decrease: ``c`` in [0, 1).
        max_tries: steps tried at most; the last is taken if none passes.

    Raises:
        ValueError: one of them is out of its range.

    Example:
        >>> import numpy as np
        >>> from fedexp.privacy import SystemNoise
        >>> from fedexp.privacy.line_search import ArmijoSearch
        >>> loss = lambda w: np.array([w * w / 2])
        >>> search = ArmijoSearch(first=4.0, decrease=0.25)  # of w^2/2 it takes any step <= 1.5
        >>> search(lambda eta: loss(1.0) - loss(1.0 - eta), 1.0, 1, 1e9, 0.0, SystemNoise())
        1.0
    """

    first: float = 1.0
    shrink: float = 0.5
    decrease: float = 0.1
    max_tries: int = 8

    def __post_init__(self) -> None:
        rules = {
            "first": 0 < self.first < float("inf"),
            "shrink": 0 < self.shrink < 1,
            "decrease": 0 <= self.decrease < 1,
            "max_tries": self.max_tries >= 1,
        }
        for name, holds in rules.items():
            if not holds:
                raise ValueError(f"ArmijoSearch({name}={getattr(self, name)}): out of its range.")

    def steps(self) -> list[float]:
        """All that are tried, in order."""
        return [self.first * self.shrink**k for k in range(self.max_tries)]

    def __call__(
        self,
        differences: Callable[[float], Floats],
        sq_norm: float,
        size: float,
        slope: float,
        scale: float,
        noise: Noise,
    ) -> float:
        """The step; with ``scale`` of ``b`` it is ``2/b``-private.

        Args:
            differences: ``η ->`` ``ℓᵢ(w) - ℓᵢ(w - η g)`` of the examples drawn, in any order.
            sq_norm: ``‖g‖²``, or an estimate of it, that does not depend on the examples otherwise
                than through ``g``.
            size: ``n``, fixed before.
            slope: ``L > 0``.
            scale: ``b``.
            noise: where it comes from.
        """
        steps = self.steps()
        answers = self.answers(differences, sq_norm, size, slope)
        index = first_above(answers, scale, noise)
        return steps[-1 if index is None else index]

    def answers(
        self, differences: Callable[[float], Floats], sq_norm: float, size: float, slope: float
    ) -> Iterator[float]:
        """What is compared with the threshold, of every step that is asked for."""
        for eta in self.steps():
            # A loss that is not a number counts as the greatest increase.
            ratios = np.nan_to_num(differences(eta) / (eta * slope), nan=-1.0)
            total = float(np.clip(ratios, -1.0, 1.0).sum())
            yield total - self.decrease * sq_norm * size / slope
