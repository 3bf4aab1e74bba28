"""The meta-gradient on problems on which gradient descent is linear: stable, and in closed form.

With ``A`` and ``Q`` of `fedexp.learned_steps.problems`, ``d log f(w_t) = 2 ⟨Q z, dz⟩ / ⟨z, Q z⟩``:
a ratio that does not change when ``z`` and ``dz`` are multiplied by the same number. Corollary 1 of
Wang, Yuan, Wu & Ge 2021 (arXiv:2006.16495): back-propagation of the log objective goes through
numbers that are exponentially large or small in ``t``. Here all numbers are rescaled at every step,
and the sum of the logarithms of the factors is kept beside them.
"""

import math

import torch
from torch import Tensor

from fedexp.learned_steps.objectives import MetaGradient, StepSize, checked_step_size
from fedexp.learned_steps.problems import LinearProblem


def meta_gradient(problem: LinearProblem, step_size: StepSize, num_steps: int) -> MetaGradient:
    """The stable meta-gradient: finite for every step size, however many steps there are.

    One step size: the tangent ``v = dz/dη`` is carried forward,
    ``z⁺ = z - η A z, v⁺ = v - η A v - A z``, and both are divided by ``max |z⁺|``. The memory does
    not depend on ``t``. (Derived; the paper divides by the spectral radius instead.)

    One step size for each step: ``dF/dη_k = -⟨a_{k+1}, A z_k⟩`` with ``a_t = Q z_t`` and
    ``a_k = a_{k+1} - η_k Aᵀ a_{k+1}``, backwards. Nothing is divided by ``1 - η_k λ``, which may
    be 0. The memory is ``t`` vectors.

    Args:
        problem: A `Quadratic` or `LeastSquares`; its type decides the precision.
        step_size: ``η``, one number or ``[t]``.
        num_steps: ``t``.

    Raises:
        ValueError: ``num_steps`` is below 1, or a step size is negative or not finite.

    Example:
        >>> import torch
        >>> from fedexp.learned_steps import Quadratic, meta_gradient
        >>> one = Quadratic(torch.ones(1, 1), torch.ones(1))
        >>> meta_gradient(one, 0.5, 80).gradient("log")  # -2 λ / (1 - η λ)
        tensor(-4.)
        >>> meta_gradient(one, [0.0, 0.5], 2).log_slope
        tensor([-2., -4.])
    """
    z = problem.start()
    eta = checked_step_size(step_size, num_steps, z)
    return (_backward if eta.dim() else _forward)(problem, z, eta, num_steps)


def _forward(problem: LinearProblem, z: Tensor, eta: Tensor, num_steps: int) -> MetaGradient:
    v, log_scale = torch.zeros_like(z), 0.0
    for _ in range(num_steps):
        pull = problem.pull(z)
        z, v = z - eta * pull, v - eta * problem.pull(v) - pull
        size = _size(z)
        if size == 0:
            break  # The loss is 0, here and after all further steps.
        z, v, log_scale = z / size, v / size, log_scale + math.log(size)
    log_loss, gradient = _end(problem, z, log_scale)
    return MetaGradient(log_loss, gradient @ v, num_steps)


def _backward(problem: LinearProblem, z: Tensor, eta: Tensor, num_steps: int) -> MetaGradient:
    pulls, log_scale, log_scales = [], 0.0, []
    for k in range(num_steps):
        pull = problem.pull(z)
        pulls.append(pull)
        log_scales.append(log_scale)
        z = z - eta[k] * pull
        size = _size(z) or 1.0
        z, log_scale = z / size, log_scale + math.log(size)
    log_loss, a = _end(problem, z, log_scale)
    slopes, log_a = [0.0] * num_steps, -log_scale
    for k in reversed(range(num_steps)):
        slopes[k] = float(-(a @ pulls[k])) * math.exp(min(log_a + log_scales[k], 700.0))
        a = a - eta[k] * problem.pull_back(a)
        size = _size(a) or 1.0
        a, log_a = a / size, log_a + math.log(size)
    return MetaGradient(log_loss, eta.new_tensor(slopes), num_steps)


