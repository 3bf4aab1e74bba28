"""Contents of messages between a grid and its nodes: Flower's RecordDict, lighter."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.app.message.typeddict import TypedDict

from fedexp.records import records_of


class Content(RecordDict):
    """A RecordDict whose ``array_records`` and the like are quick and refer to nobody but it.

    Flower's own check every record anew, and refer to themselves: a strategy that looks at them
    keeps its replies in memory until the garbage collector comes round.

    Args:
        records: by key.
    """

    def __init__(self, records: Mapping[str, Any]) -> None:
        super().__init__()
        self.__dict__["_data"].update(records)

    @property
    def array_records(self) -> TypedDict[str, ArrayRecord]:
        """The ArrayRecords."""
        return _View(self, ArrayRecord)

    @property
    def metric_records(self) -> TypedDict[str, MetricRecord]:
        """The MetricRecords."""
        return _View(self, MetricRecord)

    @property
    def config_records(self) -> TypedDict[str, ConfigRecord]:
        """The ConfigRecords."""
        return _View(self, ConfigRecord)

    def __reduce__(self) -> tuple[Any, ...]:
        return RecordDict, (dict(self),)


# As of ``_Lazy``: Flower writes the name into the header of what it sends.
Content.__qualname__ = RecordDict.__qualname__


class _View(TypedDict[str, Any]):
    """The records of one kind; a change is one of ``content``."""

    def __init__(self, content: RecordDict, kind: type[Any]) -> None:
        super().__init__(_accept, partial(_check, kind))
        self.__dict__["_data"].update(records_of(content, kind))
        self.content = content

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self.content[key] = value

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        del self.content[key]


def _accept(key: str) -> None:
    """Any: ``content`` looks at it."""


def _check(kind: type[Any], value: Any) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"Expected `{kind.__name__}`, got `{type(value).__name__}`.")
