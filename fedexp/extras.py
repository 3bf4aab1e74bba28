"""Optional dependencies: heavy libraries are imported where they are used, not before."""

from __future__ import annotations

import sys
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def need(module: str, extra: str) -> None:
    """Raise unless ``module`` is installed.

    Raises:
        ModuleNotFoundError: with the ``pip install`` that brings it.
    """
    if find_spec(module) is None:
        raise missing(module, extra)


def missing(module: str, extra: str) -> ModuleNotFoundError:
    """The error that names the ``pip install`` of an extra that brings ``module``."""
    line = f"{module} is not installed. Run: pip install 'fedexp[{extra}]'"
    return ModuleNotFoundError(line, name=module)


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
        raise ValueError(f"{owner}: {line}. {_remedy(error, module, attribute)}") from error


def _remedy(error: BaseException, module: str, attribute: str) -> str:
    if isinstance(error, ModuleNotFoundError):
        return "Is it on the Python path?"
    if module in sys.modules and isinstance(error, AttributeError) and error.name == attribute:
        names = get_close_matches(attribute, vars(sys.modules[module]), 1)
        hint = f" Did you mean {names[0]!r}?" if names else ""
        return f"Name one that {module} has.{hint}"
    return f"Correct {module}."


def later(
    package: str, extra: str, /, **modules: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's ``__getattr__`` and ``__dir__``, for names that are imported when they are used.

    So ``import fedexp.clients`` takes no time and works without PyTorch. A name must differ from
    all submodules of its package: Python puts an imported submodule in the place of the name.

    Args:
        package: the package's name.
        extra: brings PyTorch to those who lack it and use a name that needs it.
        modules: the module that defines each name; ``module:other`` where it calls it otherwise.

    Example:
        >>> from fedexp.extras import later
        >>> getattr_, dir_ = later("fedexp", "torch", Fraction="fractions")
        >>> getattr_("Fraction")(1, 2)
        Fraction(1, 2)
        >>> "Fraction" in dir_()
        True
    """

    def getattr_(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, own_name = modules[name].partition(":")
        try:
            return getattr(import_module(module), own_name or name)
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise missing("torch", extra) from None

    def dir_() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return getattr_, dir_
