"""Settings in brackets, held against the arguments of what they are for."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from fedexp.clients.ranges import is_real


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


_ANNOTATED = {
    frozenset({"bool"}): True,
    frozenset({"int"}): 1,
    frozenset({"float"}): 1.0,
    frozenset({"int", "float"}): 1.0,
}
_OTHER_WORDS = {"class", "typing", "Optional", "Union", "None", "NoneType", "torch", "Tensor"}
_FROM_TEXT: Any = bool, int, float, str, list, tuple, type(None)
"""What brackets can hold. Other values come from Python, and are the function's to judge."""


def example_of(parameter: inspect.Parameter) -> Any:
    """A value of the kind that an argument takes; None if it does not tell.

    Its annotation says so, else its default; one that is whole may stand for any number.
    """
    words = frozenset(re.findall(r"\w+", str(parameter.annotation))) - _OTHER_WORDS
    if words in _ANNOTATED:
        return _ANNOTATED[words]
    return _any_number(None if parameter.default is parameter.empty else parameter.default)


def _any_number(default: Any) -> Any:
    return float(default) if _is_whole(default) else default


def of_kinds(
    owner: str,
    settings: Mapping[str, Any],
    examples: Mapping[str, Any],
    defaults: Mapping[str, Any],
) -> dict[str, Any]:
    """``settings``, each of the kind of its example; whole numbers as integers where those are due.

    Raises:
        ValueError: one is of another kind. None is of any kind where it is the default.
    """
    found = dict(settings)
    for name, value in settings.items():
        if value is None and defaults.get(name) is None:
            continue
        if kind := _other_kind(value, examples.get(name)):
            raise ValueError(f"{owner}: {kebab(name)}={value!r} must be {kind}.")
        found[name] = _as_kind(value, examples.get(name))
    return found


def _as_kind(value: Any, example: Any) -> Any:
    """1000 for 1e3, and [0.0, 0.9] for [0, 0.9], of which torch wants both alike."""
    if _is_whole(example) and isinstance(value, float):
        return int(value)
    if isinstance(example, tuple) and all(isinstance(x, float) for x in example):
        return type(value)(float(x) if is_real(x) else x for x in value)
    return value


def _other_kind(value: Any, example: Any) -> str:
    """What ``value`` must be to be of the kind of ``example``; empty if it is."""
    if not isinstance(value, _FROM_TEXT):
        return ""
    if isinstance(example, bool):
        return "" if isinstance(value, bool) else "true or false"
    if _is_whole(example):
        return "" if is_real(value) and value % 1 == 0 else "a whole number"
    if is_real(example):
        return "" if is_real(value) and value == value else "a number"  # NaN is none
    if isinstance(example, tuple):
        listed = isinstance(value, list | tuple)
        pairs = zip(value, map(_any_number, example), strict=False) if listed else ()
        wrong = not listed or any(_other_kind(x, like) for x, like in pairs)
        return f"a list like {list(example)}" if wrong else ""
    return ""


def _is_whole(example: Any) -> bool:
    return is_real(example, whole=True)


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
