"""What a client may hand over after its local steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from flwr.app import Context

from fedexp.arrays import Arrays, first_non_finite
from fedexp.clients.control import STEP, ControlVariates
from fedexp.clients.training import LocalTraining
from fedexp.wire import ClientResult


def usable(
    result: ClientResult,
    before: Arrays,
    context: Context,
    control: ControlVariates | None,
    settings: LocalTraining,
    cause: Callable[[], str],
) -> ClientResult:
    """``result``, once it is known to be finite; its control variate goes to ``context.state``.

    Args:
        result: after the local steps.
        before: the model that was received.
        context: of the client.
        control: its control variates, if it uses any.
        settings: of its local steps.
        cause: asked why a loss is not finite.

    Raises:
        FloatingPointError: the loss is not finite, or with a control variate any array.
    """
    if not math.isfinite(result.metrics["train-loss"]):
        raise FloatingPointError(
            f"train loss is {result.metrics['train-loss']} with learning-rate "
            f"{result.metrics['learning-rate']}: {cause()}"
        )
    if control is None:
        return result
    if name := first_non_finite(result.arrays):  # else the variate would never be finite again
        raise FloatingPointError(f"array {name!r} holds NaN or infinity after training.")
    step = settings.num_steps * settings.lr
    control.keep(context, before, result.arrays, step)
    return replace(result, metrics={**result.metrics, STEP: step})
