"""What a client has after its local steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from flwr.app import Context

from fedexp.arrays import Arrays, first_non_finite
from fedexp.clients.control import STEP, ControlVariates
from fedexp.clients.training import LocalTraining


@dataclass(frozen=True, eq=False)
class Fitted:
    """What a client has after its local steps.

    Attributes:
        arrays: its model, sharing memory with nobody who writes.
        metrics: ``num-examples``, ``train-loss``, ``learning-rate`` and what else it reports.
        buffers: names among ``arrays`` that only the client knows to be no parameters, see
            ``unnamed_buffers``.
    """

    arrays: Arrays
    metrics: Mapping[str, int | float]
    buffers: frozenset[str] = frozenset()

    def checked(
        self,
        before: Arrays,
        context: Context,
        control: ControlVariates | None,
        settings: LocalTraining,
        cause: Callable[[], str],
    ) -> Fitted:
        """The same, once it is known to be usable; its control variate goes to ``context.state``.

        ``cause`` is asked why a loss is not finite.

        Raises:
            FloatingPointError: the loss is not finite, or with a variate any array.
        """
        if not math.isfinite(self.metrics["train-loss"]):
            raise FloatingPointError(
                f"train loss is {self.metrics['train-loss']} with learning-rate "
                f"{self.metrics['learning-rate']}: {cause()}"
            )
        if control is None:
            return self
        if name := first_non_finite(self.arrays):  # else the variate would never be finite again
            raise FloatingPointError(f"array {name!r} holds NaN or infinity after training.")
        step = settings.num_steps * settings.lr
        control.keep(context, before, self.arrays, step)
        return replace(self, metrics={**self.metrics, STEP: step})
