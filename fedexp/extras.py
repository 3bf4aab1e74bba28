"""Optional dependencies: heavy libraries are imported where they are used, not before."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def need(module: str, extra: str) -> None:
    """Raise unless ``module`` is installed.

    Raises:
        ModuleNotFoundError: with the ``pip install`` that brings it.
    """
    if find_spec(module) is None:
        raise ModuleNotFoundError(
            f"{module} is not installed. Run: pip install 'fedexp[{extra}]'", name=module
        )


def imported(owner: str, name: str) -> Any:
    """What ``module:name`` names.

    Raises:
        ValueError: there is no such module or name, or importing it fails; ``owner`` comes first.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (Exception, SystemExit) as error:  # of any kind: it is the user's code
        line = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}".rstrip(".: ")
        raise ValueError(f"{owner}: {line}. Is it on the Python path?") from error


def later(package: str, **modules: str) -> Callable[[str], Any]:
    """A package's ``__getattr__``, for names that are imported when they are asked for.

    Args:
        package: the package's name.
        modules: module by name.
    """

    def getattr_(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(modules[name]), name)

    return getattr_
