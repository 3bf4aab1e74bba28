"""Partitioners of ``flwr-datasets`` for our data, and ours for data of ``flwr-datasets``."""

from typing import Any

import numpy as np

from fedexp.datasets.dataset import Dataset
from fedexp.datasets.dealing import Partition
from fedexp.datasets.partition import PARTITIONERS
from fedexp.extras import need


def parts_by(partitioner: Any, dataset: Dataset) -> Partition:
    """Partition our data with any ``flwr_datasets.partitioner.Partitioner``.

    Args:
        partitioner: one without a dataset. It sees the columns ``row``, ``label`` and, if the data
            has natural clients, ``key``; so its ``partition_by`` is ``label`` or ``key``.
        dataset: the data whose training rows are partitioned.

    Raises:
        ModuleNotFoundError: flwr-datasets is not installed.

    Example:
        >>> import numpy as np
        >>> from flwr_datasets.partitioner import IidPartitioner
        >>> from fedexp.datasets import from_arrays, parts_by
        >>> x, y = np.zeros((6, 1), np.float32), np.array([0, 1] * 3)
        >>> parts = parts_by(IidPartitioner(num_partitions=3), from_arrays(x, y, x, y))
        >>> parts.sizes.tolist()
        [2, 2, 2]
    """
    need("flwr_datasets", "hub")
    import datasets

    columns = {"row": np.arange(len(dataset.train[1])), "label": dataset.train[1].numpy()}
    if dataset.keys is not None:
        columns["key"] = dataset.keys
    partitioner.dataset = datasets.Dataset.from_dict(columns)
    rows = [
        np.sort(np.asarray(partitioner.load_partition(i)["row"][:], np.int64))
        for i in range(partitioner.num_partitions)
    ]
    offsets = np.cumsum([0, *map(len, rows)])
    return Partition(np.concatenate(rows), offsets)


def flower_partitioner(name: str, *, partition_by: str, **settings: Any) -> Any:
    """One of our partitioners as a ``flwr_datasets`` one, e.g. for a ``FederatedDataset``.

    Args:
        name: a key of `PARTITIONERS`.
        partition_by: column of the labels, or of the keys for ``natural``.
        settings: ``num_clients``, ``seed`` and the partitioner's other arguments.

    Returns:
        A ``flwr_datasets.partitioner.Partitioner``.

    Raises:
        ModuleNotFoundError: flwr-datasets is not installed.

    Example:
        >>> import datasets
        >>> from fedexp.datasets import flower_partitioner
        >>> table = datasets.Dataset.from_dict({"text": list("abcdef"), "label": [0, 1] * 3})
        >>> partitioner = flower_partitioner("iid", partition_by="label", num_clients=3, seed=0)
        >>> partitioner.dataset = table
        >>> [len(partitioner.load_partition(i)) for i in range(3)]
        [2, 2, 2]
    """
    need("flwr_datasets", "hub")
    from flwr_datasets.partitioner import Partitioner

    class OurPartitioner(Partitioner):  # type: ignore[misc]
        _parts: Partition | None = None

        def load_partition(self, partition_id: int) -> Any:
            return self.dataset.select(self.parts[partition_id])

        @property
        def num_partitions(self) -> int:
            return len(self.parts)

        @property
        def parts(self) -> Partition:
            # On first use: flwr-datasets sets the dataset after it has made the partitioner.
            if self._parts is None:
                labels = np.asarray(self.dataset[partition_by][:])
                self._parts = PARTITIONERS[name](labels, **settings)
            return self._parts

    return OurPartitioner()
