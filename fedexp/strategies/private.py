"""Rounds that hide what single clients sent: what they have in common, and central privacy.

Under central privacy the server sees the updates and is trusted; whoever sees the models and what
the server reports of the rounds cannot tell whether a client took part. The accounting is in
``fedexp.privacy.federated``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fedexp import keys
from fedexp.arrays import Float64s
from fedexp.privacy.federated import LEAST_MULTIPLIER, client_epsilon
from fedexp.privacy.noise import Noise, SeededNoise, SystemNoise, noise_of
from fedexp.stats import PseudoGradientStats
from fedexp.strategies.directions import State
from fedexp.strategies.dynamic_regularization import DynamicRegularization
from fedexp.strategies.extensions import Adapted, Extension, Received, RoundInProgress, Sent
from fedexp.strategies.extrapolation import RunningExtrapolation
from fedexp.strategies.kinds import with_kinds
from fedexp.strategies.medians import MedianBounds
from fedexp.strategies.normalized_averaging import NormalizedAveraging
from fedexp.strategies.privacy import needs_norms
from fedexp.strategies.proximal import StochasticPolyak
from fedexp.strategies.robustness import Clip, DropBeyond
from fedexp.strategies.scaffold import ServerControlVariate
from fedexp.strategies.step_sizes import StepSize

_STATE = "privacy"
_NORM_SHARE = 0.04  # as 2 on the updates and 10 on their squared norms
_MOST_NOISE, _MOST_CLIP = 1e9, 1e15  # beyond them sums of squares leave the range of floats
_MOST_GROWTH = 10.0  # of the logarithm of the bound in a round
_LEAST_DELTA = 1e-10  # what is less drowns in the tails that the accountant cuts off
# What these take from single clients, or make of their lengths, no noise hides.
_TELLING = (
    *(Clip, DropBeyond, MedianBounds, ServerControlVariate),
    *(NormalizedAveraging, DynamicRegularization),
)
_MISLED = (RunningExtrapolation, StochasticPolyak)


_INSTEAD = {
    "MedianBounds": "Use robust=False (on the command line no --robust).",
    "FixedClip": "Use clip= of the privacy.",
    "QuantileClip": "Use quantile= of the privacy.",
    "DropBeyond": "Leave drop_beyond out: the privacy clips what is too long.",
    "ServerControlVariate": "SCAFFOLD's clients need it: use another strategy.",
}


class Private(Extension):
    """What hides the clients; `CentralPrivacy` and `LocalPrivacy`."""

    is_private = True
    noise_multiplier: float
    clip: float
    delta: float
    seed: int | None

    def fitted(self, given: Sequence[Extension], step_size: StepSize) -> list[Extension]:
        """The extensions of a strategy, with this one made to fit its step size.

        Raises:
            ValueError: one of them, or the step size, uses what is hidden.
        """
        owner = type(self).__name__
        for one in given:
            if one is not self and isinstance(one, (*_TELLING, Private)):
                name = type(one).__name__
                raise ValueError(
                    f"{owner}: {name} depends on what single clients sent, which no noise hides. "
                    f"{_INSTEAD.get(name, 'Leave one of the two out.')}"
                )
        rule: Any = step_size
        while inner := getattr(rule, "step_size", None):  # Capped, Relaxed
            rule = inner
        if isinstance(rule, _MISLED):
            raise ValueError(
                f"{owner}: the step size {type(rule).__name__} is misled by noise, or needs the "
                "clients' losses. Use fedexp, nesterovexp, or a constant step."
            )
        norms = needs_norms(step_size)
        return [self.releasing(norms), *(one for one in given if one is not self)]

    def releasing(self, norms: bool) -> Private:
        """The same, for a step size that does or does not use the squared ``norms``."""
        return self

    def check_ranges(self) -> None:
        """Raise ``ValueError`` for what has no meaning."""
        owner = type(self).__name__
        if not LEAST_MULTIPLIER <= self.noise_multiplier <= _MOST_NOISE:
            raise ValueError(
                f"{owner}(noise_multiplier={self.noise_multiplier}): must be at least "
                f"{LEAST_MULTIPLIER}, with less noise epsilon says nothing, and at most "
                f"{_MOST_NOISE:g}. Use 1.0."
            )
        if not 0 < self.clip <= _MOST_CLIP:
            raise ValueError(
                f"{owner}(clip={self.clip}): must be > 0 and at most {_MOST_CLIP:g}. Use 1.0."
            )
        if not _LEAST_DELTA <= self.delta < 1:
            raise ValueError(
                f"{owner}(delta={self.delta}): must be in (0, 1), and at least {_LEAST_DELTA:g}. "
                "Use 1e-5."
            )
        if self.seed is not None and not (isinstance(self.seed, int) and 0 <= self.seed < 1 << 63):
            raise ValueError(
                f"{owner}(seed={self.seed}): must be a whole number of at least 0. Leave it out."
            )


@dataclass(frozen=True)
@with_kinds
class CentralPrivacy(Private):
    """Differential privacy of each client against whoever sees the models, not the server.

    Each client is asked with probability ``q``, the strategy's ``fraction_train``, whoever else is.
    Its update counts as ``Δᵢ min(1, C/‖Δᵢ‖)``, all with weight 1, and the server steps along

        ``Δ̄ = (Σ Δᵢ + N(0, (z₁C)² I)) / (qN)``

    with ``N`` clients in all. A step size that needs squared norms gets
    ``(Σ ‖Δᵢ‖² + N(0, (z₂C²)²)) / (qN)``, and ``‖Δ̄‖²`` less ``d (z₁C/(qN))²``, what the noise of
    ``d`` parameters adds in expectation. One client more or less moves the sums by at most ``C``
    and ``C²``, so a round costs what one Gaussian of multiplier ``z = (z₁⁻² + z₂⁻²)^(-1/2)`` does.
    With a ``quantile``, ``C ← C exp(-κ (b - γ))`` where ``b`` is the noisy share of clients with
    ``‖Δᵢ‖ ≤ C`` (Andrew et al. 2021, arXiv:1905.03871), with a part of the budget of its own. A
    round that nobody answers releases noise. Metrics: ``privacy-epsilon`` and ``privacy-delta`` of
    all rounds so far, and ``max-update-norm`` (``C``); ``num-clients`` is ``qN``.

    The release of central sums is that of McMahan et al. 2018, arXiv:1710.06963. FedExP's step
    under it is derived here; the formulae of DP-FedEXP, arXiv:2504.09850, were not at hand.

    Attributes:
        noise_multiplier: ``z`` of all that a round releases, at least 0.3.
        clip: ``C``, in parameter units; of round 1 with a ``quantile``.
        delta: ``δ``, below 1 over the number of clients.
        norm_share: of ``z⁻²``, for the squared norms: ``z₂ = z/√share``. By default 0.04, and 0
            where the step size does not need them.
        quantile: ``γ``, in (0, 1), that ``C`` follows; 0 for a fixed ``C``.
        quantile_share: of ``z⁻²``, for that.
        rate: ``κ``.
        num_clients: ``N``, taken as known to everybody; 0 for the nodes of round 1.
        seed: fixes the noise and the cohorts, for tests and figures; by default they are the
            system's.

    Raises:
        ValueError: an attribute is out of its range.

    Example:
        >>> from fedexp.strategies import CentralPrivacy, FedExP
        >>> private = CentralPrivacy(noise_multiplier=2.0, clip=0.5)
        >>> strategy = FedExP(fraction_train=0.1, extensions=[private])
        >>> [round(z, 2) for z in strategy.extensions.find(CentralPrivacy).multipliers]
        [2.04, 10.0, inf]
    """

    samples: ClassVar[bool] = True

    noise_multiplier: float = 1.0
    clip: float = 1.0
    delta: float = 1e-5
    norm_share: float | None = None
    quantile: float = 0.0
    quantile_share: float = 0.02
    rate: float = 0.2
    num_clients: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        self.check_ranges()
        shares = {"norm_share": self.norm_share or 0.0, "quantile_share": self.quantile_share}
        for name, share in shares.items():
            if not 0 <= share < 1:
                raise ValueError(f"CentralPrivacy({name}={share}): must be in [0, 1). Use 0.04.")
        self._check_shares()
        if not 0 <= self.quantile < 1:
            raise ValueError(
                f"CentralPrivacy(quantile={self.quantile}): must be in [0, 1). Use 0.5."
            )
        if self.quantile and not (self.quantile_share > 0 and 0 < self.rate < math.inf):
            raise ValueError(
                f"CentralPrivacy(quantile_share={self.quantile_share}, rate={self.rate}): must be "
                "> 0 with a quantile. Use 0.02 and 0.2."
            )
        if not (isinstance(self.num_clients, int) and 0 <= self.num_clients <= _MOST_CLIP):
            raise ValueError(
                f"CentralPrivacy(num_clients={self.num_clients}): must be a whole number of at "
                "least 0. Use 0, for those of round 1."
            )
        noise_of(self.seed)  # which warns of a seed

    def releasing(self, norms: bool) -> CentralPrivacy:
        """The same, with a part of the budget for the squared ``norms`` if they are needed.

        Raises:
            ValueError: they are needed, and ``norm_share`` is 0.
        """
        if norms and self.norm_share == 0:
            raise ValueError(
                "CentralPrivacy(norm_share=0): the step size needs squared norms. Use 0.04."
            )
        if self.norm_share is not None:
            return self
        # Not replace, which would warn of the seed once more.
        other = object.__new__(type(self))
        other.__dict__.update({**self.__dict__, "norm_share": _NORM_SHARE if norms else 0.0})
        other._check_shares()
        return other

    def _check_shares(self) -> None:
        if not (self.norm_share or 0.0) + self.quantile_share < 1:
            raise ValueError(
                f"CentralPrivacy(norm_share={self.norm_share}, quantile_share="
                f"{self.quantile_share}): nothing is left for the updates. Use 0.04 and 0.02."
            )

    @property
    def multipliers(self) -> tuple[float, float, float]:
        """``z`` of updates, squared norms and the quantile; infinite for what is not released."""
        norms = _NORM_SHARE if self.norm_share is None else self.norm_share
        quantile = self.quantile_share if self.quantile else 0.0
        shares = 1 - norms - quantile, norms, quantile
        first, *rest = (self.noise_multiplier / math.sqrt(x) if x else math.inf for x in shares)
        return first, rest[0], rest[1]

    def bound(self, state: State) -> float:
        """``C`` of the coming round."""
        return float(state[_STATE]["max-norm"]) if _STATE in state else self.clip

    def reading(self, state: State) -> Mapping[str, Any]:
        """Updates are clipped as they are read, all clients weigh alike, none names buffers.

        All send the whole model: if most decided which arrays count, one could tip the balance.
        """
        return {"max_norm": self.bound(state), "uniform": True, "narrows": False, "whole": True}

    def sample(self, nodes: Sequence[int], fraction: float, server_round: int) -> list[int]:
        """Each node with probability ``fraction``; who they are must be a secret as well."""
        draws = self._noise(server_round, 0).uniform(len(nodes))
        return [node for node, u in zip(nodes, draws, strict=True) if u < fraction]

    def send(self, round_: RoundInProgress, state: State) -> Sent:
        """Nothing; but the round counts from now on, whatever becomes of it.

        Raises:
            ValueError: the clients were not drawn as the accounting assumes, or there is no model,
                so that the mean of theirs would become one without noise.
        """
        if not round_.params:
            raise ValueError(
                "CentralPrivacy: an empty model would be replaced by the mean of the clients', "
                "without noise. Start from a model."
            )
        old = state.get(_STATE, {})
        rate = float(old.get("sampling-rate", round_.sampling_rate))
        if not round_.sampling_rate or round_.sampling_rate != rate:
            raise ValueError(
                f"CentralPrivacy: each client must be asked with the same probability in every "
                f"round, not {round_.sampling_rate} after {rate}. Use a strategy of "
                "fedexp.strategies, and one fraction_train > 0 throughout."
            )
        number = float(old.get(keys.NUM_CLIENTS, self.num_clients or round_.num_nodes))
        memory = {
            "rounds": float(old.get("rounds", 0.0)) + 1,
            "max-norm": self.bound(state),
            "sampling-rate": rate,
            keys.NUM_CLIENTS: number,
        }
        return Sent(state={_STATE: {key: np.asarray(x) for key, x in memory.items()}})

    def check(self, received: Received, state: State) -> None:
        """Raise ``ValueError`` for replies of which one client could change more than its own."""
        reading, sums = received.round.reading, received.stats
        moved = set(_shapes(received.round))
        # What is not sent back would leave the model, buffers too, and show that a client was here.
        whole = (
            set(sums.update) == moved and set(sums.buffers) == received.round.params.keys() - moved
        )
        if received.unlike or (sums.count and not whole):
            raise ValueError(
                "CentralPrivacy: clients sent back unlike arrays, or not all of them. "
                "Let all of them send the whole model."
            )
        if reading.divided_by or not reading.uniform or reading.max_norm != self.bound(state):
            raise ValueError("CentralPrivacy: another extension weighs clients. Leave it out.")

    def aggregate(self, received: Received, stats: PseudoGradientStats, state: State) -> Adapted:
        """The private sums, over the expected number of clients ``qN``."""
        # Not of ``stats``, which another extension may have changed beyond what C bounds.
        sums, own = received.stats, state[_STATE]
        noise = self._noise(received.round.server_round, 1)
        bound, (z1, z2, z3) = self.bound(state), self.multipliers
        expected = float(own["sampling-rate"]) * float(own[keys.NUM_CLIENTS])
        update = noisy(sums.update, _shapes(received.round), z1 * bound, noise)
        dimension = sum(x.size for x in update.values())
        sq_norm = sums.sq_norm + z2 * bound**2 * noise.normal(1)[0] if z2 < math.inf else math.nan
        private = PseudoGradientStats(
            count=max(1, round(expected)),
            weight=expected,
            update=update,
            sq_norm=float(sq_norm),
            # Norms are not released. The root of the mean square is at least their mean.
            norm=math.sqrt(max(0.0, sq_norm) * expected) if z2 < math.inf else math.nan,
            noise=dimension * (z1 * bound) ** 2,
        )
        if z3 < math.inf:
            # Of votes of ±½, a client more or less moves the sum by ½.
            votes = sums.count / 2 - sums.num_clipped + z3 / 2 * noise.normal(1)[0]
            # With few clients the vote is noise alone, which must not lead out of all range.
            exponent = -self.rate * (votes / expected + 0.5 - self.quantile)
            bound *= math.exp(min(_MOST_GROWTH, max(-_MOST_GROWTH, exponent)))
            bound = min(_MOST_CLIP, max(1 / _MOST_CLIP, bound))
        memory: State = {_STATE: {**own, "max-norm": np.asarray(bound)}}
        metrics = {
            keys.PRIVACY_EPSILON: self.epsilon(state),
            keys.PRIVACY_DELTA: self.delta,
            keys.MAX_UPDATE_NORM: self.bound(state),
        }
        return Adapted(private, memory, metrics)

    def epsilon(self, state: State) -> float:
        """``ε`` at ``delta`` after the rounds that ``state`` knows of."""
        if _STATE not in state:
            return 0.0
        own = state[_STATE]
        rate, rounds = float(own["sampling-rate"]), int(own["rounds"])
        return client_epsilon(self.noise_multiplier, rate, rounds, self.delta)

    def _noise(self, *key: int) -> Noise:
        return SystemNoise() if self.seed is None else SeededNoise(self.seed, *key)


def noisy(
    sums: Float64s, shapes: Mapping[str, tuple[int, ...]], scale: float, noise: Noise
) -> Float64s:
    """``sums`` plus ``N(0, scale²)`` on every entry; noise alone where there is no sum."""
    found = {}
    for name, shape in shapes.items():
        drawn = scale * noise.normal(math.prod(shape)).reshape(shape)
        found[name] = np.asarray(sums[name] + drawn if name in sums else drawn)
    return found


def _shapes(asked: RoundInProgress) -> dict[str, tuple[int, ...]]:
    """Of the arrays that the step moves."""
    moved = asked.reading.trainable
    return {name: x.shape for name, x in asked.params.items() if name in moved}
