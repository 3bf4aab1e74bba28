"""Linear regression whose inputs are projected at random: exact moments of gradient descent.

Every step draws ``X_t = P_t X`` with ``P_t`` the orthogonal projection onto a uniformly random
(Haar) subspace of dimension ``k`` of ``R^n``. Loss, step and notation are those of
`fedexp.augmentation.regression`. Setting: Hanin & Sun 2021, arXiv:2010.11171; derived here.

One step is affine in ``W`` and quadratic in ``P``, so second moments need ``E[P M P A P]`` and
``E[P A P S P A P]``, which `fedexp.augmentation.pairings` has.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fedexp.augmentation.pairings import check_rank, projected
from fedexp.augmentation.regression import Matrix, Moments, check_step, symmetric, transposed


def projection_fixed_point(x: Matrix, y: Matrix, rank: int) -> Matrix:
    """Where the mean goes at constant rank: ``(k/n) Y Xᵀ E[P X Xᵀ P]⁻¹``, ``[p, n]``; derived.

    This is ridge regression with coefficient ``b tr(X Xᵀ) / a``, times ``k / (n a)``.

    Args:
        x: ``X``, ``[n, N]``.
        y: ``Y``, ``[p, N]``.
        rank: ``k``, from 1 to ``n - 1``; at ``n`` the limit is `min_norm` plus the unseen start.

    Raises:
        ValueError: the rank lies outside that range.

    Example:
        >>> import numpy as np
        >>> from fedexp.augmentation import projection_fixed_point
        >>> projection_fixed_point(np.eye(2), np.array([[1.0, 2.0]]), rank=1).round(6)
        array([[1., 2.]])
    """
    n = len(x)
    check_rank("projection_fixed_point", rank, n)
    if not 0 < rank < n:
        raise ValueError(
            f"projection_fixed_point(rank={rank}): must lie between 1 and {n - 1}. "
            "Without a projection the limit depends on the start."
        )
    solution = np.linalg.solve(projected(rank, x @ x.T), rank / n * x @ y.T)
    return np.asarray(solution.T, np.float64)


@dataclass(frozen=True)
class ProjectionMoments:
    """The moments of ``P`` that a step needs, for one rank or averaged over a random one.

    With ``A = X Xᵀ``; matrices are flattened row by row.

    Attributes:
        once: ``E P = (k/n) I``, as the number ``k/n``.
        gram: ``E[P A P]``, ``[n, n]``.
        outer: ``M → E[P M P]``, ``[n², n²]``.
        cross: ``M → E[P M P A P]``, ``[n², n²]``.
        twice: ``S → E[P A P S P A P]``, ``[n², n²]``.

    Example:
        >>> import numpy as np
        >>> from fedexp.augmentation import ProjectionMoments
        >>> x = np.array([[1.0], [0.0]])
        >>> ProjectionMoments.of(x, rank=1).gram
        array([[0.375, 0.   ],
               [0.   , 0.125]])
        >>> ProjectionMoments.dropping(x, 0.25).once  # rank 2 or 1, each half of the time
        0.75
    """

    once: float
    gram: Matrix
    outer: Matrix
    cross: Matrix
    twice: Matrix

    @classmethod
    def of(cls, x: Matrix, rank: int) -> ProjectionMoments:
        """Those of a fixed rank, for inputs ``[n, N]``; memory grows with ``n⁴``.

        Raises:
            ValueError: the rank is above ``n``.
        """
        n, a = len(x), x @ x.T
        check_rank("ProjectionMoments", rank, n)
        basis = np.eye(n * n).reshape(-1, n, n)

        def operator(images: Matrix) -> Matrix:
            return images.reshape(n * n, n * n).T  # column j is the image of basis matrix j

        return cls(
            rank / n,
            projected(rank, a),
            operator(projected(rank, basis)),
            operator(projected(rank, basis, a)),
            operator(projected(rank, a, basis, a)),
        )

    @classmethod
    def dropping(cls, x: Matrix, dropped: float) -> ProjectionMoments:
        """Those of the random rank of `random_projection`, a mean of ``n (1 - dropped)``.

        The rank is ``n - j`` or ``n - j - 1`` with ``j = ⌊n · dropped⌋``, the latter with
        probability ``n · dropped - j``. Ranks are integers, so only a random one can follow a power
        law.

        Args:
            x: ``X``, ``[n, N]``.
            dropped: ``1 - gamma``, the expected fraction of dimensions that are lost, in [0, 1].

        Raises:
            ValueError: ``dropped`` lies outside [0, 1].
        """
        if not 0 <= dropped <= 1:
            raise ValueError(f"ProjectionMoments(dropped={dropped}): must lie in [0, 1].")
        n = len(x)
        lost = min(int(n * dropped), n - 1)
        high, low = (_of(x.shape, x.tobytes(), n - lost - i) for i in (0, 1))
        p = n * dropped - lost
        pairs = ((getattr(high, f), getattr(low, f)) for f in cls.__dataclass_fields__)
        return cls(*((1 - p) * h + p * w for h, w in pairs))


def projection_step(
    moments: Moments, projection: ProjectionMoments, x: Matrix, y: Matrix, eta: float
) -> Moments:
    """The moments of ``W`` after one step with projected inputs (derived).

    The step of a row is ``v = b P - w P A P`` with ``b = y Xᵀ``, ``A = X Xᵀ``; ``w ← w + (2 eta /
    N) v``.
    The mean of a component that is orthogonal to the examples is multiplied by
    ``1 - (2 eta / N) β tr A`` with ``β = k(n-k) / (n(n-1)(n+2))``.

    Args:
        moments: those before the step, of ``p`` rows of length ``n``.
        projection: moments of ``P`` for these ``x``.
        x: ``X``, ``[n, N]``.
        y: ``Y``, ``[p, N]``.
        eta: ``eta_t``, the learning rate of this step.

    Raises:
        ValueError: the rate is negative.

    Example:
        >>> import numpy as np
        >>> from fedexp.augmentation import Moments, ProjectionMoments, projection_step
        >>> x, y = np.eye(2), np.array([[1.0, 1.0]])
        >>> start = Moments.certain(np.zeros((1, 2)))
        >>> projection_step(start, ProjectionMoments.of(x, rank=1), x, y, eta=0.5).mean
        array([[0.25, 0.25]])
    """
    check_step("projection_step", eta=eta)
    n, num = x.shape
    rate = 2 * eta / num
    w, second, target = moments.mean[:, None, :], moments.second, (y @ x.T)[:, None, :]

    def mapped(operator: Matrix, matrices: Matrix) -> Matrix:
        return (matrices.reshape(-1, n * n) @ operator.T).reshape(-1, n, n)

    # v = b P - w P A P, so vᵀv has the terms P bᵀb P, P A P wᵀw P A P, and P bᵀw P A P with its
    # transpose; wᵀv has wᵀb P and wᵀw P A P.
    b_w = transposed(target) @ w  # bᵀ E w, [p, n, n]
    cross = mapped(projection.cross, b_w)  # E[P bᵀw P A P]
    v_v = mapped(projection.outer, transposed(target) @ target)
    v_v += mapped(projection.twice, second) - cross - transposed(cross)
    w_v = projection.once * transposed(b_w) - second @ projection.gram
    v = projection.once * target - w @ projection.gram
    return Moments(
        (w + rate * v)[:, 0, :],
        symmetric(second + rate * (w_v + transposed(w_v)) + rate**2 * v_v),
    )


@lru_cache(maxsize=64)
def _of(shape: tuple[int, ...], content: bytes, rank: int) -> ProjectionMoments:
    return ProjectionMoments.of(np.frombuffer(content).reshape(shape), rank)
