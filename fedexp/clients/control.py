"""SCAFFOLD's client half: control variates that cancel the client's drift."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, MetricRecord, RecordDict
from torch import Tensor, nn

from fedexp.arrays import Arrays
from fedexp.records import from_record, records_of, to_record

VARIATE = "control-variate"
"""Record key: the server's variate in a message, the client's own in ``Context.state``."""

STEP = "control-step"
"""Metric by which a client says that it used its variates: ``K η_l``."""

_RUN = "control-run"

RUN = "run-id"
"""Setting by which clients tell one run from another."""


@dataclass(frozen=True, eq=False)
class ControlVariates:
    """The server's variate ``c`` and the client's own ``cᵢ``, by parameter name.

    A local step is ``y ← y - η_l (g - cᵢ + c)``. After ``K`` of them ``cᵢ ← cᵢ - c +
    (w - y)/(K η_l)``, option II of Karimireddy et al. 2020, arXiv:1910.06378, alg. 1.

    Attributes:
        server: ``c``.
        own: ``cᵢ``; zero when the client takes part for the first time in this run.
        run: the run that ``own`` belongs to.
    """

    server: Arrays
    own: Arrays
    run: float

    @classmethod
    def of(cls, content: RecordDict, config: Mapping[str, Any], context: Context) -> Self | None:
        """What a message brings and ``context`` kept; None if the server sends no variate."""
        if VARIATE not in content:
            return None
        server = from_record(records_of(content, ArrayRecord)[VARIATE])
        run = float(config.get(RUN, 0.0))
        known = (
            VARIATE in context.state and records_of(context.state, MetricRecord)[_RUN]["id"] == run
        )
        own = from_record(records_of(context.state, ArrayRecord)[VARIATE]) if known else {}
        return cls(server, own or {name: np.zeros_like(c) for name, c in server.items()}, run)

    def correction(self, module: nn.Module) -> dict[str, Tensor]:
        """``c - cᵢ`` for the trainable parameters of ``module``, to be added to the gradient."""
        return {
            name: torch.from_numpy(np.asarray(self.server[name] - self.own[name])).to(p)
            for name, p in module.named_parameters()
            if p.requires_grad and name in self.server
        }

    def keep(self, context: Context, before: Arrays, after: Arrays, step: float) -> None:
        """Store the next ``cᵢ`` in ``context.state``; ``step`` is ``K η_l``."""
        new = {
            name: np.asarray(self.own[name] - c + (before[name] - after[name]) / step, c.dtype)
            for name, c in self.server.items()
        }
        context.state[VARIATE] = to_record(new)
        context.state[_RUN] = MetricRecord({"id": self.run})
