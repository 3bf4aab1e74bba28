"""Datasets by name, and partitions of them among clients."""

from fedexp.datasets.dataset import Dataset, from_arrays, from_torch
from fedexp.datasets.hub import flower_partitioner, from_hub, from_table, parts_by
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
    split,
)
from fedexp.datasets.parts import Parts
from fedexp.datasets.skew import heterogeneity, label_counts, plot
from fedexp.datasets.sources import SOURCES, load

__all__ = [
    "PARTITIONERS",
    "SOURCES",
    "Dataset",
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
