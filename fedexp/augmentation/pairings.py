"""Moments of a random projection, exactly.

The mean of ``P ⊗ ... ⊗ P`` commutes with rotations. So it is a sum over the ways to pair the
indices of its factors, with one coefficient for each pairing (Weingarten calculus of the orthogonal
group: Collins & Śniady 2006, arXiv:math-ph/0402073).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from fedexp.augmentation.regression import Matrix

Pairing = tuple[int, ...]  # the partner of each index


def projected(rank: int, *matrices: Matrix) -> Matrix:
    """``E[P M₁ P M₂ ... P]`` for a random projection ``P`` of rank ``k``, ``[..., n, n]``; derived.

    One matrix gives ``a M + b tr(M) I`` for symmetric ``M``, with ``a = k(kn+n-2) / (n(n-1)(n+2))``
    and ``b = k(n-k) / (n(n-1)(n+2))``.

    Args:
        rank: ``k``, from 0 to ``n``.
        matrices: up to three, each ``[..., n, n]``; leading dimensions broadcast.

    Raises:
        ValueError: the rank is not an integer between 0 and ``n``.

    Example:
        >>> import numpy as np
        >>> from fedexp.augmentation import projected
        >>> projected(1, np.diag([1.0, 0.0])).round(3)  # 3/8 and 1/8: moments of cos⁴, cos² sin²
        array([[0.375, 0.   ],
               [0.   , 0.125]])
    """
    n = matrices[0].shape[-1]
    check_rank("projected", rank, n)
    pairings, loops = _pairings(len(matrices) + 1)
    # Contracting E[P⊗...⊗P] with a pairing leaves one trace of a power of P, so k, for each loop.
    # For n below the number of factors the pairings are dependent; any solution does then.
    weights = np.linalg.lstsq(float(n) ** loops, float(rank) ** loops[0], rcond=None)[0]
    terms = (c * _contracted(p, matrices) for c, p in zip(weights, pairings, strict=True))
    return np.asarray(sum(terms))


def check_rank(owner: str, rank: int, n: int) -> None:
    """Raise ``ValueError`` unless ``rank`` is a dimension of a subspace of ``R^n``."""
    if rank != int(rank) or not 0 <= rank <= n:
        raise ValueError(f"{owner}(rank={rank}): must be an integer from 0 to n = {n}.")


@lru_cache
def _pairings(factors: int) -> tuple[list[Pairing], Matrix]:
    """All pairings of two indices a factor, that of ``P``'s own indices first, and their loops.

    The loops of two pairings are the cycles in which one walks along the one and the other in turn.
    """
    pairings = [tuple(found) for found in _paired([-1] * (2 * factors))]
    return pairings, np.array([[_loops(p, q) for q in pairings] for p in pairings], float)


def _paired(partners: list[int]) -> Iterator[list[int]]:
    if -1 not in partners:
        yield partners
        return
    first = partners.index(-1)
    for other in range(first + 1, len(partners)):
        if partners[other] == -1:
            more = partners.copy()
            more[first], more[other] = other, first
            yield from _paired(more)


def _loops(p: Pairing, q: Pairing) -> int:
    left, count = set(range(len(p))), 0
    while left:
        index, count = min(left), count + 1
        while index in left:
            left -= {index, p[index]}
            index = q[p[index]]
    return count


def _contracted(pairing: Pairing, matrices: tuple[Matrix, ...]) -> Matrix:
    """What one pairing leaves of ``P M₁ P M₂ ... P``, whose factors have two indices each."""
    letters = ["abcdefgh"[min(i, partner)] for i, partner in enumerate(pairing)]
    inside = ",".join(f"...{letters[i]}{letters[i + 1]}" for i in range(1, len(letters) - 1, 2))
    first, last = letters[0], letters[-1]
    if first != last:
        return np.asarray(np.einsum(f"{inside}->...{first}{last}", *matrices))
    traces = np.asarray(np.einsum(f"{inside}->...", *matrices))
    return traces[..., None, None] * np.eye(matrices[0].shape[-1])
