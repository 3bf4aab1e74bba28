"""Data, model and clients of a run, from its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Context
from torch import nn

from fedexp import keys
from fedexp.choices import (
    Choice,
    client_config,
    optimizer_key,
    strategy_keys,
)
from fedexp.clients import (
    Examples,
    client_app,
    default_loss,
    evaluate,
)
from fedexp.clients.metrics import Metrics
from fedexp.clients.module import module_arrays
from fedexp.clients.named import named_optimizer
from fedexp.clients.trial import try_model
from fedexp.config import Config
from fedexp.datasets import Dataset, Partition, from_files, load
from fedexp.datasets.dataset import Pair
from fedexp.datasets.dealing import Indices
from fedexp.datasets.holdout import held_out, own_test_rows, split
from fedexp.datasets.own_files import found
from fedexp.datasets.partition import partition_named
from fedexp.datasets.sources import read_npz_once
from fedexp.models import build, suited
from fedexp.strategies.private_layers import PrivateLayers


def dataset_of(config: Config) -> Dataset:
    """The dataset of a run, with inputs of the kind its model takes; loaded once per process."""
    return suited(config.model, loaded(config))


def loaded(config: Config) -> Dataset:
    """The dataset of a run, loaded once per process; without what the server keeps for itself."""
    whole = _whole(config)
    return without(whole) if config.server_step_size else whole


def validation_of(config: Config) -> Examples:
    """The part of the training data that no client gets where the server searches its step."""
    whole = suited(config.model, _whole(config))
    return _examples(whole.train, np.flatnonzero(held_back(whole)))


_HELD_BACK = 0.1  # of the rows of every natural client, or of every class


def held_back(data: Dataset) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which training rows the server keeps, as a mask; every group keeps most of its own."""
    targets = data.train[1].numpy()
    groups = targets if data.num_classes else np.zeros(len(targets), np.int64)
    return held_out(groups if data.keys is None else data.keys, _HELD_BACK)


@lru_cache(maxsize=4)
def without(data: Dataset) -> Dataset:
    """``data`` without the training rows that the server keeps."""
    rows = ~held_back(data)
    keys_left = None if data.keys is None else data.keys[rows]
    kept = torch.from_numpy(rows)
    return replace(data, train=(data.train[0][kept], data.train[1][kept]), keys=keys_left)


def _whole(config: Config) -> Dataset:
    own = {name: getattr(config, name) for name in ("impute", "targets", "standardize")}
    if not config.data:
        return load(config.dataset, data_dir=config.data_dir or None, seed=config.seed, **own)
    files = ("target", "client_from", "test_fraction", "drop", "image_size")
    return from_files(config.data, **own, **{name: getattr(config, name) for name in files})


_seen: dict[str, list[tuple[int, int, int]]] = {}


def reread_changed(config: Config) -> None:
    """Forget what was read of the user's own files if they have changed since."""
    path = config.data or config.dataset
    if not (config.data or path.endswith(".npz")):
        return
    with suppress(OSError, ValueError):  # what is wrong with them is said where they are read
        stats = [file.stat() for file in (found(path)[1] if config.data else [Path(path)])]
        # A copy may keep the time of its content; nobody sets the time of the last change itself.
        now = [(x.st_mtime_ns, x.st_ctime_ns, x.st_size) for x in stats]
        if _seen.setdefault(path, now) != now:
            for read in (from_files, read_npz_once, without, _partition, suited):
                read.cache_clear()
        _seen[path] = now


def partition_of(config: Config) -> Partition:
    """Every client's rows; computed once per process.

    Raises:
        ValueError: the dataset cannot be split so.
    """
    return _partition(config.model_copy(update=_NO_PARTITION))


def partitioner_of(config: Config, own: Dataset | None = None) -> str:
    """The partitioner of a run, with ``auto`` resolved.

    Args:
        config: of the run.
        own: a dataset in place of that of ``config``.
    """
    if config.partitioner != "auto":
        return config.partitioner
    if config.client_from or (own and own.keys is not None):
        return "natural"
    return "dirichlet" if (own or loaded(config)).num_classes else "iid"


