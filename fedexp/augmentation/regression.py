"""Linear regression: its solutions, and the moments of weights that are random.

The loss is ``(1/N) ‖Y - W X‖²`` with inputs ``X`` of shape ``[n, N]`` (a column is an example) and
targets ``Y`` of shape ``[p, N]``. An augmentation gives random inputs ``X_t`` to each step of
gradient descent,

    ``W ← W + (2 eta_t / N) (Y - W X_t) X_tᵀ``.

Setting and notation: Hanin & Sun 2021, arXiv:2010.11171. A step is affine in ``W``, so the first
two moments of ``W`` follow exactly from moments of the augmentation up to the fourth, for every
sample size, rate and strength. `noise` and `projections` have these recursions, which are derived.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """First and second moments of a random matrix ``W`` of ``p`` rows ``w`` of length ``n``.

    Attributes:
        mean: ``E W``, ``[p, n]``.
        second: ``E wᵀw`` of each row, ``[p, n, n]``; symmetric.

    Example:
        >>> import numpy as np
        >>> from fedexp.augmentation import Moments
        >>> Moments.certain(np.array([[3.0, 4.0]])).sq_distance(np.zeros((1, 2)))
        25.0
    """

    mean: Matrix
    second: Matrix

    @classmethod
    def certain(cls, w: Matrix) -> Moments:
        """The moments of a ``W`` that is not random, ``[p, n]``."""
        w = np.asarray(w, np.float64)
        return cls(w, w[:, :, None] * w[:, None, :])

    def sq_distance(self, w: Matrix) -> float:
        """``E ‖W - w‖²`` from a fixed ``w``, ``[p, n]``; its root is the rms distance."""
        spread = np.trace(self.second, axis1=1, axis2=2).sum()
        # ‖w‖² - 2 E W·w + E‖W‖², ordered such that equal terms cancel first.
        return max(0.0, float(spread - (self.mean * w).sum() + (w * (w - self.mean)).sum()))


def min_norm(x: Matrix, y: Matrix) -> Matrix:
    """The solution of least squares with the smallest norm, ``W_min = Y X⁺``, ``[p, n]``.

    Args:
        x: ``X``, ``[n, N]``.
        y: ``Y``, ``[p, N]``.

    Example:
        >>> import numpy as np
        >>> from fedexp.augmentation import min_norm
        >>> min_norm(np.array([[1.0], [1.0]]), np.array([[2.0]]))
        array([[1., 1.]])
    """
    return np.asarray(y @ np.linalg.pinv(x))


def ridge(x: Matrix, y: Matrix, coefficient: float) -> Matrix:
    """Ridge regression, ``Y Xᵀ (X Xᵀ + λ I)⁻¹``, ``[p, n]``.

    Noise of constant strength ``sigma`` leads to it with ``λ = sigma² N`` (derived: the expected
    loss is ``(1/N) ‖Y - W X‖² + sigma² ‖W‖²``).

    Args:
        x: ``X``, ``[n, N]``.
        y: ``Y``, ``[p, N]``.
        coefficient: ``λ``, in squared units of ``X``.

    Raises:
        ValueError: the coefficient is not positive.

    Example:
        >>> import numpy as np
        >>> from fedexp.augmentation import ridge
        >>> ridge(np.array([[1.0]]), np.array([[3.0]]), coefficient=2.0).round(9)
        array([[1.]])
    """
    if not coefficient > 0:
        raise ValueError(f"ridge(coefficient={coefficient}): must be > 0. Use min_norm for 0.")
    # By singular values, because X Xᵀ squares the condition number and λ may be tiny.
    u, values, vt = np.linalg.svd(x, full_matrices=False)
    return np.asarray((y @ vt.T) * (values / (values**2 + coefficient)) @ u.T)


def unseen_component(w: Matrix, x: Matrix) -> Matrix:
    """The part of each row of ``W`` that is orthogonal to all examples, ``[p, n]``.

    The loss does not depend on it, so only augmentation moves it. Under noise its mean is exactly
    ``W_0 Q · Π (1 - 2 eta_t sigma_t²)``, with ``Q`` the orthogonal projection (derived); see
    `unseen_factor`.

    Args:
        w: ``W``, ``[p, n]``.
        x: ``X``, ``[n, N]``.

    Example:
        >>> import numpy as np
        >>> from fedexp.augmentation import unseen_component
        >>> unseen_component(np.array([[3.0, 4.0]]), np.array([[1.0], [0.0]]))
        array([[0., 4.]])
    """
    return np.asarray(w - w @ x @ np.linalg.pinv(x))


def symmetric(second: Matrix) -> Matrix:
    """``second`` with its rounding errors made symmetric, ``[..., n, n]``.

    The recursions would amplify an antisymmetric error without bound.
    """
    return np.asarray((second + transposed(second)) / 2)


def check_step(owner: str, **values: float) -> None:
    """Raise ``ValueError`` for a rate or a strength below 0."""
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{owner}({name}={value}): must be >= 0.")


def transposed(x: Matrix) -> Matrix:
    """Each matrix of a stack, transposed."""
    return np.swapaxes(x, -1, -2)
