"""Linear regression under noise that is added to its inputs: exact moments of gradient descent.

Every step draws ``X_t = X + sigma_t G`` with ``G`` standard normal, ``[n, N]``. Loss, step and
notation are those of `fedexp.augmentation.regression`. Setting: Hanin & Sun 2021, arXiv:2010.11171;
derived.
"""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np

from fedexp.augmentation.regression import Matrix, Moments, check_step, symmetric, transposed


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
        >>> from fedexp.augmentation import Moments, noise_step
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
    w_r = transposed(w) @ target - second @ x  # E wᵀr, [p, n, N]
    predicted = transposed(x) @ transposed(w) @ target
    r_r = (
        transposed(target) @ target - predicted - transposed(predicted) + x.T @ second @ x
    )  # E rᵀr, [p, N, N]
    sq_w, sq_r = _trace(second), _trace(r_r)
    cross = x @ transposed(w_r)
    # v = (r - σ w G)(X + σ G)ᵀ. Odd powers of G have mean 0; for the others
    #   E[G M Gᵀ] = tr(M) I,  E[Gᵀ S G] = tr(S) I,  E[G Gᵀ S G Gᵀ] = (N² + N) S + N tr(S) I
    # with S = E wᵀw symmetric; E[G Gᵀ] = N I and E[G B G] = Bᵀ make the (N + 1) of r with w.
    v_v = x @ (r_r + s2 * sq_w * np.eye(num)) @ x.T
    v_v -= s2 * (num + 1) * (cross + transposed(cross))
    v_v += (s2 * sq_r + s2**2 * num * sq_w) * np.eye(n) + s2**2 * (num**2 + num) * second
    w_v = w_r @ x.T - s2 * num * second
    v = (target - w @ x) @ x.T - s2 * num * w
    return Moments(
        (w + rate * v)[:, 0, :],
        symmetric(second + rate * (w_v + transposed(w_v)) + rate**2 * v_v),
    )


def batch_noise_step(
    moments: Moments, x: Matrix, y: Matrix, eta: float, sigma: float, batch_size: int
) -> Moments:
    """The moments of ``W`` after a step with noise on a random batch of ``B`` examples (derived).

    All sets of ``B`` of the ``N`` examples are equally likely. The mean is that of `noise_step` on
    all examples; only the second moment depends on ``B``. It is the mean over all sets, one by one,
    so this is for small ``N``.

    Args:
        moments: those before the step, of ``p`` rows of length ``n``.
        x: ``X``, ``[n, N]``.
        y: ``Y``, ``[p, N]``.
        eta: ``eta_t``, the learning rate of this step.
        sigma: ``sigma_t``, the standard deviation of the noise, in units of ``X``.
        batch_size: ``B``, from 1 to ``N``.

    Raises:
        ValueError: the batch size is not between 1 and ``N``, there are more than 10⁴ sets, or the
            rate or the noise is negative.

    Example:
        >>> import numpy as np
        >>> from fedexp.augmentation import Moments, batch_noise_step
        >>> start, x = Moments.certain(np.zeros((1, 1))), np.array([[1.0, 1.0]])
        >>> after = batch_noise_step(start, x, np.array([[0.0, 2.0]]), 0.5, 0.0, batch_size=1)
        >>> after.mean, after.second  # the weight is 0 or 2
        (array([[1.]]), array([[[2.]]]))
    """
    num = x.shape[1]
    if not 1 <= batch_size <= num:
        raise ValueError(f"batch_noise_step(batch_size={batch_size}): must lie in [1, {num}].")
    if (number := comb(num, batch_size)) > 10_000:
        raise ValueError(f"batch_noise_step(batch_size={batch_size}): {number} sets are too many.")
    steps = [
        noise_step(moments, x[:, list(chosen)], y[:, list(chosen)], eta, sigma)
        for chosen in combinations(range(num), batch_size)
    ]
    return Moments(
        np.mean([step.mean for step in steps], axis=0),
        np.mean([step.second for step in steps], axis=0),
    )


def _trace(x: Matrix) -> Matrix:
    return np.asarray(np.trace(x, axis1=-2, axis2=-1))[..., None, None]