_NUM_CLIENTS = 50  # where nothing says how many
PARTITION = {
    *(
        "server_step_size",
        "dataset",
        "data_dir",
        "impute",
        "targets",
        "partitioner",
        "num_clients",
        "seed",
    ),
    *("data", "target", "client_from", "test_fraction", "drop", "standardize", "image_size"),
    *("alpha", "sigma", "shards_per_client", "classes_per_client"),
}
# All else goes back to its default, so that configurations that split alike share a partition.
_NO_PARTITION = {
    name: field.default for name, field in Config.model_fields.items() if name not in PARTITION
}


@lru_cache(maxsize=4)
def _partition(config: Config) -> Partition:
    return split_among_clients(config, loaded(config))


def split_among_clients(config: Config, dataset: Dataset) -> Partition:
    """Every client's rows of ``dataset``.

    Raises:
        ValueError: it cannot be split so.
    """
    name = partitioner_of(config, dataset)
    return partition_named(
        name,
        dataset,
        num_clients=config.num_clients or (0 if name == "natural" else _NUM_CLIENTS),
        seed=config.seed,
        alpha=config.alpha,
        sigma=config.sigma,
        shards_per_client=config.shards_per_client,
        classes_per_client=config.classes_per_client,
    )


def examples(context: Context) -> tuple[Examples, Examples]:
    """Train and test examples of the client that ``context`` belongs to.

    Without ``local-test-fraction`` a natural client is tested on its own rows of the test set. One
    that has none there, and any other client, is tested on what it trains on.
    """
    partition, num_clients = (
        int(context.node_config[key]) for key in (keys.PARTITION_ID, keys.NUM_PARTITIONS)
    )
    config = Config.of({**context.run_config, "num-clients": num_clients})
    return examples_of(dataset_of(config), partition_of(config)[partition], config, partition)


def examples_of(
    dataset: Dataset, rows: Indices, config: Config, partition: int
) -> tuple[Examples, Examples]:
    """Train and test examples of the client of a partition that holds ``rows``."""
    if config.local_test_fraction:
        seed = int(np.random.SeedSequence([config.seed, partition]).generate_state(1)[0])
        train, test = split(rows, fraction=config.local_test_fraction, seed=seed)
        return _examples(dataset.train, train), _examples(dataset.train, test)
    is_natural = partitioner_of(config, dataset) == "natural"
    if is_natural and len(own := own_test_rows(dataset, rows)):
        return _examples(dataset.train, rows), _examples(dataset.test, own)
    return _examples(dataset.train, rows), _examples(dataset.train, rows)


def _examples(pair: Pair, rows: Indices) -> Examples:
    return Examples(*pair, torch.tensor(rows))


def model_of(config: Config) -> nn.Module:
    """The model of a run, with its seeded initial weights."""
    return build(config.model, dataset_of(config), seed=config.seed)


def check_model(config: Config) -> None:
    """Find out whether the model of a run can be trained on its data, and scored; nothing changes.

    Raises:
        ValueError: it cannot.
    """
    for key in strategy_keys(config):
        check_layers(config, key, model_of(config))
    metrics = Metrics.of(config.metrics)
    owner, examples = f"Config(model={config.model!r})", Examples(*dataset_of(config).train)
    for name, key in {optimizer_key(config, key): key for key in strategy_keys(config)}.items():
        settings = Config.of(config.values() | client_config(config, key)).clients
        try_model(owner, model_of(config), examples, named_optimizer(name), settings)
    if metrics:
        test = Examples(*dataset_of(config).test)
        evaluate(model_of(config), test, default_loss, metrics=metrics.check)


def check_layers(config: Config, key: str, model: nn.Module) -> None:
    """Raise ``ValueError`` if the private layers of a strategy are none or all of a model."""
    patterns = Choice.of(key).strategy.settings.get("private_layers", config.private_layers)
    if patterns:
        PrivateLayers(str(patterns)).check_names(module_arrays(model))


def check_run_config(values: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` unless ``values`` are a configuration."""
    Config.of(values)


client = client_app(
    lambda context: model_of(Config.of(context.run_config)), examples, check=check_run_config
)
