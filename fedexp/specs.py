"""What a choice with settings looks like in text: ``fedadam(eta=0.03, tau=1e-3)``."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

_OPENING, _CLOSING = "([{", ")]}"
_CONSTANTS = {
    "true": True,
    "false": False,
    "none": None,
    "inf": float("inf"),
    "-inf": -float("inf"),
}


@dataclass(frozen=True)
class Spec:
    """A name and the settings in brackets behind it, if there are any.

    Attributes:
        name: a key of a table, or ``module:name`` of one's own.
        settings: value by name, with underscores; numbers, truth values, None, lists or text.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, text: str) -> Self:
        """Read ``name`` or ``name(key=value, ...)``; keys may have hyphens or underscores.

        Raises:
            ValueError: a bracket is missing, a setting has no name or is given twice.
        """
        name, bracket, rest = text.strip().partition("(")
        name = name.strip()
        if not name:
            raise ValueError(f"{text!r}: has no name before its settings. Write name(key=value).")
        if bracket and not rest.endswith(")"):
            raise ValueError(f"{text!r}: a bracket is missing. Write {name}(key=value).")
        settings: dict[str, Any] = {}
        for part in split_list(rest[:-1]) if bracket else []:
            key, equals, value = (x.strip() for x in part.partition("="))
            key = key.replace("-", "_")
            if not (equals and key and value):
                raise ValueError(f"{text!r}: {part!r} is no setting. Write {name}(key=value).")
            if key in settings:
                raise ValueError(f"{text!r}: {key} is given twice. Leave one out.")
            settings[key] = value_of(value)
        return cls(name, settings)

    def __str__(self) -> str:
        inside = ", ".join(f"{_kebab(k)}={_shown(v)}" for k, v in self.settings.items())
        return f"{self.name}({inside})" if inside else self.name


def split_list(text: str, at: str = ",") -> list[str]:
    """The parts of ``text`` between commas outside brackets, without spaces around them.

    Raises:
        ValueError: a bracket is open at the end, or closed without having been opened.
    """
    parts, depth = [""], 0
    for character in text:
        depth += (character in _OPENING) - (character in _CLOSING)
        if depth < 0:
            break
        if character == at and not depth:
            parts.append("")
        else:
            parts[-1] += character
    if depth:
        raise ValueError(f"{text!r}: a bracket is missing. Close every one that is open.")
    return [part.strip() for part in parts if part.strip()]


def value_of(text: str) -> Any:
    """A number, a truth value, None or a list if ``text`` is one, else the text itself."""
    if text.lower() in _CONSTANTS:
        return _CONSTANTS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def slug(text: str) -> str:
    """``text`` as the name of a folder: what file systems and shells trip over is replaced."""
    name = re.sub(r"[^\w.,=()+-]+", lambda found: "" if found[0].isspace() else ".", text)
    return name if name.strip(".") else f"_{name}"  # not the folder above


def _kebab(name: str) -> str:
    return name.replace("_", "-")


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
