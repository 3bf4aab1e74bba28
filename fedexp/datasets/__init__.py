"""Datasets by name, and partitions of them among clients."""

from fedexp.datasets.dataset import Dataset
from fedexp.datasets.partition import Parts, dirichlet_equal, iid
from fedexp.datasets.sources import SOURCES, load

__all__ = ["SOURCES", "Dataset", "Parts", "dirichlet_equal", "iid", "load"]
