"""What a server tells a device with a message, besides the settings of a client."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict

from fedexp import keys
from fedexp.devices.data_description import KEY, DataDescription
from fedexp.devices.device_data import DeviceData, read_device_data
from fedexp.records import records_of

DATA, NAME = "data", "name"
"""Keys of ``Context.node_config`` of a device: the path of its data, and its name."""
CLIENT_NUMBER, NUM_CLIENTS = "client-number", "num-clients"
"""Settings: which client of the run a device is, from 0, and how many there are."""
DEVICE = "device"
"""Setting of a query that asks who a node is, and the record of the reply: ``names`` of the devices
that answer here, and whether it is an ``edge``."""


def settings_of(message: Message) -> Mapping[str, Any]:
    """The settings that came with ``message``."""
    return next(iter(records_of(message.content, ConfigRecord).values()), ConfigRecord())


def own_context(message: Message, context: Context) -> Context:
    """``context`` with what ``message`` tells: which client this is, and what the data are.

    The state is that of ``context``.
    """
    settings = settings_of(message)
    node_config = dict(context.node_config)
    for told, key in ((CLIENT_NUMBER, keys.PARTITION_ID), (NUM_CLIENTS, keys.NUM_PARTITIONS)):
        if told in settings:
            node_config[key] = int(settings[told])
    run_config = dict(context.run_config)
    if KEY in settings:
        run_config[KEY] = settings[KEY]
    _check_names({**run_config, **settings})
    return Context(context.run_id, context.node_id, node_config, context.state, run_config)


def _check_names(settings: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if the server names a function by its module: it could name any."""
    for key in ("model", "local-optimizer", "metrics"):
        if ":" in (text := str(settings.get(key, ""))):
            raise ValueError(
                f"{key}={text!r}: a server may not choose which code of this machine runs. Choose "
                "it on the device: --app MODULE:NAME."
            )


def data_of(context: Context) -> tuple[DataDescription, DeviceData]:
    """What the server says of the data, and this device's own in that form.

    Raises:
        ValueError: the device has none, the server says nothing, or it does not fit.
    """
    if DATA not in context.node_config:
        raise ValueError("the device has no data. Name it with --data.")
    described = DataDescription.of_settings(context.run_config)
    return described, read_device_data(Path(str(context.node_config[DATA])), described)


def asks_who(message: Message) -> bool:
    """Whether a server of ours asks who this is, which needs no app to answer."""
    is_query = message.metadata.message_type.partition(".")[0] == MessageType.QUERY
    return is_query and bool(settings_of(message).get(DEVICE))


def introduced(message: Message, context: Context) -> Message:
    """The reply to a query: who this is."""
    name = str(context.node_config.get(NAME, context.node_id))
    content = RecordDict({DEVICE: ConfigRecord({"names": [name], "edge": False})})
    if keys.PARTITION_ID in context.node_config:  # of a device that plays a simulation's client
        told = {k: int(context.node_config[k]) for k in (keys.PARTITION_ID, keys.NUM_PARTITIONS)}
        content["metrics"] = MetricRecord(dict(told))
    return Message(content, reply_to=message)
