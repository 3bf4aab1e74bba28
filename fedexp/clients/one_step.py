"""Clients that take a single local step, as in FedSGD: their large weights stay in factors."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedexp.arrays import Arrays
from fedexp.clients.descent import Descent
from fedexp.clients.groups.chain import Chain
from fedexp.clients.losses import Loss, is_known
from fedexp.clients.training import LocalTraining
from fedexp.fold import MOST_ENTRIES, Factored

_LARGE = 1 << 18  # entries; a smaller weight stays in the cache until it is added up


def single(
    module: nn.Module, loss: Loss, descent: Descent | None, settings: LocalTraining
) -> Chain | None:
    """``module`` as a chain, if its client takes one plain step on a CPU."""
    if descent is None or descent.decay or settings.num_steps != 1 or not descent.covers(module):
        return None
    on_cpu = all(p.device.type == "cpu" for p in module.parameters())
    return Chain.of(module, loss) if on_cpu and is_known(loss) else None


@torch.no_grad()
def one_step(
    chain: Chain, module: nn.Module, arrays: Arrays, batch: tuple[Tensor, Tensor], lr: float
) -> tuple[float, Arrays]:
    """A step of plain SGD: the loss before it, and the client's model.

    ``W - η δᵀ x`` is left as it stands here (``Factored``): whoever adds up many clients makes
    each block of it in the cache, and no client's model is ever written to memory.

    Args:
        chain: the layers of ``module``.
        module: at the model that was broadcast; stays there.
        arrays: that model.
        batch: inputs and targets.
        lr: ``η``.
    """
    start = {name: p.data for name, p in module.named_parameters()}
    (loss,), products = chain.backward(start, batch[0][None], batch[1][None])
    after: dict[str, NDArray[Any]] = {}
    for name, (rows,), (delta,) in products:
        weight, bias = f"{name}weight", f"{name}bias"
        step = delta * lr
        usual = start[weight].dtype == torch.float32 and arrays[weight].dtype == np.float32
        if start[weight].numel() < _LARGE or rows.numel() > MOST_ENTRIES or not usual:
            after[weight] = torch.addmm(start[weight], step.T, rows, alpha=-1).numpy()
        else:
            # Not an ndarray, but read as one by all that reads a client's reply.
            factors = step.T.numpy(), rows.numpy()
            after[weight] = cast(NDArray[Any], Factored(arrays[weight], *factors))
        if bias in start:
            after[bias] = (start[bias] - step.sum(0)).numpy()
    return float(loss), {name: after[name] for name in arrays}
