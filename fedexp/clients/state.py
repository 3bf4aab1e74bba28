"""What a client of SCAFFOLD or FedDyn keeps between the rounds: its control variate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, MetricRecord, RecordDict
from torch import Tensor, nn

from fedexp import keys
from fedexp.arrays import Arrays, clip_scale, update_norm
from fedexp.records import from_record, records_of, to_record

_BEFORE, _RUN = "control-variate-before", "control-run"


@dataclass(frozen=True, eq=False)
class ControlVariates:
    """The server's control variate ``c`` and the client's own ``cᵢ``, by parameter name.

    A local step is ``y ← y - η_l (g - cᵢ + c)``. After ``K`` of them ``cᵢ ← cᵢ - c +
    s (w - y)/(K η_l)``, option II of Karimireddy et al. 2020, arXiv:1910.06378, alg. 1, where
    ``s = min(1, C/‖w - y‖)`` is the server's clipping. This assumes that the server applies the
    reply. If its next message says that it did not, the client returns to the ``cᵢ`` before. The
    server holds ``Σ pᵢcᵢ``, so a change of the client's weight ``pᵢ`` leaves ``pᵢcᵢ`` as it is.

    Attributes:
        server: ``c``.
        own: ``cᵢ``; empty, which stands for zero, while no reply of this run was applied.
        run: the run that ``own`` belongs to.
        server_round: of the message.
        max_norm: ``C``.
        weight: ``pᵢ``.
        step: what divides ``w - y`` in place of ``K η_l``; 0 for that. FedDyn's ``λᵢ`` is the
            ``cᵢ`` of ``c = 0`` and the step ``1/α``.
    """

    server: Arrays
    own: Arrays
    run: float
    server_round: int = 0
    max_norm: float = math.inf
    weight: float = 1.0
    step: float = 0.0

    @classmethod
    def of(
        cls,
        content: RecordDict,
        config: Mapping[str, Any],
        context: Context,
        num_examples: int,
        buffers: frozenset[str] = frozenset(),
        zeros: Callable[[], Arrays] = dict,
    ) -> Self | None:
        """What a message brings and ``context`` kept; None if the server sends no control variate.

        Args:
            content: of the message.
            config: its settings.
            context: of the client.
            num_examples: that it trains on.
            buffers: names that are no parameters here, whatever the server takes them for.
            zeros: makes ``c`` for FedDyn, whose server sends none.
        """
        alpha = float(config.get(keys.DYNAMIC_ALPHA, 0.0))
        if keys.CONTROL_VARIATE in content:
            sent: Arrays = from_record(records_of(content, ArrayRecord)[keys.CONTROL_VARIATE])
        elif alpha:
            sent = zeros()
        else:
            return None
        run = float(config.get(keys.RUN_ID, 0.0))
        weight = min(float(num_examples), float(config.get(keys.MAX_WEIGHT, math.inf)))
        return cls(
            {name: c for name, c in sent.items() if name not in buffers},
            _kept(config, context, run, weight),
            run,
            int(config.get(keys.SERVER_ROUND, 0)),
            float(config.get(keys.MAX_UPDATE_NORM, math.inf)),
            weight,
            1 / alpha if alpha else 0.0,
        )

    def correction(self, module: nn.Module) -> dict[str, Tensor]:
        """``c - cᵢ`` for the trainable parameters of ``module``, to be added to the gradient."""
        return {
            name: torch.from_numpy(np.asarray(self.server[name] - self._own(name))).to(p)
            for name, p in module.named_parameters()
            if p.requires_grad and name in self.server
        }

    def keep(self, context: Context, before: Arrays, after: Arrays, step: float) -> None:
        """Store the next ``cᵢ`` and this one in ``context.state``; ``step`` is ``K η_l``."""
        # The server adds s(w - y), so the client must count that too: else Σ pᵢcᵢ is not its c.
        s = 1.0
        if math.isfinite(self.max_norm):
            s = clip_scale(update_norm(before, after, self.server), self.max_norm)
        new = {
            name: np.asarray(self._own(name) - c + s * (before[name] - after[name]) / step, c.dtype)
            for name, c in self.server.items()
        }
        state = context.state
        state[keys.CONTROL_VARIATE] = to_record(new)
        state[_RUN] = MetricRecord(
            {"id": self.run, "round": self.server_round, "weight": self.weight}
        )
        if self.own:
            state[_BEFORE] = to_record(self.own)
        elif _BEFORE in state:
            del state[_BEFORE]

    def _own(self, name: str) -> Any:
        return self.own[name] if self.own else 0.0


def _kept(config: Mapping[str, Any], context: Context, run: float, weight: float) -> Arrays:
    """``cᵢ`` as of the last reply that the server applied, for ``weight``; empty for zero."""
    if keys.CONTROL_VARIATE not in context.state:
        return {}
    last = records_of(context.state, MetricRecord)[_RUN]
    if last["id"] != run:
        return {}
    applied = dict(
        zip(config.get(keys.CONTROL_NODES, ()), config.get(keys.CONTROL_ROUNDS, ()), strict=True)
    )
    lost = context.node_id in applied and applied[context.node_id] != last["round"]
    record = records_of(context.state, ArrayRecord).get(_BEFORE if lost else keys.CONTROL_VARIATE)
    own = from_record(record) if record else {}
    # The server holds Σ pᵢcᵢ of the old weight. With pᵢcᵢ kept, that sum stays right.
    factor = cast(float, last["weight"]) / weight
    return own if factor == 1 else {name: np.asarray(x * factor) for name, x in own.items()}
