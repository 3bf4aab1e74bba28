"""Random changes of images ``[b, c, h, w]``, or ``[m, b, c, h, w]`` for a group of clients.

Every image has draws of its own. The forms and the generators are those of
`fedexp.augmentation.transforms`. A strength of 0 leaves every image as it is, and the mean
effect is proportional to the strength while that is small, so all of them can follow a power law.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from fedexp.augmentation.transforms import (
    Generators,
    Strength,
    beside,
    check_floating,
    check_strength,
    drawn_for,
)


def random_crop(batch: Tensor, strength: Strength, generator: Generators) -> Tensor:
    """Shift every image by up to a fraction of its sides and fill with zeros.

    This is a crop of the padded image. A shift is uniform in ``[-s h, s h]`` rows and
    ``[-s w, s w]`` columns, rounded up or down at random such that its mean size stays ``s h / 2``
    however small ``s`` is.

    Args:
        batch: ``[b, c, h, w]``, or ``[m, b, c, h, w]`` for a group.
        strength: ``s``, the largest shift as a fraction of a side, in [0, 1].
        generator: one, or one for each client of a group.

    Raises:
        ValueError: the strength lies outside [0, 1], or the batch holds no images.

    Example:
        >>> import torch
        >>> from fedexp.augmentation import random_crop
        >>> image = torch.ones(1, 1, 4, 4)
        >>> moved = random_crop(image, 0.5, torch.Generator().manual_seed(3))
        >>> moved.shape, bool(moved.sum() <= 16)
        (torch.Size([1, 1, 4, 4]), True)
    """
    _check_images("random_crop", batch, generator)
    check_strength("random_crop", strength, highest=1.0)
    uniform = drawn_for(batch, generator, lambda g, shape: _uniform(g, shape, 4), num_axes=1)
    height, width = batch.shape[-2:]
    sizes = torch.tensor([height, width], dtype=torch.float64)
    wanted = (2 * uniform[..., :2] - 1) * sizes * beside(strength, uniform)
    shifts = (wanted + uniform[..., 2:]).floor().long().reshape(-1, 2).to(batch.device)
    images = batch.reshape(-1, *batch.shape[-3:])
    rows = torch.arange(height, device=batch.device) - shifts[:, :1]  # [images, h]
    columns = torch.arange(width, device=batch.device) - shifts[:, 1:]  # [images, w]
    inside = _within(rows, height)[:, :, None] & _within(columns, width)[:, None, :]
    which = torch.arange(len(images), device=batch.device)[:, None, None]
    # Indexing beside a slice puts the channels last.
    moved = images[
        which, :, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None]
    ]
    return (moved * inside[..., None]).permute(0, 3, 1, 2).reshape(batch.shape)


def random_flip(batch: Tensor, strength: Strength, generator: Generators) -> Tensor:
    """Mirror images left to right, each with probability ``strength / 2``.

    Args:
        batch: ``[b, c, h, w]``, or ``[m, b, c, h, w]`` for a group.
        strength: in [0, 1]; 1 is a fair coin.
        generator: one, or one for each client of a group.

    Raises:
        ValueError: the strength lies outside [0, 1], or the batch holds no images.

    Example:
        >>> import torch
        >>> from fedexp.augmentation import random_flip
        >>> image = torch.tensor([[[[1.0, 2.0]]]]).expand(100, 1, 1, 2)
        >>> flipped = random_flip(image, 1.0, torch.Generator().manual_seed(0))
        >>> sorted(set(flipped[:, 0, 0, 0].tolist()))
        [1.0, 2.0]
    """
    _check_images("random_flip", batch, generator)
    check_strength("random_flip", strength, highest=1.0)
    uniform = drawn_for(batch, generator, lambda g, shape: _uniform(g, shape, 1), num_axes=1)
    chosen = (uniform < beside(strength, uniform) / 2).to(batch.device)
    return torch.where(chosen[..., None, None], batch.flip(-1), batch)


def color_jitter(batch: Tensor, strength: Strength, generator: Generators) -> Tensor:
    """Change brightness, contrast and saturation of every image; no image is mixed with another.

    Each of the three multiplies by ``1 + s u`` with ``u`` uniform in [-1, 1]: the image itself, its
    distance from its mean, and its distance from its grey image (the mean of the channels; nothing
    changes if there is one channel). Nothing is clipped, because inputs may be standardised.

    Args:
        batch: ``[b, c, h, w]``, or ``[m, b, c, h, w]`` for a group.
        strength: ``s``, in [0, 1].
        generator: one, or one for each client of a group.

    Raises:
        ValueError: the strength lies outside [0, 1], or the batch holds no images or integers.

    Example:
        >>> import torch
        >>> from fedexp.augmentation import color_jitter
        >>> grey = torch.full((2, 3, 4, 4), 0.5)
        >>> brighter = color_jitter(grey, 0.2, torch.Generator().manual_seed(0))
        >>> bool(((brighter - 0.5).abs() <= 0.1 + 1e-6).all())
        True
    """
    _check_images("color_jitter", batch, generator)
    check_strength("color_jitter", strength, highest=1.0)
    check_floating("color_jitter", batch)
    uniform = drawn_for(batch, generator, lambda g, shape: _uniform(g, shape, 3), num_axes=1)
    factors = (1 + beside(strength, uniform) * (2 * uniform - 1)).to(batch)
    brightness, contrast, saturation = factors[..., None, None, None].unbind(-4)
    batch = batch * brightness
    mean = batch.mean((-3, -2, -1), keepdim=True)
    batch = mean + (batch - mean) * contrast
    grey = batch.mean(-3, keepdim=True)
    return grey + (batch - grey) * saturation


def _uniform(generator: Generator, shape: torch.Size, number: int) -> Tensor:
    return torch.rand(*shape, number, generator=generator, dtype=torch.float64)


def _within(index: Tensor, size: int) -> Tensor:
    return (index >= 0) & (index < size)


def _check_images(owner: str, batch: Tensor, generator: Generators) -> None:
    if batch.ndim != (4 if isinstance(generator, Generator) else 5):
        raise ValueError(
            f"{owner}: a batch of shape {[*batch.shape]} holds no images [b, c, h, w]."
        )
