"""What a client has after its local steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import Context

from fedexp.arrays import Arrays, first_non_finite
from fedexp.clients.control import STEP, ControlVariates
from fedexp.clients.training import Examples, LocalTraining


@dataclass(frozen=True, eq=False)
class Fitted:
    """What a client has after its local steps.

    Attributes:
        arrays: its model, sharing memory with nobody who writes.
        metrics: ``num-examples``, ``train-loss``, ``learning-rate`` and what else it reports.
    """

    arrays: Arrays
    metrics: Mapping[str, int | float]

    def checked(
        self,
        before: Arrays,
        context: Context,
        control: ControlVariates | None,
        settings: LocalTraining,
        examples: Examples,
    ) -> Fitted:
        """The same, once it is known to be usable; its control variate goes to ``context.state``.

        Raises:
            FloatingPointError: the loss is not finite, or with a variate any array.
        """
        if not math.isfinite(self.metrics["train-loss"]):
            found = f"train loss is {self.metrics['train-loss']}"
            if name := examples.non_finite():
                raise FloatingPointError(
                    f"{found}: the client's {name} hold NaN or infinity. Fill these values in, or "
                    "leave their rows out."
                )
            raise FloatingPointError(
                f"{found} with learning-rate {self.metrics['learning-rate']}. Use a smaller one."
            )
        if control is None:
            return self
        if name := first_non_finite(self.arrays):  # else the variate would never be finite again
            raise FloatingPointError(f"array {name!r} holds NaN or infinity after training.")
        step = settings.num_steps * settings.lr
        control.keep(context, before, self.arrays, step)
        return Fitted(self.arrays, {**self.metrics, STEP: step})
