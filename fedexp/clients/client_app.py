"""A Flower ClientApp from a model, data and a local optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flwr.clientapp import ClientApp

from fedexp.clients.local_optimizers import OptimizerFn, as_optimizer
from fedexp.clients.losses import Loss, default_loss
from fedexp.clients.metrics import Metric, Metrics
from fedexp.clients.trainer import DataFn, ModelFn, Trainer
from fedexp.clients.training import LocalTraining


def client_app(
    model: ModelFn,
    data: DataFn,
    optimizer: OptimizerFn | Callable[..., Any] | str | None = None,
    loss: Loss = default_loss,
    check: Callable[[Mapping[str, Any]], object] = LocalTraining.of,
    metrics: Mapping[str, Metric] | str | None = None,
    **kwargs: Any,
) -> ClientApp:
    """A ClientApp that trains ``model`` on ``data`` for exactly ``local-steps`` steps.

    The same object runs on ``SerialGrid``, ``RayGrid``, under ``flwr run`` and on a SuperNode.

    Args:
        model: ``context -> module``.
        data: ``context -> (train examples, test examples)`` of one client.
        optimizer: an optimizer class such as ``torch.optim.AdamW``, text such as
            ``adamw(weight-decay=0.01)``, or ``(parameters, settings) -> torch optimizer``, see
            ``as_optimizer``; by default what the setting ``local-optimizer`` names, plain SGD if
            there is none.
        loss: ``(outputs, targets) -> scalar``; cross-entropy or squared error by default.
        check: called by our grids with their run config when they are made, raises ValueError if
            the app cannot take it; by default if a key looks like a slip for a setting.
        metrics: ``(outputs, targets) -> number`` by name, of all outputs for the test examples at
            once; reported as ``eval-NAME``, but left out where one fails. Or text, see
            ``named_metrics``; by default what the setting ``metrics`` names.
        **kwargs: ClientApp's, e.g. ``mods``.
    """
    trainer = Trainer(model, data, as_optimizer(optimizer), loss, check, Metrics.of(metrics))
    app = ClientApp(**kwargs)
    app.train()(trainer.train)
    app.evaluate()(trainer.evaluate)
    app.query()(trainer.query)
    app.trainer = trainer  # type: ignore[attr-defined]  # for grids that run whole cohorts at once
    return app


def trainer_of(app: ClientApp) -> Trainer | None:
    """The trainer of an app of ``client_app`` that no mod stands around."""
    return None if has_mods(app) else getattr(app, "trainer", None)


def has_mods(app: ClientApp) -> bool:
    """Whether mods see the app's messages."""
    return bool(getattr(app, "_mods", ()))  # Flower gives no other way to ask
