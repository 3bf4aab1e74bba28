"""Local privacy: clients hide their updates themselves, and the server corrects the lengths."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedexp import keys
from fedexp.privacy.federated import client_epsilon
from fedexp.privacy.noise import noise_of
from fedexp.stats import PseudoGradientStats
from fedexp.strategies.directions import State
from fedexp.strategies.extensions import Adapted, Received, RoundInProgress, Sent
from fedexp.strategies.kinds import with_kinds
from fedexp.strategies.private import Private

_STATE = "local-privacy"


@dataclass(frozen=True)
@with_kinds
class LocalPrivacy(Private):
    """Differential privacy of each client against everybody, the server too.

    A client sends ``cᵢ = Δᵢ min(1, C/‖Δᵢ‖) + N(0, σ² I)`` with ``σ = 2zC``: two updates of length
    ``C`` differ by up to ``2C``. It tells neither its loss nor how many examples it has, so all
    clients weigh alike. Noise makes ``‖cᵢ‖²`` longer by ``dσ²`` and ``‖mean cᵢ‖²`` by ``dσ²/M`` in
    expectation, for ``d`` parameters and ``M`` clients, so the ratio in FedExP's step would tend to
    ``M``; the server takes both off. What is left varies a lot from round to round, and with much
    noise its running means do too: cap the step (``FedExP(max_step_size=3.0)``).
    ``privacy-epsilon`` is that of a client that takes part in every round. The clients must be
    ``fedexp.clients``, which know the settings: a reply that claims no noise is dropped, and so is
    one that is longer than its noise makes it.

    The corrections are derived here; the formulae of DP-FedEXP, arXiv:2504.09850, were not at hand.

    Attributes:
        noise_multiplier: ``z``, at least 0.3.
        clip: ``C``, in parameter units.
        delta: ``δ``.
        seed: fixes the noise, for tests and figures; by default it is the clients' system's.

    Raises:
        ValueError: an attribute is out of its range.

    Example:
        >>> from fedexp.strategies import LocalPrivacy
        >>> LocalPrivacy(noise_multiplier=1.0, clip=0.5).sigma
        1.0
    """

    noise_multiplier: float = 1.0
    clip: float = 1.0
    delta: float = 1e-5
    seed: int | None = None

    def __post_init__(self) -> None:
        self.check_ranges()
        noise_of(self.seed)  # which warns of a seed

    @property
    def sigma(self) -> float:
        """``σ``, in parameter units."""
        return 2 * self.noise_multiplier * self.clip

    def reading(self, state: State) -> Mapping[str, Any]:
        """All clients weigh alike, and all must have added noise; a bound would clip it too."""
        return {"uniform": True, "narrows": False, "noise": self.sigma}

    def send(self, round_: RoundInProgress, state: State) -> Sent:
        """What the clients are to do; the round counts from now on."""
        told = {keys.LOCAL_NOISE: self.sigma, keys.LOCAL_CLIP: self.clip}
        seeded = {} if self.seed is None else {keys.LOCAL_SEED: self.seed}
        rounds = float(state.get(_STATE, {"rounds": 0.0})["rounds"]) + 1
        return Sent({**told, **seeded}, state={_STATE: {"rounds": np.asarray(rounds)}})

    def aggregate(self, received: Received, stats: PseudoGradientStats, state: State) -> Adapted:
        """The sums as they are, with lengths corrected for the noise."""
        dimension = sum(x.size for x in stats.update.values())
        added = stats.count * dimension * self.sigma**2
        sq_norm = stats.sq_norm - added
        norm = math.sqrt(max(0.0, sq_norm) * stats.weight)  # the root of the mean square
        sums = replace(stats, sq_norm=sq_norm, norm=norm, buffers={}, noise=added)
        return Adapted(
            sums,
            metrics={keys.PRIVACY_EPSILON: self.epsilon(state), keys.PRIVACY_DELTA: self.delta},
        )

    def epsilon(self, state: State) -> float:
        """``ε`` at ``delta`` of a client that took part in all rounds that ``state`` knows of."""
        rounds = int(state[_STATE]["rounds"]) if _STATE in state else 0
        return client_epsilon(self.noise_multiplier, 1.0, rounds, self.delta)
