"""Contents of messages between a grid and its nodes: Flower's RecordDict, lighter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedexp.simulation.flower.lazy_arrays import put
from fedexp.simulation.flower.switch import is_plain


def content_of(records: Mapping[str, Any]) -> RecordDict:
    """A content that holds ``records``.

    Uses ``put`` and replaces the three views, ``array_records`` and the like. Flower's own views
    check every record anew: 22 us for the three in place of 4. They also refer to themselves, so a
    reply that a strategy has looked at stays in memory until the garbage collector runs. With
    ``FEDEXP_PLAIN=1`` it is Flower's RecordDict.
    """
    return RecordDict(dict(records)) if is_plain() else Content(records)


class Content(RecordDict):
    """A RecordDict whose ``array_records`` and the like are quick and refer to nobody but it.

    Args:
        records: by key.
    """

    def __init__(self, records: Mapping[str, Any]) -> None:
        super().__init__()
        put(self, records)

    @property
    def array_records(self) -> Any:
        """The ArrayRecords."""
        return _View(self, ArrayRecord)

    @property
    def metric_records(self) -> Any:
        """The MetricRecords."""
        return _View(self, MetricRecord)

    @property
    def config_records(self) -> Any:
        """The ConfigRecords."""
        return _View(self, ConfigRecord)

    def __reduce__(self) -> tuple[Any, ...]:
        return RecordDict, (dict(self),)


# As for ``LazyArray``: Flower writes the name into the header of what it sends.
Content.__qualname__ = RecordDict.__qualname__


class _View(MutableMapping[str, Any]):
    """The records of one kind; whoever changes the view changes ``content``."""

    def __init__(self, content: RecordDict, kind: type[Any]) -> None:
        self.content, self.kind = content, kind
        self.records = {key: x for key, x in content.items() if isinstance(x, kind)}

    def __getitem__(self, key: str) -> Any:
        return self.records[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if not isinstance(value, self.kind):
            expected, got = self.kind.__name__, type(value).__name__
            raise TypeError(f"Expected `{expected}`, got `{got}`.")
        self.content[key] = value  # which looks at the key
        self.records[key] = value

    def __delitem__(self, key: str) -> None:
        del self.records[key]
        del self.content[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        return repr(self.records)

    def copy(self) -> dict[str, Any]:
        """The records, apart from ``content``."""
        return dict(self.records)
