"""Bounds on what one client can do to a round: clipping, and the dropping of outliers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedexp import keys
from fedexp.stats import PseudoGradientStats
from fedexp.strategies.directions import State
from fedexp.strategies.extensions import Adapted, Extension, Received
from fedexp.strategies.kinds import with_kinds


class Clip(Extension):
    """A bound ``C`` on the norm of an update; ``Δᵢ`` counts as ``min(1, C/‖Δᵢ‖) Δᵢ``.

    The bound is known before the round begins, so that workers apply it and merge their replies.
    Metrics: ``max-update-norm`` (``C``) and ``num-clipped``.
    """

    keeps_mean = True

    def bound(self, state: State) -> float:
        """``C`` of the coming round."""
        raise NotImplementedError

    def adapt(self, stats: PseudoGradientStats, state: State) -> State:
        """The state after a round of ``stats``; as it is for a bound that is always the same."""
        return state

    def reading(self, state: State) -> Mapping[str, Any]:
        """Longer updates are scaled down as they are read."""
        return {"max_norm": self.bound(state)}

    def aggregate(self, received: Received, stats: PseudoGradientStats, state: State) -> Adapted:
        """The sums are of clipped updates already; the next bound follows from how many were."""
        clipped = received.stats.num_clipped
        metrics = {keys.MAX_UPDATE_NORM: self.bound(state), keys.NUM_CLIPPED: clipped}
        return Adapted(stats, self.adapt(received.stats, state), metrics)


@dataclass(frozen=True)
@with_kinds
class FixedClip(Clip):
    """The same bound every round: ``sᵢ = min(1, C/‖Δᵢ‖)``.

    Attributes:
        max_norm: ``C > 0``, in parameter units.

    Raises:
        ValueError: the bound is not positive.

    Example:
        >>> from fedexp.strategies import FedExP, FixedClip
        >>> FedExP(clip=FixedClip(0.5)).reading().max_norm
        0.5
    """

    max_norm: float

    def __post_init__(self) -> None:
        if not self.max_norm > 0:
            raise ValueError(f"FixedClip(max_norm={self.max_norm}): must be > 0. Use clip=None.")

    def bound(self, state: State) -> float:
        """``max_norm``."""
        return self.max_norm


@dataclass(frozen=True)
@with_kinds
class QuantileClip(Clip):
    """A bound that follows a quantile of the norms: ``C ← C exp(-κ (b - q))``.

    ``b`` is the share of the round's clients with ``‖Δᵢ‖ ≤ C``. Andrew, Thakkar, McMahan &
    Ramaswamy 2021, arXiv:1905.03871, without noise on ``b``.

    Attributes:
        initial: ``C`` of round 1, > 0, in parameter units.
        quantile: ``q``, in [0, 1]; 0.5 follows the median.
        rate: ``κ > 0``; ``C`` changes by at most a factor ``exp(κ)`` a round.

    Raises:
        ValueError: an attribute is out of its range.

    Example:
        All four updates are longer than the bound, so it grows by ``exp(0.2 · 0.5)``:

        >>> from fedexp.stats import PseudoGradientStats
        >>> from fedexp.strategies import QuantileClip
        >>> clip = QuantileClip(initial=1.0, quantile=0.5, rate=0.2)
        >>> state = clip.adapt(PseudoGradientStats(count=4, num_clipped=4), {})
        >>> round(clip.bound(state), 4)
        1.1052
    """

    initial: float = 0.1
    quantile: float = 0.5
    rate: float = 0.2

    def __post_init__(self) -> None:
        if not self.initial > 0:
            raise ValueError(f"QuantileClip(initial={self.initial}): must be > 0. Use 0.1.")
        if not 0 <= self.quantile <= 1:
            raise ValueError(f"QuantileClip(quantile={self.quantile}): must be in [0, 1]. Use 0.5.")
        if not self.rate > 0:
            raise ValueError(f"QuantileClip(rate={self.rate}): must be > 0. Use FixedClip.")

    def bound(self, state: State) -> float:
        """``C`` of the coming round."""
        return float(state["clip"]["max-norm"]) if "clip" in state else self.initial

    def adapt(self, stats: PseudoGradientStats, state: State) -> State:
        """The state with the next ``C``."""
        # If more clients are within C than the quantile asks for, C is too large and shrinks. It
        # does so by a factor, so that a start that is far off is corrected in a few rounds.
        within = 1 - stats.num_clipped / stats.count
        bound = self.bound(state) * math.exp(-self.rate * (within - self.quantile))
        return state | {"clip": {"max-norm": np.asarray(bound)}}


@dataclass(frozen=True)
@with_kinds
class DropBeyond(Extension):
    """Drop updates that are longer than ``k`` times the round's median norm.

    The median is known when the last reply has come, so the server holds all of a round.

    Attributes:
        multiple: ``k ≥ 1``, in medians.

    Raises:
        ValueError: ``k`` is less than 1, so that half of the clients would be dropped.

    Example:
        >>> from fedexp.strategies.robustness import DropBeyond
        >>> DropBeyond(3.0).drop([1.0, 2.0, 30.0])
        {2: "its update's norm 30 is over 3.0 x the median."}
    """

    keeps_mean = True

    multiple: float

    def __post_init__(self) -> None:
        if not self.multiple >= 1:
            raise ValueError(f"FedOpt(drop_beyond={self.multiple}): must be >= 1. Use 5.0.")

    def drop(self, norms: Sequence[float]) -> dict[int, str]:
        """The places of norms that are too long, with the reason."""
        limit = self.multiple * float(np.median(norms)) if norms else 0.0
        reason = "its update's norm {:.3g} is over {} x the median."
        return {
            i: reason.format(norm, self.multiple) for i, norm in enumerate(norms) if norm > limit
        }
