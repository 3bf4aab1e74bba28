"""Datasets by name, and partitions of them among clients."""

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

Parts = Partition  # the name of earlier versions

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
