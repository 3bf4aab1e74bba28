"""Random changes of a batch of inputs: noise and projections. Images have more in `images`.

All are functions ``(batch, strength, generator) -> batch`` that leave the given batch as it is.
There are two forms:

- one client: ``batch`` is ``[b, *features]``, ``strength`` a number, ``generator`` one generator;
- a group of ``m`` clients: ``batch`` is ``[m, b, *features]``, ``generator`` a sequence of ``m``
  generators, and ``strength`` a number or ``[m]``. Each client's draws are those it has alone.

Setting: Hanin & Sun 2021, arXiv:2010.11171, where an example is a column; here it is a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

Generators = Generator | Sequence[Generator]
Strength = float | Tensor


def gaussian_noise(batch: Tensor, strength: Strength, generator: Generators) -> Tensor:
    """Add independent normal noise, ``X + sigma G``.

    Args:
        batch: ``[b, *features]``, or ``[m, b, *features]`` for a group.
        strength: ``sigma``, in units of the inputs, at least 0.
        generator: one, or one for each client of a group.

    Raises:
        ValueError: the strength is negative, or the batch holds integers.

    Example:
        >>> import torch
        >>> from fedexp.augmentation import gaussian_noise
        >>> noisy = gaussian_noise(torch.zeros(2, 3), 0.1, torch.Generator().manual_seed(0))
        >>> noisy.shape, bool(noisy.abs().max() < 1)
        (torch.Size([2, 3]), True)
    """
    check_strength("gaussian_noise", strength)
    check_floating("gaussian_noise", batch)
    drawn = drawn_for(batch, generator, lambda g, shape: torch.randn(shape, generator=g))
    return batch + beside(strength, batch) * drawn.to(batch)


def random_projection(batch: Tensor, strength: Strength, generator: Generators) -> Tensor:
    """Project a batch onto one random subspace that loses a fraction of the ``n`` dimensions.

    The subspace is uniformly distributed (Haar). It has dimension ``n - j`` or ``n - j - 1`` with
    ``j = ⌊n · strength⌋``, at random, such that ``n (1 - strength)`` is the mean: the paper's
    ``gamma`` is ``1 - strength``. Ranks are integers, so only a random one can follow a power law.

    Args:
        batch: ``[b, *features]``, or ``[m, b, *features]`` for a group; all features together are
            the ``n`` dimensions.
        strength: ``1 - gamma``, in [0, 1].
        generator: one, or one for each client of a group.

    Raises:
        ValueError: the strength lies outside [0, 1], or the batch holds integers.

    Example:
        >>> import torch
        >>> from fedexp.augmentation import random_projection
        >>> x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
        >>> half = random_projection(x, 0.5, torch.Generator().manual_seed(1))
        >>> int(torch.linalg.matrix_rank(half))
        2
    """
    check_strength("random_projection", strength, highest=1.0)
    check_floating("random_projection", batch)

    def dropped(generator: Generator, n: int, strength: float) -> int:
        chance = torch.rand((), generator=generator, dtype=torch.float64)
        return min(n, int(n * strength + chance))  # rounds up as often as the mean needs

    return _projected(batch, strength, generator, dropped)


def rank_projection(batch: Tensor, strength: Strength, generator: Generators) -> Tensor:
    """Project a batch onto one uniformly random (Haar) subspace of a fixed dimension.

    Args:
        batch: ``[b, *features]``, or ``[m, b, *features]`` for a group, of ``n`` features.
        strength: ``k``, the rank: an integer from 0 to ``n``.
        generator: one, or one for each client of a group.

    Raises:
        ValueError: the rank is above ``n``, below 0 or not an integer, or the batch holds integers.

    Example:
        >>> import torch
        >>> from fedexp.augmentation import rank_projection
        >>> x = torch.eye(4)
        >>> flat = rank_projection(x, 3, torch.Generator().manual_seed(0))
        >>> round(float(flat.trace()), 5)
        3.0
    """
    check_floating("rank_projection", batch)

    def dropped(generator: Generator, n: int, strength: float) -> int:
        if not 0 <= strength <= n or strength != int(strength):
            raise ValueError(
                f"rank_projection(strength={strength:g}): must be an integer from 0 to n = {n}."
            )
        return n - int(strength)

    return _projected(batch, strength, generator, dropped)


def drawn_for(
    batch: Tensor,
    generator: Generators,
    draw: Callable[[Generator, torch.Size], Tensor],
    num_axes: int | None = None,
) -> Tensor:
    """What ``draw`` makes of a batch's shape, client by client for a group.

    Args:
        batch: of one client or of a group.
        generator: one, or one for each client.
        draw: takes a generator and the shape of one client's draws.
        num_axes: how many of the axes of one client's batch have draws of their own; None for all.
    """
    if isinstance(generator, Generator):
        return draw(generator, batch.shape[:num_axes])
    shape = batch.shape[1:][:num_axes]
    return torch.stack([draw(g, shape) for g in _one_each(batch, generator)])


def beside(strength: Strength, like: Tensor) -> Strength:
    """A strength ``[m]`` with axes of length 1, so that it multiplies ``like``, ``[m, ...]``."""
    if not isinstance(strength, Tensor) or not strength.ndim:
        return strength
    return strength.to(like).reshape(-1, *[1] * (like.ndim - 1))


def check_strength(owner: str, strength: Strength, highest: float = float("inf")) -> None:
    """Raise ``ValueError`` unless every strength lies in [0, highest]."""
    values = strength.flatten().tolist() if isinstance(strength, Tensor) else [strength]
    for value in values:
        if not 0 <= value <= highest:
            limits = f"lie in [0, {highest:g}]" if highest < float("inf") else "be >= 0"
            raise ValueError(f"{owner}(strength={value:g}): must {limits}.")


def check_floating(owner: str, batch: Tensor) -> None:
    """Raise ``ValueError`` for integers, to which the changed inputs would be rounded."""
    if not batch.is_floating_point():
        kind = str(batch.dtype).removeprefix("torch.")
        raise ValueError(f"{owner}: a batch of {kind} would be rounded. Use batch.float().")


def _projected(
    batch: Tensor,
    strength: Strength,
    generator: Generators,
    dropped: Callable[[Generator, int, float], int],
) -> Tensor:
    if isinstance(generator, Generator):
        return _projected(batch[None], strength, [generator], dropped)[0]
    flat = batch.flatten(2)
    n = flat.shape[2]
    strengths = torch.as_tensor(strength, dtype=torch.float64).expand(len(batch)).tolist()
    # X - (X U) Uᵀ, with U an orthonormal basis of what is dropped. A schedule soon drops a
    # dimension or none, so this is cheaper than a basis of what is kept, and exact where nothing is
    # dropped.
    # Columns of zeros make the clients' bases equally wide.
    bases = [
        _basis(g, n, dropped(g, n, s))
        for g, s in zip(_one_each(batch, generator), strengths, strict=True)
    ]
    lost = torch.zeros(len(batch), n, max(basis.shape[1] for basis in bases), dtype=torch.float64)
    for row, basis in zip(lost, bases, strict=True):
        row[:, : basis.shape[1]] = basis
    lost = lost.to(flat)
    return (flat - (flat @ lost) @ lost.mT).reshape(batch.shape)


def _basis(generator: Generator, n: int, width: int) -> Tensor:
    """An orthonormal basis of a uniformly random subspace: the span of normal columns is one."""
    columns = torch.randn(n, width, generator=generator, dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(columns).Q
    return basis


def _one_each(batch: Tensor, generators: Sequence[Generator]) -> Sequence[Generator]:
    if len(generators) != len(batch):
        raise ValueError(
            f"{len(generators)} generators for {len(batch)} clients: give one to each client."
        )
    return generators
