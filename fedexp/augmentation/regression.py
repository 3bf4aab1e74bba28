"""Linear regression under noise that is added to its inputs: exact moments of gradient descent.

The loss is ``(1/N) ‖Y - W X‖²`` with inputs ``X`` of shape ``[n, N]`` (a column is an example) and
targets ``Y`` of shape ``[p, N]``. Every step draws ``X_t = X + sigma_t G`` with ``G`` standard
normal:

    ``W ← W + (2 eta_t / N) (Y - W X_t) X_tᵀ``.

Setting and notation: Hanin & Sun 2021, arXiv:2010.11171. The recursions here are derived, not
quoted: one step is affine in ``W``, so the first two moments of ``W`` follow from moments of ``G``
up to the fourth. They are exact for every sample size, step and strength.
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
        >>> unseen_component(np.array([[3.0, 4.0]]), np.array([[1.0], [0.0]]))
        array([[0., 4.]])
    """
    return np.asarray(w - w @ x @ np.linalg.pinv(x))


def noise_step(moments: Moments, x: Matrix, y: Matrix, eta: float, sigma: float) -> Moments:
    """The moments of ``W`` after one step with noise (derived).

    With ``c = 2 eta / N``, ``r = y - w X`` and ``v`` the step of a row, so ``w ← w + c v``:

    - ``E v = E r Xᵀ - sigma² N E w``
    - ``E wᵀv = E[wᵀr] Xᵀ - sigma² N E wᵀw``
    - ``E vᵀv = X (E rᵀr + sigma² E‖w‖² I) Xᵀ - sigma² (N + 1) (X E[rᵀw] + transpose)
      + (sigma² E‖r‖² + sigma⁴ N E‖w‖²) I + sigma⁴ (N² + N) E wᵀw``

    Args:
        moments: those before the step, of ``p`` rows of length ``n``.
        x: ``X``, ``[n, N]``.
        y: ``Y``, ``[p, N]``.
        eta: ``eta_t``, the learning rate of this step.
        sigma: ``sigma_t``, the standard deviation of the noise, in units of ``X``.

    Raises:
        ValueError: the rate or the noise is negative.

    Example:
        >>> import numpy as np
        >>> start = Moments.certain(np.array([[1.0]]))
        >>> after = noise_step(start, np.array([[1.0]]), np.array([[1.0]]), eta=0.25, sigma=1.0)
        >>> after.mean  # pulled towards 0, as by weight decay
        array([[0.5]])
        >>> after.second - after.mean**2
        array([[[0.75]]])
    """
    check_step("noise_step", eta=eta, sigma=sigma)
    (n, num), s2 = x.shape, sigma**2
    rate = 2 * eta / num
    w, target, second = moments.mean[:, None, :], y[:, None, :], moments.second
    w_r = _t(w) @ target - second @ x  # E wᵀr, [p, n, N]
    predicted = _t(x) @ _t(w) @ target
    r_r = _t(target) @ target - predicted - _t(predicted) + x.T @ second @ x  # E rᵀr, [p, N, N]
    sq_w, sq_r = _trace(second), _trace(r_r)
    cross = x @ _t(w_r)
    v_v = x @ (r_r + s2 * sq_w * np.eye(num)) @ x.T
    v_v -= s2 * (num + 1) * (cross + _t(cross))
    v_v += (s2 * sq_r + s2**2 * num * sq_w) * np.eye(n) + s2**2 * (num**2 + num) * second
    w_v = w_r @ x.T - s2 * num * second
    v = (target - w @ x) @ x.T - s2 * num * w
    return Moments(
        (w + rate * v)[:, 0, :],
        symmetric(second + rate * (w_v + _t(w_v)) + rate**2 * v_v),
    )


def symmetric(second: Matrix) -> Matrix:
    """``second`` with its rounding errors made symmetric, ``[..., n, n]``.

    The recursions would amplify an antisymmetric error without bound.
    """
    return np.asarray((second + _t(second)) / 2)


def check_step(owner: str, **values: float) -> None:
    """Raise ``ValueError`` for a rate or a strength below 0."""
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{owner}({name}={value}): must be >= 0.")


def _t(x: Matrix) -> Matrix:
    return np.swapaxes(x, -1, -2)


def _trace(x: Matrix) -> Matrix:
    return np.asarray(np.trace(x, axis1=-2, axis2=-1))[..., None, None]
