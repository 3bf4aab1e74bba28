"""The server's side of a step size under Flower's SecAgg+: the mean of the squared norms.

Secure aggregation shows the server the clients' weighted mean and nothing else. FedExP needs one
more number, ``Σ pᵢ‖Δᵢ‖²/Σ pᵢ``, which is a mean as well: so it can travel under the same mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from logging import WARNING
from typing import Any, ClassVar

import numpy as np
from flwr.common.logger import log
from numpy.typing import NDArray

from fedexp import keys
from fedexp.arrays import Arrays, sq_norm
from fedexp.stats import PseudoGradientStats
from fedexp.strategies.directions import State
from fedexp.strategies.extensions import Adapted, Extension, Received, RoundInProgress, Sent
from fedexp.strategies.kinds import with_kinds


@dataclass(frozen=True)
@with_kinds
class SecureNorms(Extension):
    """Take the mean squared norm from an array that the clients add to their model.

    ``‖Δᵢ‖²/S`` must be at most ``clipping_range · max_weight / num_examples``, that is 8 or more
    with Flower's defaults; a client whose update is longer fails, and is never cut silently. The
    smaller ``S``, the finer the number: SecAgg+ rounds it to about ``S/10⁶`` for a client of
    ``max_weight`` examples, and ``clients.secure`` sends it 256 times to divide that by 16.

    The mean of the norms themselves stays unknown: ``mean-update-norm`` is the root of the mean
    square here, which is at least as large.

    Attributes:
        scale: ``S > 0``, in squared parameter units.

    Raises:
        ValueError: ``scale`` is not positive.

    Example:
        >>> from fedexp.strategies import legacy
        >>> from fedexp.strategies.secure import SecureNorms
        >>> legacy.FedExP(secure=SecureNorms(scale=2.0)).strategy.extensions.find(SecureNorms)
        SecureNorms(scale=2.0)
    """

    keeps_mean: ClassVar[bool] = True
    needs_updates: ClassVar[bool] = False

    scale: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise ValueError(
                f"SecureNorms(scale={self.scale}): must be > 0 and finite. Use about a quarter of "
                "the largest squared norm of an update."
            )

    def send(self, round_: RoundInProgress, state: State) -> Sent:
        """``S``, and the numbers of the arrays that count."""
        moved = [str(i) for i, x in enumerate(round_.params) if x in round_.reading.trainable]
        return Sent({keys.SECURE_NORM_SCALE: self.scale, keys.SECURE_NORM_ARRAYS: " ".join(moved)})

    def opened(
        self, owner: str, arrays: Sequence[NDArray[Any]], model: Arrays
    ) -> tuple[list[NDArray[Any]], float]:
        """The mean model and ``Σ pᵢ‖Δᵢ‖²/Σ pᵢ`` from what SecAgg+ has unmasked.

        Args:
            owner: name of the strategy.
            arrays: of the mean, with the one that the clients have added at the end.
            model: what was broadcast.

        Raises:
            ValueError: there is no such array.
        """
        if len(arrays) != len(model) + 1:
            raise ValueError(
                f"{owner}(secure={self}): {len(arrays)} arrays came for a model of {len(model)}, "
                "and no squared norm after them. Use ClientApp(mods=[secaggplus_mod, "
                "squared_norm_mod]); it is in fedexp.clients.secure."
            )
        mean = [  # those without dimensions travel with one
            x.reshape(w.shape) if x.size == w.size else x
            for x, w in zip(arrays, model.values(), strict=False)
        ]
        return mean, max(0.0, self.scale * float(np.mean(arrays[-1])))

    def aggregate(self, received: Received, stats: PseudoGradientStats, state: State) -> Adapted:
        """The sums with the squared norms of the clients in place of the mean's."""
        if keys.MEAN_SQ_NORM not in received.metrics[0]:
            raise ValueError(
                f"{self}: it is for secure aggregation, which Flower has in its older API alone. "
                "Use fedexp.strategies.legacy and secure=True."
            )
        mean = float(received.metrics[0][keys.MEAN_SQ_NORM])
        least = sq_norm(stats.mean_update)
        if mean < 0.99 * least:  # by Jensen's inequality it is not below
            log(
                WARNING,
                "Mean squared norm %.3g, but that of the mean is %.3g: a client cut its number, "
                "or updates are as small as the rounding of SecAgg+.",
                mean,
                least,
            )
        known = replace(stats, sq_norm=stats.weight * mean, norm=stats.weight * mean**0.5)
        return Adapted(known, {}, {keys.MEAN_SQ_NORM: mean})


def secure_norms(secure: bool | SecureNorms) -> list[Extension]:
    """The extension that an argument ``secure`` stands for."""
    if not isinstance(secure, bool | SecureNorms):
        raise ValueError(f"FedOpt(secure={secure!r}): cannot be that. Use secure=True.")
    return [SecureNorms() if secure is True else secure] if secure else []
