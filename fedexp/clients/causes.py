"""Why training a client came to nothing, as far as its data and the model it got can tell."""

from __future__ import annotations

import math

import torch
from torch import nn

from fedexp.arrays import Arrays, first_non_finite
from fedexp.clients.data import Examples
from fedexp.clients.loop import evaluate
from fedexp.clients.losses import Loss
from fedexp.clients.module import load_arrays


def cause(module: nn.Module, before: Arrays, examples: Examples, loss: Loss) -> str:
    """Why the loss of a client is not finite, and what to do.

    Args:
        module: any of the model's; it holds ``before`` afterwards.
        before: the model that the client got.
        examples: its own.
        loss: its loss.
    """
    if name := first_non_finite(before):
        return f"array {name!r} of the model received holds NaN or infinity."
    if bad := _bad_rows(examples):
        held = f"{bad} of its {len(examples)} rows hold NaN or infinity"
        return f"{held}. Fill them in, or leave them out."
    load_arrays(module, before)
    first = evaluate(module, examples, loss)["loss"]
    if not math.isfinite(first):
        return f"it is {first} before any step. Look at the model and its loss."
    return "use a smaller learning rate."


def _bad_rows(examples: Examples) -> int:
    rows = examples.take(torch.arange(len(examples)))
    floats = [x.flatten(1) if x.dim() > 1 else x[:, None] for x in rows if x.is_floating_point()]
    if not floats:
        return 0
    fine = torch.stack([x.isfinite().all(1) for x in floats]).all(0)
    return int((~fine).sum())
