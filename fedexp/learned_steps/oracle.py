"""What the best step size for noisy least squares is, in expectation and exactly.

``x ~ N(0, I_d)``, ``y = ⟨w*, x⟩ + σ ξ``, ``w*`` uniform on the unit sphere, ``w_0 = 0``, ``t``
steps of size ``η`` on the loss ``½ (y - ⟨w, x⟩)²`` averaged over ``n`` examples. Derived: with the
eigenvalues ``λ`` of ``S = Xᵀ X / n``, and ``p = (1 - η λ)^t``,

- training loss ``½ [ (1/d) Σ_d λ p² + (σ²/n) Σ_n p² ]``, the second sum over those of ``X Xᵀ / n``;
- ``E ‖w_t - w*‖² = (1/d) Σ_d p² + (σ²/n) Σ_{λ>0} (1 - p)² / λ``;
- error on new examples ``√(σ² + E ‖w_t - w*‖²)``.

Theorems 5 and 6 of Wang, Yuan, Wu & Ge 2021 (arXiv:2006.16495) are about this problem: tuning on
the training loss (train-by-train) overfits unless ``n`` is well above ``d``.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues ``λ > 0`` of ``S = Xᵀ X / n`` and how many there are of each.

    Attributes:
        dim: ``d``.
        num_examples: ``n``.
        values: ``λ``.
        counts: How many; they need not be whole numbers, and sum to ``min(n, d)``.
    """

    dim: int
    num_examples: int
    values: NDArray[np.float64]
    counts: NDArray[np.float64]


def marchenko_pastur(dim: int, num_examples: int, num_points: int = 2000) -> Spectrum:
    """The eigenvalues for large ``d`` and ``n``, from the law of Marchenko and Pastur.

    With ``γ = d/n`` and ``λ = 1 + γ + 2√γ cos θ`` the density is ``(2/π) sin²θ / λ dθ``, which
    Gauss-Chebyshev points of the second kind integrate.

    Args:
        dim: ``d``.
        num_examples: ``n``.
        num_points: The number of points.

    Raises:
        ValueError: One of them is below 1 or not finite.

    Example:
        >>> from fedexp.learned_steps import marchenko_pastur
        >>> found = marchenko_pastur(dim=100, num_examples=400)
        >>> round(float(found.counts.sum()), 6), round(float(found.counts @ found.values), 6)
        (100.0, 100.0)
    """
    for name, value in {"dim": dim, "num_examples": num_examples, "num_points": num_points}.items():
        if not 1 <= value < math.inf:
            raise ValueError(f"marchenko_pastur({name}={value}): must be finite and at least 1.")
    ratio = dim / num_examples
    angles = np.pi * np.arange(1, num_points + 1) / (num_points + 1)
    values = 1 + ratio + 2 * math.sqrt(ratio) * np.cos(angles)
    weights = 2 / (num_points + 1) * np.sin(angles) ** 2 / values
    return Spectrum(dim, num_examples, values, dim * weights)


@dataclass(frozen=True)
class ExpectedErrors:
    """Of the weights after ``t`` steps, in expectation over data, noise and ``w*``.

    Attributes:
        train_loss: ``½ E (y - ⟨w_t, x⟩)²`` on the examples of the steps.
        sq_distance: ``E ‖w_t - w*‖²``.
        test_rmse: ``√(σ² + E ‖w_t - w*‖²)``, the error on new examples.
    """

    train_loss: float
    sq_distance: float
    test_rmse: float


def expected_errors(
    spectrum: Spectrum, noise: float, step_size: float, num_steps: int
) -> ExpectedErrors:
    """The expected errors after ``num_steps`` steps of one size on noisy least squares.

    Args:
        spectrum: The eigenvalues: `marchenko_pastur`, or those of one large draw.
        noise: ``σ``, of the targets.
        step_size: ``η``.
        num_steps: ``t``.

    Raises:
        ValueError: ``num_steps`` is below 1, or the noise or the step size is negative or not
            finite.

    Example:
        >>> from fedexp.learned_steps import expected_errors, marchenko_pastur
        >>> spectrum = marchenko_pastur(dim=1000, num_examples=500)
        >>> found = expected_errors(spectrum, noise=1.0, step_size=0.3162, num_steps=40)
        >>> round(found.test_rmse, 2)
        1.57
    """
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps}: at least one local step is needed.")
    for name, number in {"noise": noise, "step_size": step_size}.items():
        if not 0 <= number < math.inf:
            raise ValueError(f"{name}={number}: must be finite and at least 0.")
    d, n, values, counts = spectrum.dim, spectrum.num_examples, spectrum.values, spectrum.counts
    rank = float(counts.sum())
    with np.errstate(over="ignore"):  # A step size that is too large: the errors are infinite.
        left = (1 - step_size * values) ** num_steps  # p; it is 1 where λ = 0
        # X Xᵀ/n, [n, n], has n - rank eigenvalues 0 beyond those of S, and S itself d - rank. There
        # p = 1: no step moves these components, of the noise or of w*.
        signal, noisy = counts @ (values * left**2) / d, (counts @ left**2 + n - rank) / n
        bias = (counts @ left**2 + d - rank) / d
        variance = counts @ ((1 - left) ** 2 / values) / n
    sq_distance = float(bias + noise**2 * variance)
    train_loss = float(signal + noise**2 * noisy) / 2
    return ExpectedErrors(train_loss, sq_distance, math.sqrt(noise**2 + sq_distance))
