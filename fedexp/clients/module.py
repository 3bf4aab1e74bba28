"""A torch module's arrays: what travels between server and client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedexp.arrays import Arrays


def module_arrays(module: nn.Module) -> dict[str, NDArray[Any]]:
    """Parameters and persistent buffers by name, sharing the module's memory.

    A tied parameter appears once, under its first name, so that no norm counts it twice.
    """
    return {name: x.detach().cpu().numpy() for name, x in _tensors(module)}


def load_arrays(module: nn.Module, arrays: Arrays) -> None:
    """Give ``module`` fresh copies of ``arrays``, in its own dtypes and on its own device.

    Memory that ``module_arrays`` handed out before is not touched.

    Raises:
        ValueError: names or shapes do not fit.
    """
    tensors = dict(_tensors(module))
    if tensors.keys() != arrays.keys():
        raise ValueError(
            f"model arrays {sorted(arrays)[:3]}... do not fit: the module has "
            f"{sorted(tensors)[:3]}... Use the same model on the server and the clients."
        )
    for name, tensor in tensors.items():
        value = torch.from_numpy(np.array(arrays[name]))
        if value.shape != tensor.shape:
            raise ValueError(
                f"array {name!r} has shape {tuple(value.shape)}, "
                f"the module's is {tuple(tensor.shape)}."
            )
        tensor.data = value.to(tensor.device, tensor.dtype)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    persistent = module.state_dict(keep_vars=True).keys()
    yield from ((name, x) for name, x in module.named_buffers() if name in persistent)
