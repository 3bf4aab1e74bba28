"""The ClientApp of a device that trains with PyTorch: our client, on the device's own data."""

from __future__ import annotations

import numpy as np
import torch
from flwr.app import Context
from flwr.clientapp import ClientApp
from torch import nn

from fedexp import keys
from fedexp.clients.client import Client
from fedexp.clients.data import Examples
from fedexp.config import Config
from fedexp.datasets import Dataset
from fedexp.datasets.holdout import split
from fedexp.devices.told import data_of, introduced, own_context
from fedexp.models import build


def own_examples(context: Context) -> tuple[Examples, Examples]:
    """Train and test examples of a device, as a simulation has those of a client with these rows.

    Without ``local-test-fraction`` it is tested on its own test rows, or on what it trains on.
    """
    _, data = data_of(context)
    train, test = (Examples(*map(torch.from_numpy, pair)) for pair in (data.train, data.test))
    config = _config(context)
    fraction = config.local_test_fraction
    if not fraction or data.has_test:
        return train, test
    number = int(context.node_config.get(keys.PARTITION_ID, context.node_id))
    seed = int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0])
    rows = map(torch.from_numpy, split(np.arange(len(train)), fraction=fraction, seed=seed))
    mine, held_out = (Examples(train.inputs, train.targets, some) for some in rows)
    return mine, held_out


def own_model(context: Context) -> nn.Module:
    """The model that the run config names, for the data that the server describes."""
    described, data = data_of(context)
    x, y = (torch.from_numpy(part) for part in data.train)
    dataset = Dataset((x, y), (x, y), described.num_classes)
    config = _config(context)
    return build(config.model, dataset, seed=config.seed)


def _config(context: Context) -> Config:
    """The configuration, of which the server's own app may have more keys than ours."""
    known = Config.keys()
    return Config.of({key: x for key, x in context.run_config.items() if key in known})


def _client_app() -> ClientApp:
    app, own = ClientApp(), Client(own_model, own_examples)
    app.train()(lambda message, context: own.train(message, own_context(message, context)))
    app.evaluate()(lambda message, context: own.evaluate(message, own_context(message, context)))
    app.query()(introduced)
    return app


client = _client_app()
