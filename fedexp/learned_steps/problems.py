"""Problems on which gradient descent is linear: quadratics, and least squares by its residuals.

On both, a vector ``z`` moves by ``z⁺ = z - η A z`` and the loss is ``½ zᵀ Q z``. A multiple of a
trajectory is a trajectory, so that it may be rescaled at every step without an error.

For a quadratic ``z = w`` and ``A = Q = H``. For least squares the weights move by an affine map,
but the residuals ``r = X w - y`` by a linear one, ``r⁺ = r - (η/n) X Xᵀ r``, and those of other
examples follow them: ``r'⁺ = r' - (η/n) X' Xᵀ r``. Derived here: the rescaling needs no further
number, and small losses are computed without cancellation.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Modes:
    """``f(w_t) = ½ ‖M p‖²`` with ``p_i = Π_k (1 - η_k λ_i)``: a trajectory, solved.

    Attributes:
        rates: ``λ_i``, the eigenvalues of ``A``, ``[num_modes]``.
        outputs: ``M``, ``[num_outputs, num_modes]``: what the loss sees of each mode at step 0.
    """

    rates: Tensor
    outputs: Tensor


class LinearProblem(Protocol):
    """A vector ``z`` that moves by ``z⁺ = z - η A z``, and a loss ``½ zᵀ Q z``."""

    def start(self) -> Tensor:
        """``z`` before the first step."""

    def pull(self, z: Tensor) -> Tensor:
        """``A z``."""

    def pull_back(self, a: Tensor) -> Tensor:
        """``Aᵀ a``."""

    def weighted(self, z: Tensor) -> Tensor:
        """``Q z``, the gradient of the loss by ``z``."""

    def modes(self) -> Modes:
        """The same in coordinates in which every step is a multiplication."""


@dataclass(frozen=True)
class Quadratic:
    """``f(w) = ½ wᵀ H w``, from ``w_0``.

    Attributes:
        matrix: ``H``, symmetric and positive semidefinite, ``[d, d]``.
        first: ``w_0``, ``[d]``.

    Raises:
        ValueError: The shapes do not fit each other.

    Example:
        >>> import torch
        >>> from fedexp.learned_steps import Quadratic
        >>> problem = Quadratic(torch.diag(torch.tensor([1.0, 4.0])), torch.ones(2))
        >>> problem.pull(problem.start())
        tensor([1., 4.])
    """

    matrix: Tensor
    first: Tensor

    def __post_init__(self) -> None:
        _check_shape("Quadratic: matrix", self.matrix, (len(self.first), len(self.first)))

    def start(self) -> Tensor:
        """``w_0``."""
        return self.first

    def pull(self, z: Tensor) -> Tensor:
        """``H w``."""
        return self.matrix @ z

    def pull_back(self, a: Tensor) -> Tensor:
        """``H a``: the matrix is symmetric."""
        return self.matrix @ a

    def weighted(self, z: Tensor) -> Tensor:
        """``H w``, once more."""
        return self.matrix @ z

    def modes(self) -> Modes:
        """The eigenvalues ``λ_i`` of ``H``, and ``M = diag(√λ_i ⟨w_0, u_i⟩)``."""
        rates, vectors = torch.linalg.eigh(self.matrix)
        rates = rates.clamp(min=0)  # Of a singular matrix one may be -1e-17.
        return Modes(rates, torch.diag(rates.sqrt() * (vectors.T @ self.first)))


@dataclass(frozen=True)
class LeastSquares:
    """``f(w) = ‖X w - y‖² / 2n``, from ``w_0``; the loss at the end may be that of other examples.

    Attributes:
        inputs: ``X``, ``[n, d]``: the steps descend on these examples.
        targets: ``y``, ``[n]``.
        first: ``w_0``, ``[d]``; None is 0.
        validation: ``(X', y')``, of shapes ``[n', d]`` and ``[n']``: train-by-validation. None is
            train-by-train, where the loss at the end is that of the steps.

    Raises:
        ValueError: The shapes do not fit each other, or one of the two parts has no rows.

    Example:
        >>> import torch
        >>> from fedexp.learned_steps import LeastSquares
        >>> x, y = torch.eye(2), torch.tensor([1.0, 2.0])
        >>> LeastSquares(x, y).start()
        tensor([-1., -2.])
        >>> LeastSquares(x, y, validation=(torch.ones(1, 2), torch.zeros(1))).start()
        tensor([-1., -2.,  0.])
    """

    inputs: Tensor
    targets: Tensor
    first: Tensor | None = None
    validation: tuple[Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        parts = {"": (self.inputs, self.targets), "validation ": self.validation}
        for name, part in parts.items():
            if part is None:
                continue
            if not len(part[1]):
                raise ValueError(f"LeastSquares: the {name or 'inner '}part has no rows.")
            shape = (len(part[1]), self.inputs.shape[1])
            _check_shape(f"LeastSquares: {name}inputs", part[0], shape)
        if self.first is not None:
            _check_shape("LeastSquares: first", self.first, (self.inputs.shape[1],))

    def start(self) -> Tensor:
        """The residuals at ``w_0``: ``[n]``, or ``[n + n']`` with those of the validation part."""
        return torch.cat([self._residuals(x, y) for x, y in self._parts()])

    def pull(self, z: Tensor) -> Tensor:
        """``X Xᵀ r / n``, and ``X' Xᵀ r / n`` below it."""
        n = len(self.targets)
        gradient = self.inputs.T @ z[:n] / n
        return torch.cat([x @ gradient for x, _ in self._parts()])

    def pull_back(self, a: Tensor) -> Tensor:
        """``X (Xᵀ a + X'ᵀ a') / n``; 0 for the validation part, which moves nothing."""
        n = len(self.targets)
        down = self.inputs.T @ a[:n]
        if self.validation is not None:
            down = down + self.validation[0].T @ a[n:]
        return torch.cat([self.inputs @ down / n, torch.zeros_like(a[n:])])

    def weighted(self, z: Tensor) -> Tensor:
        """``r / n``; with a validation part 0 and ``r' / n'``."""
        n = len(self.targets)
        if self.validation is None:
            return z / n
        return torch.cat([torch.zeros_like(z[:n]), z[n:] / (len(z) - n)])

    def modes(self) -> Modes:
        """``λ_i = s_i² / n`` of the singular values of ``X``, and what they do to the residuals."""
        left, sizes, right = torch.linalg.svd(self.inputs, full_matrices=False)
        # Directions that X does not see but for rounding never move.
        tiny = torch.finfo(sizes.dtype).eps * max(self.inputs.shape)
        seen = sizes > tiny * sizes.max()
        left, sizes, right = left[:, seen], sizes[seen], right[seen]
        moving = left.T @ self._residuals(self.inputs, self.targets)
        x, y = self._parts()[-1]
        outputs = x @ right.T * (moving / sizes) if self.validation else left * moving
        # What stays where it is: an eigenvalue of 0.
        still = self._residuals(x, y) - outputs.sum(1)
        rates = torch.cat([sizes**2 / len(self.targets), sizes.new_zeros(1)])
        return Modes(rates, torch.column_stack([outputs, still]) / math.sqrt(len(y)))

    def _parts(self) -> list[tuple[Tensor, Tensor]]:
        return [(self.inputs, self.targets), *([self.validation] if self.validation else [])]

    def _residuals(self, x: Tensor, y: Tensor) -> Tensor:
        return 0 - y if self.first is None else x @ self.first - y


def _check_shape(name: str, x: Tensor, expected: tuple[int, ...]) -> None:
    if x.shape != expected:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, expected {expected}.")
