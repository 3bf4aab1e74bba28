"""Settings in brackets, held against the arguments of what they are for."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Any


def parameters_of(function: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of a function or class by name; none if it does not tell."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}


def takes_any(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Whether keywords of any name are accepted."""
    return any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def matched(owner: str, settings: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """``settings`` under their names in ``known``, where upper and lower case are the same.

    Raises:
        ValueError: one of them is unknown; the line names the nearest and all that are known.
    """
    names = {name.lower(): name for name in known}
    for key in settings:
        if key.lower() not in names:
            hint, listed = did_you_mean(kebab(key), map(kebab, known)), ", ".join(map(kebab, known))
            raise ValueError(
                f"{owner}: has no setting {kebab(key)!r}.{hint} Known: {listed or 'none'}."
            )
    return {names[key.lower()]: value for key, value in settings.items()}


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`` Did you mean 'x'?``, if one of ``names`` is much like ``name``."""
    near = get_close_matches(name, names, 1)
    return f" Did you mean {near[0]!r}?" if near else ""


def kebab(name: str) -> str:
    """As it is written in brackets."""
    return name.replace("_", "-")


def one_line(error: BaseException) -> str:
    """What an error of somebody else's code says, its kind first, without a full stop."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}".rstrip(".: ")
