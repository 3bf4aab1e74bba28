"""Numbers where numbers belong: the fields of rules are held to their annotations."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np

C = TypeVar("C", bound=type)

_KINDS: dict[str, tuple[Any, str]] = {
    "float": (Real, "a number"),
    "int": (Integral, "a whole number"),
    "bool": (bool | np.bool_, "True or False"),
}


def with_kinds(cls: C) -> C:
    """A class whose ``__post_init__`` first refuses text, lists and the like for a number.

    Goes below ``@dataclass``. Fields with other annotations than ``float``, ``int``, ``bool``, and
    these ``| None``, are not looked at.

    Example:
        >>> from dataclasses import dataclass
        >>> from fedexp.strategies.kinds import with_kinds
        >>> @dataclass(frozen=True)
        ... @with_kinds
        ... class Rule:
        ...     value: "float" = 1.0
        >>> Rule("fast")
        Traceback (most recent call last):
        ValueError: Rule(value='fast'): must be a number.
    """
    checked = {
        name: (*_KINDS[kind], str(text).endswith("| None"))
        for name, text in cls.__annotations__.items()
        if (kind := str(text).removesuffix(" | None")) in _KINDS
    }
    inner = getattr(cls, "__post_init__", None)  # its own, or that of the class above

    def __post_init__(self: Any) -> None:
        for name, (kinds, said, optional) in checked.items():
            value = getattr(self, name)
            if not (isinstance(value, kinds) or (optional and value is None)):
                raise ValueError(
                    f"{type(self).__name__}({name}={repr(value)[:80]}): must be {said}."
                )
        if inner:
            inner(self)

    cls.__post_init__ = __post_init__  # type: ignore[attr-defined]
    return cls
