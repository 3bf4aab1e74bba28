"""Small tensors as one vector: an operation on ten numbers takes as long as one on ten thousand.

Tensors that lie one after another in memory are such a vector without a copy. Programs may
exchange a tensor at any time, so where they lie is looked up whenever it is asked for.
"""

from collections.abc import Iterator
from typing import TypeAlias

import torch
from torch import Tensor

Tensors: TypeAlias = list[Tensor] | tuple[Tensor, ...]

BLOCK = 2**18
"""How many numbers are dealt with at once on a CPU, so that what is made of them takes 1 MB."""
WIDE_BLOCK = 2**24
"""Likewise on other devices, which need more for all their cores."""


def runs(tensors: Tensors) -> list[slice]:
    """Divide a list into runs that can be one vector each: of one type, one device, one block.

    A larger tensor is a run of its own.

    Example:
        >>> import torch
        >>> from fedexp.hypergradients.joined import runs
        >>> runs([torch.ones(3), torch.ones(2, 2), torch.ones(1, dtype=torch.float64)])
        [slice(0, 2, None), slice(2, 3, None)]
    """
    found, start, size, first = [], 0, 0, tensors[0]
    limit = BLOCK if first.is_cpu else WIDE_BLOCK
    for i, x in enumerate(tensors):
        size += x.numel()
        if i and (size > limit or x.dtype != first.dtype or x.device != first.device):
            found.append(slice(start, i))
            start, size, first = i, x.numel(), x
    return [*found, slice(start, len(tensors))]


def joined_copies(tensors: Tensors) -> list[Tensor]:
    """Copies of tensors of one type and device, one after another in memory.

    Example:
        >>> import torch
        >>> from fedexp.hypergradients.joined import joined, joined_copies
        >>> joined(joined_copies([torch.zeros(2), torch.ones(1, 1)]))
        tensor([0., 0., 1.])
    """
    vector = _flattened(tensors)
    if len(tensors) == 1:
        vector = vector.clone()
    return torch._C._nn.unflatten_dense_tensors(vector, list(tensors))


def joined(tensors: Tensors) -> Tensor:
    """The tensors of a run as one vector; a copy only if they do not lie one after another.

    Example:
        >>> import torch
        >>> from fedexp.hypergradients.joined import joined
        >>> x = torch.arange(4.0)
        >>> joined(x.split(2)).data_ptr() == x.data_ptr()
        True
    """
    first = tensors[0]
    if len(tensors) == 1:
        return first.reshape(-1)
    start = end = first.data_ptr()
    for x in tensors:
        if x.data_ptr() != end or not x.is_contiguous():
            return _flattened(tensors)
        end += x.nbytes
    storage = first.untyped_storage()  # Neighbours by chance have one each.
    if end > storage.data_ptr() + storage.nbytes():
        return _flattened(tensors)
    return first.as_strided(((end - start) // first.itemsize,), (1,))


def blocks(*lists: Tensors) -> Iterator[tuple[Tensor, ...]]:
    """The tensors of several lists side by side, as vectors of at most one block.

    The tensors at one place of the lists have one shape, type and device.

    Example:
        >>> import torch
        >>> from fedexp.hypergradients.joined import blocks
        >>> x, y = torch.arange(3.0), torch.ones(1, 2)
        >>> list(blocks([x, y], [-x, -y]))
        [(tensor([0., 1., 2., 1., 1.]), tensor([-0., -1., -2., -1., -1.]))]
    """
    for run in runs(lists[0]):
        vectors = [joined(tensors[run]) for tensors in lists]
        limit = BLOCK if vectors[0].is_cpu else WIDE_BLOCK
        if len(vectors[0]) <= limit:
            yield tuple(vectors)
        else:
            yield from zip(*[torch.split(x, limit) for x in vectors], strict=True)


def _flattened(tensors: Tensors) -> Tensor:
    """The tensors as one vector; a copy, unless it is one tensor alone."""
    return torch._C._nn.flatten_dense_tensors(list(tensors))
