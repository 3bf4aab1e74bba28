"""ClientApps of devices that are slow, or that send what inflates to more than it is, or end badly.

They train as the client of NumPy does, which is there sooner than that of PyTorch.
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedexp.devices.linear import client
from fedexp.devices.told import settings_of


def _like(app: ClientApp) -> ClientApp:
    """An app that answers queries as ``app`` does."""
    made = ClientApp()
    made.query()(app)
    return made


def _round(message: Message) -> int:
    return int(settings_of(message)["server-round"])


def paced(app: ClientApp) -> ClientApp:
    """``app``, which trains in no round beyond the one that a file beside its data names.

    So a test decides when a round ends, however slow the machine is. Without the file it waits.
    """
    made = _like(app)

    @made.train()
    def train(message: Message, context: Context) -> Message:
        file = Path(str(context.node_config["data"])).with_suffix(".pace")
        while not file.exists() or int(file.read_text() or 0) < _round(message):
            time.sleep(0.1)
        return app(message, context)

    return made


slow, troubled, leaving = paced(client), _like(client), _like(client)


class Bomb(Array):
    """Names its only chunk, of 5 MB, four hundred times: 2 GB."""

    def slice_array(self) -> Any:
        (only,) = super().slice_array()
        return [only] * 400


Bomb.__qualname__ = Array.__qualname__  # as which the server inflates it


def _bomb(message: Message) -> Message:
    own = Array(np.zeros(5 << 17))
    arrays = ArrayRecord({"1.weight": Bomb(own.dtype, own.shape, own.stype, own.data)})
    metrics = MetricRecord({"num-examples": 1, "train-loss": 1.0})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@troubled.train()
def _trouble(message: Message, context: Context) -> Message:
    """Be a client, after a bomb in the first round and more than there is memory in the second."""
    match _round(message):
        case 1:
            return _bomb(message)
        case 2:
            return b"x" * (1 << 34)  # type: ignore[return-value]
    return client(message, context)


@leaving.train()
def _leave(message: Message, context: Context) -> Message:
    """Be a client in the first round, and leave in the second."""
    if _round(message) == 2:
        sys.exit(3)
    return client(message, context)
