"""Optional dependencies: heavy libraries are imported where they are used, not before."""

from __future__ import annotations

from importlib.util import find_spec


def need(module: str, extra: str) -> None:
    """Raise unless ``module`` is installed.

    Raises:
        ModuleNotFoundError: with the ``pip install`` that brings it.
    """
    if find_spec(module) is None:
        raise ModuleNotFoundError(
            f"{module} is not installed. Run: pip install 'fedexp[{extra}]'", name=module
        )
