"""What a model and a loss can remember from one call to the next, besides parameters."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

from fedexp.clients.losses import Loss

_FIXED = ModuleType, FunctionType, BuiltinFunctionType, type


class Memory:
    """The attributes of all parts, and what their functions have from closures and globals.

    Made before some calls, it tells afterwards whether any of that has ``changed``.
    """

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        self._parts = module, loss
        self._values = [(value, _content(value)) for value in _reached(module, loss)]

    def changed(self) -> bool:
        """Whether anything is no longer the same object, of the same content."""
        now = list(_reached(*self._parts))
        return len(now) != len(self._values) or any(
            x is not y or _content(x) != content
            for x, (y, content) in zip(now, self._values, strict=True)
        )


def _reached(module: nn.Module, loss: Loss) -> Iterator[Any]:
    functions: list[Any] = []
    for part in (*module.modules(), *(loss.modules() if isinstance(loss, nn.Module) else ())):
        yield from (x for name, x in vars(part).items() if name not in _OF_EVERY_MODULE)
        functions.append(part.forward)
    call: Any = loss
    while isinstance(call, partial):
        call = call.func
    if not isinstance(call, nn.Module):
        yield from getattr(call, "__dict__", {}).values()
        functions.append(call if inspect.isroutine(call) else call.__call__)
    for function in functions:
        yield from _named_in(function)


def _named_in(function: Callable[..., Any]) -> Iterator[Any]:
    owner = getattr(function, "__self__", None)
    if not isinstance(owner, nn.Module):
        yield from getattr(owner, "__dict__", {}).values()
    if inspect.isfunction(getattr(function, "__func__", function)):
        names = inspect.getclosurevars(function)
        yield from names.nonlocals.values()
        yield from names.globals.values()


def _content(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x._version
    if isinstance(x, nn.Module):
        return [b._version for b in x.buffers()]
    if isinstance(x, _FIXED):
        return None
    try:
        return pickle.dumps(x)
    except Exception:  # of whatever kind: the object's own code runs
        return repr(x)


_OF_EVERY_MODULE = vars(nn.Module()).keys()
