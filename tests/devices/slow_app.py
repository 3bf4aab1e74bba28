"""ClientApps of devices that are slow, or that send what inflates to more than it is."""

import time
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedexp.devices.linear import client  # which is there sooner than that of PyTorch

slow, bomb = ClientApp(), ClientApp()
slow.query()(client)
bomb.query()(client)


@slow.train()
def _slow(message: Message, context: Context) -> Message:
    time.sleep(30)
    return client(message, context)


class Bomb(Array):
    """Names its only chunk, of 5 MB, four hundred times: 2 GB."""

    def slice_array(self) -> Any:
        (only,) = super().slice_array()
        return [only] * 400


Bomb.__qualname__ = Array.__qualname__  # as which the server inflates it


@bomb.train()
def _bomb(message: Message, context: Context) -> Message:
    own = Array(np.zeros(5 << 17))
    arrays = ArrayRecord({"1.weight": Bomb(own.dtype, own.shape, own.stype, own.data)})
    metrics = MetricRecord({"num-examples": 1, "train-loss": 1.0})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
