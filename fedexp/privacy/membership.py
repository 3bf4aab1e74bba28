"""Who was trained on? The plainest attack on a model: examples of low loss are guessed members.

Yeom, Giacomelli, Fredrikson & Jha 2018, arXiv:1709.01604, guess by a threshold on the loss. What
this attack finds leaks for certain. What it does not find may leak all the same: attacks that train
models of their own on similar data find more (Carlini et al. 2022, arXiv:2112.03570), and those who
can see single updates more again. It is no bound; an accountant's ``ε`` is one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class LossAttack(NamedTuple):
    """How well a threshold on the loss tells members from others.

    Attributes:
        auc: the probability that a random member has a lower loss than a random other, ties half:
            0.5 for a guess, 1 if they can be told apart without error.
        advantage: the largest difference of true and false positives over all thresholds, in
            [0, 1]. The attacker is given the best of them, which nobody knows beforehand; with few
            examples it is above 0 by chance.
    """

    auc: float
    advantage: float


def loss_attack(members: ArrayLike, others: ArrayLike) -> LossAttack:
    """The attack on a model of which these are the losses; low ones are guessed to be members'.

    ``advantage = max(0, max over c of P(loss ≤ c | member) - P(loss ≤ c | other))``.

    Args:
        members: losses of examples that were trained on, ``[num_members]``.
        others: losses of examples of the same kind that were not, ``[num_others]``.

    Raises:
        ValueError: there are none of either, or a loss is NaN.

    Example:
        One of two members stands out, the other cannot be told from the others.

        >>> from fedexp.privacy.membership import loss_attack
        >>> loss_attack([0.0, 1.0], [1.0, 1.0])
        LossAttack(auc=0.75, advantage=0.5)
    """
    inside, outside = _losses("members", members), _losses("others", others)
    below, at_most = (np.searchsorted(outside, inside, side=s) for s in ("left", "right"))
    larger = outside.size - (below + at_most) / 2  # others above each member; ties count half
    thresholds = np.concatenate([inside, outside])
    found = [np.searchsorted(x, thresholds, side="right") / x.size for x in (inside, outside)]
    advantage = max(0.0, float((found[0] - found[1]).max()))
    return LossAttack(float(larger.mean() / outside.size), advantage)


def _losses(name: str, values: ArrayLike) -> NDArray[np.float64]:
    losses = np.sort(np.asarray(values, dtype=np.float64).ravel())
    if not losses.size or np.isnan(losses).any():
        raise ValueError(
            f"loss_attack({name}): {losses.size} losses, {int(np.isnan(losses).sum())} NaN. "
            "Give at least one, and numbers."
        )
    return losses
