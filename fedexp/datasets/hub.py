"""The Hugging Face Hub through ``flwr-datasets``, and partitioners across that border."""

from typing import Any

import numpy as np

from fedexp.datasets.dataset import Dataset, from_arrays
from fedexp.datasets.partition import PARTITIONERS
from fedexp.datasets.parts import Array, Parts, held_out
from fedexp.extras import need


def from_hub(spec: str) -> Dataset:
    """Any dataset of the Hub: ``owner/name``, ``owner/name:target`` or ``owner/name:target:key``.

    Args:
        spec: repository, then the columns of the target (else the only column of classes) and of
            the natural client (else there are none).

    Raises:
        ModuleNotFoundError: flwr-datasets is not installed.
        ValueError: columns that are not there.
    """
    need("flwr_datasets", "hub")
    from flwr_datasets import FederatedDataset

    name, target, key = [*spec.split(":"), "", ""][:3]
    federated = FederatedDataset(dataset=name, partitioners={"train": 1}, shuffle=False)
    train = federated.load_split("train")
    try:
        test = federated.load_split("test")
    except ValueError:  # no such split
        test = None
    return from_table(train, test, target=target, key=key)


def from_table(train: Any, test: Any = None, *, target: str = "", key: str = "") -> Dataset:
    """A dataset of ``datasets.Dataset`` tables; all other columns than these two are inputs.

    Args:
        train: one column of images, or any number of numeric columns.
        test: the same columns; None holds out a fifth of the rows.
        target: column of classes or numbers; by default the only ``ClassLabel`` column.
        key: column of natural clients, or none.
    """
    need("flwr_datasets", "hub")
    from datasets import concatenate_datasets

    target = target or _only_class_column(train)
    if absent := [name for name in (target, key) if name and name not in train.column_names]:
        columns = ", ".join(train.column_names)
        raise ValueError(f"from_table(column={absent[0]!r}): there is none. Columns: {columns}.")
    table = train if test is None else concatenate_datasets([train, test])
    x = _inputs(table, [name for name in table.column_names if name not in (target, key)])
    y = _targets(table, target)
    if test is None:
        is_test = held_out(y if y.dtype.kind == "i" else np.zeros(len(y), np.int64), 0.2)
    else:
        is_test = np.arange(len(table)) >= len(train)
    keys = np.asarray(table[key][:])[~is_test] if key else None
    return from_arrays(x[~is_test], y[~is_test], x[is_test], y[is_test], keys=keys)


def parts_by(partitioner: Any, dataset: Dataset) -> Parts:
    """Partition our data with any ``flwr_datasets.partitioner.Partitioner``.

    Args:
        partitioner: not yet given a dataset. It sees the columns ``row``, ``label`` and, if the
            data has natural clients, ``key``; so ``partition_by`` is one of the last two.
        dataset: whose training rows are partitioned.
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
    return Parts(np.concatenate(rows), offsets)


def flower_partitioner(name: str, *, partition_by: str, **settings: Any) -> Any:
    """One of our partitioners as a ``flwr_datasets`` one, e.g. for a ``FederatedDataset``.

    Args:
        name: a key of `PARTITIONERS`.
        partition_by: column of the labels, or of the keys for ``natural``.
        settings: ``num_clients``, ``seed`` and what else the partitioner takes.
    """
    need("flwr_datasets", "hub")
    from flwr_datasets.partitioner import Partitioner

    class OurPartitioner(Partitioner):  # type: ignore[misc]
        _parts: Parts | None = None

        def load_partition(self, partition_id: int) -> Any:
            return self.dataset.select(self.parts[partition_id])

        @property
        def num_partitions(self) -> int:
            return len(self.parts)

        @property
        def parts(self) -> Parts:
            if self._parts is None:
                labels = np.asarray(self.dataset[partition_by][:])
                self._parts = PARTITIONERS[name](labels, **settings)
            return self._parts

    return OurPartitioner()


def _only_class_column(table: Any) -> str:
    from datasets import ClassLabel

    found = [name for name, kind in table.features.items() if isinstance(kind, ClassLabel)]
    if len(found) != 1:
        raise ValueError(
            f"from_table(target=''): {len(found)} columns hold classes. Name one of: "
            f"{', '.join(table.column_names)}, as in `hub:owner/name:column`."
        )
    return str(found[0])


def _inputs(table: Any, columns: list[str]) -> Array:
    if len(columns) == 1:
        rows = np.stack([np.asarray(row) for row in table[columns[0]]])
        return np.moveaxis(rows, -1, 1) if rows.ndim == 4 and rows.shape[-1] in (1, 3) else rows
    return np.stack([np.asarray(table[name][:], np.float32) for name in columns], axis=1)


def _targets(table: Any, column: str) -> Array:
    values = np.asarray(table[column][:])
    if values.dtype.kind in "fiub":
        return values
    return np.unique(values, return_inverse=True)[1]
