"""The off switch of the fence, and the one way in which it replaces methods of others."""

from __future__ import annotations

import os
from functools import cache
from types import ModuleType
from typing import Any, Self


@cache
def is_plain() -> bool:
    """Whether ``FEDEXP_PLAIN=1`` asks for Flower, PyTorch and Ray as they are.

    The environment is read once: the question comes with every client.
    """
    return os.environ.get("FEDEXP_PLAIN", "") not in ("", "0")


class Patch:
    """Methods of somebody else's class that are replaced for a while.

    The patch finds the originals when it is made. A name that the class does not have is left
    alone, and with ``FEDEXP_PLAIN=1`` all of them are. Threads may enter one patch at the same
    time: whoever leaves first restores the originals for all.

    Args:
        owner: the class, or a module of which functions are replaced.
        methods: replacement by name.

    Example:
        >>> from fedexp.simulation.flower.switch import Patch
        >>> class Greeting:
        ...     def text(self):
        ...         return "hello"
        >>> with Patch(Greeting, text=lambda self: "hi", colour=lambda self: "red"):
        ...     print(Greeting().text(), hasattr(Greeting, "colour"))
        hi False
        >>> Greeting().text()
        'hello'
    """

    def __init__(self, owner: type[Any] | ModuleType, **methods: Any) -> None:
        self.owner = owner
        self.originals = (
            {} if is_plain() else {k: v for k, v in vars(owner).items() if k in methods}
        )
        self.methods = {name: methods[name] for name in self.originals}

    def __enter__(self) -> Self:
        for name, method in self.methods.items():
            setattr(self.owner, name, method)
        return self

    def __exit__(self, *_: object) -> None:
        for name, method in self.originals.items():
            setattr(self.owner, name, method)
