"""The ClientApp of a device without PyTorch: softmax or linear regression by plain SGD, in NumPy.

It takes the model ``linear`` of `fedexp.models`, draws the batches that our other client draws, and
gives its numbers up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from fedexp import keys
from fedexp.arrays import Arrays
from fedexp.clients.local_privacy import hidden
from fedexp.clients.settings import ClientSettings
from fedexp.devices.told import data_of, introduced, own_context, settings_of
from fedexp.records import from_record, records_of, to_record
from fedexp.wire import ClientResult

Array = NDArray[Any]
client = ClientApp()


@client.train()
def answer_train(message: Message, context: Context) -> Message:
    """Take the local steps; reply the arrays, ``num-examples`` and ``train-loss``."""
    own = own_context(message, context)
    config, arrays = _config(message, own), _model_in(message)
    _, data = data_of(own)
    settings = ClientSettings.of(config)
    _check_settings(settings)
    number = int(own.node_config.get(keys.PARTITION_ID, own.node_id))
    seed, server_round = int(config.get("seed", 0)), int(config.get(keys.SERVER_ROUND, 0))
    rng = np.random.default_rng([seed, server_round, number])
    rng.integers(2**63)  # our other client seeds PyTorch with it, before the batches
    after, loss = local_sgd(arrays, *data.train, settings, rng)
    if not math.isfinite(loss) and keys.LOCAL_NOISE not in config:  # it would tell of the data
        raise FloatingPointError(
            f"train loss is {loss} with learning-rate {settings.lr}. Make it smaller."
        )
    metrics: dict[str, Any] = {
        keys.NUM_EXAMPLES: len(data.train[1]),
        keys.TRAIN_LOSS: loss,
        keys.LEARNING_RATE: settings.lr,
    }
    if config.get(keys.FINAL_LOSS):
        metrics[keys.FINAL_LOSS] = linear_loss(_scores(after, data.train[0]), data.train[1])
    sent = hidden(ClientResult(own.node_id, after, metrics), arrays, config, number)
    told = MetricRecord(dict(sent.metrics))
    content = RecordDict({"arrays": to_record(sent.arrays), "metrics": told})
    return Message(content, reply_to=message)


@client.evaluate()
def answer_evaluate(message: Message, context: Context) -> Message:
    """Reply ``eval-loss``, and ``eval-accuracy`` of classes."""
    own = own_context(message, context)
    described, data = data_of(own)
    x, y = data.test
    outputs = _scores(_model_in(message), x)
    metrics: dict[str, Any] = {keys.NUM_EXAMPLES: len(y), "eval-loss": linear_loss(outputs, y)}
    if described.num_classes:
        metrics["eval-accuracy"] = float((outputs.argmax(1) == y).mean())
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


client.query()(introduced)


def local_sgd(
    before: Arrays, x: Array, y: Array, settings: ClientSettings, rng: np.random.Generator
) -> tuple[Arrays, float]:
    """The model after the local steps, and the mean of the losses, each before its step.

    ``w ← w - η_l (∇f(w) + λ w + μ (w - w₀))``, the gradient without ``λ w`` clipped.

    Args:
        before: ``w₀``: a matrix, and a vector for the intercepts of classes.
        x: ``[num_rows, ...]``.
        y: int64 classes, or float32 values.
        settings: of the client.
        rng: draws the batches.

    Raises:
        ValueError: the model is no linear one for these inputs.

    Example:
        >>> import numpy as np
        >>> from fedexp.clients import ClientSettings
        >>> from fedexp.devices.linear import local_sgd
        >>> start = {"weight": np.zeros((2, 1), "f"), "bias": np.zeros(2, "f")}
        >>> x, y = np.array([[-1.0], [1.0]], "f"), np.array([0, 1])
        >>> settings = ClientSettings(num_steps=20, batch_size=2, lr=1.0)
        >>> after, loss = local_sgd(start, x, y, settings, np.random.default_rng(0))
        >>> bool(after["weight"][1, 0] > 1), loss < 0.5
        (True, True)
    """
    x = x.reshape(len(x), -1)
    w = {name: np.array(array) for name, array in before.items()}
    total = 0.0
    for rows in settings.batches(len(y), rng):
        outputs = _scores(w, x[rows])
        total += linear_loss(outputs, y[rows])
        gradient = _gradient(w, outputs, x[rows], y[rows])
        for name, g in gradient.items():
            if settings.proximal_mu:
                g += settings.proximal_mu * (w[name] - before[name])
        if settings.max_grad_norm:
            norm = math.sqrt(
                sum(float((g.astype(np.float64) ** 2).sum()) for g in gradient.values())
            )
            scale = min(1.0, settings.max_grad_norm / (norm + 1e-6))
            gradient = {name: g * np.float32(scale) for name, g in gradient.items()}
        for name, g in gradient.items():
            w[name] = w[name] - np.float32(settings.lr) * (g + settings.weight_decay * w[name])
    return w, total / settings.num_steps


def _names(arrays: Arrays) -> tuple[str, str | None]:
    """The names of the matrix and of the vector.

    Raises:
        ValueError: these are not what there is.
    """
    by_dim = {array.ndim: name for name, array in arrays.items()}
    if len(arrays) != len(by_dim) or 2 not in by_dim or not by_dim.keys() <= {1, 2}:
        raise ValueError(
            f"the model has arrays {list(arrays)[:4]}, no linear one. Install fedexp[torch] on the "
            "device, or use --model linear."
        )
    return by_dim[2], by_dim.get(1)


def _scores(arrays: Arrays, x: Array) -> Array:
    """Scores of classes ``[num_rows, num_classes]``, or values ``[num_rows]``."""
    matrix, vector = _names(arrays)
    x = x.reshape(len(x), -1)
    if arrays[matrix].shape[1] != x.shape[1]:
        raise ValueError(
            f"the model takes {arrays[matrix].shape[1]} numbers, an input has {x.shape[1]}."
        )
    scores = x @ arrays[matrix].T
    return scores[:, 0] if vector is None else scores + arrays[vector]


def linear_loss(outputs: Array, y: Array) -> float:
    """Mean cross-entropy of classes, mean squared error of values."""
    if y.dtype.kind == "f":
        return float(np.mean((outputs - y) ** 2))
    shifted = outputs - outputs.max(1, keepdims=True)
    logs = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(y)), y]
    return float(logs.mean())


def _gradient(arrays: Arrays, outputs: Array, x: Array, y: Array) -> dict[str, Array]:
    matrix, vector = _names(arrays)
    if y.dtype.kind == "f":
        slope = (2 * (outputs - y) / len(y))[:, None]
    else:
        shifted = np.exp(outputs - outputs.max(1, keepdims=True))
        slope = shifted / shifted.sum(1, keepdims=True)
        slope[np.arange(len(y)), y] -= 1
        slope /= len(y)
    gradient = {matrix: slope.T @ x}
    return gradient if vector is None else {**gradient, vector: slope.sum(0)}


def _config(message: Message, context: Context) -> Mapping[str, Any]:
    return {**context.run_config, **settings_of(message)}


def _model_in(message: Message) -> Arrays:
    records = records_of(message.content, ArrayRecord)
    if keys.CONTROL_VARIATE in records:
        raise ValueError("control variates need PyTorch. Install fedexp[torch] on the device.")
    (record,) = records.values()
    return from_record(record)


def _check_settings(settings: ClientSettings) -> None:
    if settings.optimizer != "sgd":
        raise ValueError(
            f"local-optimizer {settings.optimizer!r} needs PyTorch. Install fedexp[torch] on the "
            "device, or use sgd."
        )
