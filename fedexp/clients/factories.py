"""Optimizers that are made as those of ``torch.optim`` are: ``function(params, lr=..., ...)``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from inspect import Parameter
from typing import Any, Literal

import torch
from torch import nn

from fedexp.clients.arguments import example_of, one_line, parameters_of, takes_any
from fedexp.clients.loop import Optimizer
from fedexp.clients.settings import ClientSettings

TORCHS: dict[str, type[torch.optim.Optimizer]] = {
    name.lower(): x
    for name, x in sorted(vars(torch.optim).items(), key=lambda item: item[0].lower())
    if isinstance(x, type) and issubclass(x, torch.optim.Optimizer) and name != "Optimizer"
}
"""The optimizers of ``torch.optim`` by their lower-case names."""

Kind = Literal["torch", "params", "settings"]


def torchs_own(name: str) -> type[torch.optim.Optimizer] | None:
    """``adamw``, ``AdamW`` or ``torch.optim.AdamW``; None for any other name."""
    return TORCHS.get(name.removeprefix("torch.optim.").lower())


def kind_of(function: Callable[..., Any]) -> Kind:
    """How ``function`` is called: ``(params, lr=...)``, ``(params)`` or ``(params, settings)``."""
    parameters = parameters_of(function)
    if "lr" in parameters:
        return "torch"
    positional = Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD
    required = [p for p in parameters.values() if p.kind in positional and p.default is p.empty]
    if len(required) != 1 and not isinstance(function, type):
        return "settings"
    return "torch" if takes_any(parameters) else "params"


@dataclass(frozen=True)
class Factory:
    """Calls ``function`` with the settings of a client that it takes, and settings of its own.

    Attributes:
        function: a class or function that returns an optimizer.
        owner: what named it, for messages.
    """

    function: Callable[..., Any]
    owner: str

    def __call__(
        self, params: Iterable[nn.Parameter], settings: ClientSettings, **own: Any
    ) -> Optimizer:
        """The optimizer, at the client's learning rate and weight decay.

        Raises:
            ValueError: a weight decay that ``function`` does not take, or whatever it raises.
        """
        also = (settings,) if self._kind == "settings" else ()
        if self._kind == "torch":
            own = {"lr": settings.lr, **self._decay(settings.weight_decay), **own}
        try:
            made = self.function(params, *also, **own)
        except Exception as error:  # of any kind: it may be the user's code
            raise ValueError(
                f"{self.owner}: {one_line(error)}. Choose other settings, or another optimizer."
            ) from error
        if not hasattr(made, "step") or not hasattr(made, "param_groups"):
            raise ValueError(
                f"{self.owner}: gives {type(made).__name__}, must give a torch optimizer. "
                "Return the optimizer."
            )
        return made  # type: ignore[no-any-return]

    @property
    def name(self) -> str:
        """Of the function, with its module."""
        if self.function in TORCHS.values():
            return f"torch.optim.{self.function.__name__}"
        name = getattr(self.function, "__qualname__", type(self.function).__name__)
        return f"{getattr(self.function, '__module__', '')}.{name}"

    @property
    def shared(self) -> tuple[str, ...]:
        """Settings of the clients, by attribute, that it takes as arguments."""
        if self._kind != "torch":
            return ()
        decays = "weight_decay" in self._parameters or takes_any(self._parameters)
        return ("lr", "weight_decay") if decays else ("lr",)

    @property
    def own(self) -> dict[str, Any]:
        """Its other arguments: the default by name, None where there is none."""
        return {p.name: None if p.default is p.empty else p.default for p in self._others}

    @property
    def examples(self) -> dict[str, Any]:
        """A value of the kind of each of them, see ``example_of``."""
        return {p.name: example_of(p) for p in self._others}

    @property
    def _others(self) -> list[Parameter]:
        varying = Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD
        plain = [p for p in self._parameters.values() if p.kind not in varying]
        others = plain[2 if self._kind == "settings" else 1 :]
        return [p for p in others if p.name not in self.shared]

    @cached_property
    def _kind(self) -> Kind:
        return kind_of(self.function)

    @cached_property
    def _parameters(self) -> Mapping[str, Parameter]:
        return parameters_of(self.function)

    def _decay(self, weight_decay: float) -> dict[str, float]:
        if weight_decay and "weight_decay" not in self.shared:
            raise ValueError(
                f"{self.owner}: takes no weight decay, weight_decay={weight_decay} is given. "
                "Use 0.0."
            )
        wanted = weight_decay or "weight_decay" in self._parameters
        return {"weight_decay": weight_decay} if wanted else {}
