"""Attributes that Flower's strategies have, as views of our rules and of what they remember.

An app may read them, and set those that Flower's strategies read in every round: ``eta`` halved
after ten rounds, say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from fedexp.records import from_record, to_record
from fedexp.strategies.extensions import Extension


class OfRule:
    """A field of the strategy's rule. To set it is to change the rule from the next step on.

    Args:
        kind: the direction or step size that has the field, wherever in the rule it is.
        name: of the field.
    """

    def __init__(self, kind: type, name: str) -> None:
        self.kind, self.name = kind, name

    def __get__(self, strategy: Any, owner: Any = None) -> Any:
        if strategy is None:
            return self
        return getattr(_find(strategy.optimizer, self.kind), self.name)

    def __set__(self, strategy: Any, value: Any) -> None:
        strategy.optimizer = _changed(strategy.optimizer, self.kind, self.name, value)


class OfExtension:
    """An extension of the strategy or a field of it, None without; to be given to the constructor.

    Args:
        kind: of the extension.
        name: of the field; the extension itself if empty.
    """

    def __init__(self, kind: type[Extension], name: str = "") -> None:
        self.kind, self.name = kind, name

    def __get__(self, strategy: Any, owner: Any = None) -> Any:
        if strategy is None:
            return self
        found = strategy.extensions.find(self.kind)
        return getattr(found, self.name) if found and self.name else found

    def __set__(self, strategy: Any, value: Any) -> None:
        raise AttributeError("is fixed when a strategy is made. Give it to the constructor.")


class OfSettings:
    """A setting for the clients, 0 if they get none."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __get__(self, strategy: Any, owner: Any = None) -> Any:
        return self if strategy is None else strategy.client_config.get(self.key, 0.0)

    def __set__(self, strategy: Any, value: Any) -> None:
        strategy.client_config[self.key] = value


class OfState:
    """What the rule remembers, None before the first step; not to be set, but ``state`` is.

    Args:
        owner: in the strategy's ``state``.
        sign: -1 where Flower's is of the mean of ``wᵢ - w``.
        as_list: without names.
    """

    def __init__(self, owner: str, sign: float = 1.0, *, as_list: bool = False) -> None:
        self.owner, self.sign, self.as_list = owner, sign, as_list

    def __get__(self, strategy: Any, owner: Any = None) -> Any:
        if strategy is None:
            return self
        if self.owner not in strategy.state:
            return None
        arrays = {k: np.asarray(self.sign * x) for k, x in strategy.state[self.owner].items()}
        return list(arrays.values()) if self.as_list else arrays

    def __set__(self, strategy: Any, value: Any) -> None:
        raise AttributeError("is what the rule remembers. Set state, a dict of dicts of arrays.")


class Current:
    """The model that a round starts from, None before ``configure_train``.

    Arrays by name, or an ArrayRecord where Flower has one; may be set to either.
    """

    def __init__(self, *, as_record: bool = False) -> None:
        self.as_record = as_record

    def __get__(self, strategy: Any, owner: Any = None) -> Any:
        if strategy is None:
            return self
        if strategy.round is None:
            return None
        params = strategy.round.params
        return to_record(params) if self.as_record else dict(params)

    def __set__(
        self, strategy: Any, value: ArrayRecord | Mapping[str, NDArray[Any]] | None
    ) -> None:
        if value is None:
            strategy.round = None
        else:
            strategy.begin(from_record(value) if isinstance(value, ArrayRecord) else value)


def _find(rule: Any, kind: type) -> Any:
    if isinstance(rule, kind):
        return rule
    parts = (getattr(rule, f.name) for f in fields(rule)) if is_dataclass(rule) else ()
    return next((found for part in parts if (found := _find(part, kind)) is not None), None)


def _changed(rule: Any, kind: type, name: str, value: Any) -> Any:
    if isinstance(rule, kind):
        return replace(rule, **{name: value})  # type: ignore[type-var]
    parts = {f.name: getattr(rule, f.name) for f in fields(rule)}
    changed = {k: _changed(x, kind, name, value) for k, x in parts.items() if is_dataclass(x)}
    return replace(rule, **changed)
