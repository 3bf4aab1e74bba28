"""Datasets by name, and partitions of them among clients."""

from typing import TYPE_CHECKING

from fedexp.extras import later as _later

if TYPE_CHECKING:
    from fedexp.datasets.dataset import Dataset, from_arrays, from_torch
    from fedexp.datasets.dealing import Partition
    from fedexp.datasets.flower_partitioners import flower_partitioner, parts_by
    from fedexp.datasets.holdout import split
    from fedexp.datasets.hub import from_hub, from_table
    from fedexp.datasets.own import data, from_files
    from fedexp.datasets.partition import (
        PARTITIONERS,
        by_key,
        classes_per_client,
        dirichlet,
        dirichlet_equal,
        iid,
        quantity_dirichlet,
        quantity_lognormal,
        shards,
    )
    from fedexp.datasets.skew import heterogeneity, label_counts, plot
    from fedexp.datasets.sources import SOURCES, load

    Parts = Partition
else:  # so that partitions can be made without PyTorch; Parts is the name of earlier versions
    __getattr__, __dir__ = _later(
        __name__,
        "torch",
        PARTITIONERS="fedexp.datasets.partition",
        SOURCES="fedexp.datasets.sources",
        Dataset="fedexp.datasets.dataset",
        Partition="fedexp.datasets.dealing",
        Parts="fedexp.datasets.dealing:Partition",
        by_key="fedexp.datasets.partition",
        classes_per_client="fedexp.datasets.partition",
        data="fedexp.datasets.own",
        dirichlet="fedexp.datasets.partition",
        dirichlet_equal="fedexp.datasets.partition",
        flower_partitioner="fedexp.datasets.flower_partitioners",
        from_arrays="fedexp.datasets.dataset",
        from_files="fedexp.datasets.own",
        from_hub="fedexp.datasets.hub",
        from_table="fedexp.datasets.hub",
        from_torch="fedexp.datasets.dataset",
        heterogeneity="fedexp.datasets.skew",
        iid="fedexp.datasets.partition",
        label_counts="fedexp.datasets.skew",
        load="fedexp.datasets.sources",
        parts_by="fedexp.datasets.flower_partitioners",
        plot="fedexp.datasets.skew",
        quantity_dirichlet="fedexp.datasets.partition",
        quantity_lognormal="fedexp.datasets.partition",
        shards="fedexp.datasets.partition",
        split="fedexp.datasets.holdout",
    )

__all__ = [
    "PARTITIONERS",
    "SOURCES",
    "Dataset",
    "Partition",
    "Parts",
    "by_key",
    "classes_per_client",
    "data",
    "dirichlet",
    "dirichlet_equal",
    "flower_partitioner",
    "from_arrays",
    "from_files",
    "from_hub",
    "from_table",
    "from_torch",
    "heterogeneity",
    "iid",
    "label_counts",
    "load",
    "parts_by",
    "plot",
    "quantity_dirichlet",
    "quantity_lognormal",
    "shards",
    "split",
]