def _end(problem: LinearProblem, z: Tensor, log_scale: float) -> tuple[float, Tensor]:
    """``log f`` at ``z · exp(log_scale)``, and the gradient of ``log f`` by ``z``."""
    gradient = problem.weighted(z)
    twice = z @ gradient  # 2 f
    if twice <= 0:
        return -math.inf, torch.zeros_like(z)
    return 2 * log_scale + math.log(float(twice) / 2), 2 * gradient / twice


def _size(z: Tensor) -> float:
    return float(z.abs().max())  # Not the norm: squares overflow before the numbers do.


def closed_form(problem: LinearProblem, step_size: StepSize, num_steps: int) -> MetaGradient:
    """The same from the eigenvalues ``λ_i``: exact but for rounding, at the cost of finding them.

    ``f(w_t) = ½ ‖M p‖²`` with ``p_i = Π_k (1 - η_k λ_i)``, and
    ``∂p_i/∂η_k = -λ_i Π_{j≠k} (1 - η_j λ_i)``. The products are sums of logarithms, without the
    factor ``k`` and not divided by it, and all are relative to the largest ``|p_i|``.

    Derived; for a quadratic and one step size it is the formula of the paper,
    ``F'(η) = -2 Σ c_i² λ_i² (1 - η λ_i)^{2t-1} / Σ c_i² λ_i (1 - η λ_i)^{2t}``.

    Args:
        problem: A `Quadratic` or `LeastSquares`.
        step_size: ``η``, one number or ``[t]``.
        num_steps: ``t``.

    Raises:
        ValueError: As `meta_gradient`.

    Example:
        >>> import torch
        >>> from fedexp.learned_steps import Quadratic, closed_form
        >>> two = Quadratic(torch.diag(torch.tensor([1.0, 3.0])), torch.ones(2))
        >>> round(float(closed_form(two, 1.0, 1).gradient("log")), 5)  # -2 · 9 · (-2) / (3 · 4)
        3.0
    """
    eta = checked_step_size(step_size, num_steps, problem.start())
    modes = problem.modes()
    visible = (modes.outputs != 0).any(0)  # A mode that the loss does not see sets no scale.
    lambdas, outputs = modes.rates[visible], modes.outputs[:, visible]
    factors = 1 - eta.reshape(-1, 1) * lambdas  # [1 or t, num_modes]
    repeats = num_steps if not eta.dim() else 1
    others = _without_own(factors, repeats)  # log of |Π_{j≠k}|, and its sign
    logs, sign = repeats * factors.abs().log().sum(0), factors.sign().prod(0) ** repeats
    top = max(logs.tolist(), default=-math.inf)
    if top == -math.inf:
        return MetaGradient(-math.inf, torch.zeros_like(eta), num_steps)
    seen = outputs @ (sign * (logs - top).exp())
    twice = seen @ seen
    if twice <= 0:
        return MetaGradient(-math.inf, torch.zeros_like(eta), num_steps)
    moved = -repeats * lambdas * others[1] * (others[0] - top).exp()
    slope = 2 * (moved @ outputs.T) @ seen / twice
    log_loss = 2 * top + math.log(float(twice) / 2)
    return MetaGradient(log_loss, slope.reshape(eta.shape), num_steps)


def _without_own(factors: Tensor, repeats: int) -> tuple[Tensor, Tensor]:
    """Logarithm and sign of the product of all factors but one, for each of them."""
    logs, signs = factors.abs().log(), factors.sign()
    if len(factors) == 1:  # The power t - 1 of the only one; 0⁰ = 1.
        power = repeats - 1
        return (logs * power if power else torch.zeros_like(logs)), signs**power
    one = torch.zeros_like(logs[:1])
    before = torch.cat([one, logs.cumsum(0)[:-1]])
    after = torch.cat([logs.flip(0).cumsum(0).flip(0)[1:], one])
    sign_before = torch.cat([one + 1, signs.cumprod(0)[:-1]])
    sign_after = torch.cat([signs.flip(0).cumprod(0).flip(0)[1:], one + 1])
    return before + after, sign_before * sign_after
