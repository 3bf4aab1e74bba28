"""Arguments of strategies, from text and from the keys of a configuration."""

from __future__ import annotations

import inspect
from difflib import get_close_matches
from typing import Any

from fedexp.config import Config
from fedexp.extras import need
from fedexp.readers import strategy_arguments
from fedexp.specs import Spec
from fedexp.strategies import STRATEGIES, FedOpt
from fedexp.strategies.private import CentralPrivacy, Private
from fedexp.strategies.private_clients import LocalPrivacy
from fedexp.strategies.robustness import Clip, FixedClip, QuantileClip
from fedexp.strategies.waiting import Waiting


def clip_of(config: Config, bound: Any = None, quantile: Any = None) -> Clip | None:
    """The bound on updates that ``clip`` and ``clip-quantile`` name."""
    bound = config.clip if bound is None else bound
    quantile = config.clip_quantile if quantile is None else quantile
    if quantile:
        return QuantileClip(quantile=quantile, **({"initial": bound} if bound else {}))
    return FixedClip(bound) if bound else None


_PRIVACY: dict[str, type[Private]] = {"central": CentralPrivacy, "local": LocalPrivacy}


def privacy_of(text: str) -> Private | None:
    """What ``--privacy`` names; None for no text.

    Raises:
        ValueError: no such privacy, or a setting that it does not have or cannot take.
        ModuleNotFoundError: nothing can do the accounting.
    """
    if not text:
        return None
    owner = f"Config(privacy={text!r})"
    try:
        spec = Spec.of(text)
        if spec.name not in _PRIVACY:
            raise ValueError(f"unknown {spec.name!r}. Known: {', '.join(_PRIVACY)}.")
        kind = _PRIVACY[spec.name]
        known = inspect.signature(kind).parameters
        for name, value in spec.settings.items():
            if name not in known:
                shown = ", ".join(x.replace("_", "-") for x in known)
                raise ValueError(f"no {name.replace('_', '-')!r}. Known: {shown}.")
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name.replace('_', '-')}={value!r}: must be a number.")
        private = kind(**spec.settings)
    except ValueError as error:
        raise ValueError(f"{owner}: {error}") from None
    need("dp_accounting", "dp")
    return private


def waiting_of(config: Config) -> Waiting | None:
    """How a round waits for devices; None where nothing says so, as in a simulation."""
    named = ("sample", "enough", "deadline")
    given = {name: value for name in named if (value := getattr(config, name))}
    return Waiting(**given) if given or config.min_nodes else None


_OWN_IF_0 = {
    *("max_step_size", "server_learning_rate", "smoothing"),
    *("relaxation", "drop_beyond", "min_replies"),
}


def from_config(config: Config, cls: type[FedOpt], settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments from the config fields; takes clip and privacy out of ``settings``."""
    options: dict[str, Any] = {
        name: value
        for name, field in strategy_arguments(cls).items()
        if (value := getattr(config, field)) or field not in _OWN_IF_0
    }
    clip = settings.pop("clip", None), settings.pop("clip_quantile", None)
    options |= {"clip": clip_of(config, *clip), "waiting": waiting_of(config)}
    private = privacy_of(str(settings.pop("extensions", None) or config.privacy))
    options.pop("extensions", None)
    return options | ({"extensions": [private]} if private else {})


_ALSO_CALLED = {"eta": "server_learning_rate", "lr": "server_learning_rate"}


def given_to(spec: Spec, cls: type) -> dict[str, Any]:
    """The settings of ``spec`` as arguments of ``cls``.

    Raises:
        ValueError: an argument that it does not have, or a value of another kind.
    """
    arguments = arguments_of(cls)
    alias = {field: name for name, field in strategy_arguments(cls).items()}
    settings = {alias.get(name, name): value for name, value in spec.settings.items()}
    for name, value in settings.items():
        if name not in arguments:
            shown = sorted(x.replace("_", "-") for x in arguments)
            near = _ALSO_CALLED.get(name, name).replace("_", "-")
            close = get_close_matches(near, shown, 1)
            hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(shown)}."
            raise ValueError(f"{spec}: {spec.name} has no {name.replace('_', '-')!r}. {hint}")
        default = arguments[name]
        number = isinstance(default, int | float) and not isinstance(default, bool)
        if isinstance(default, bool) and not isinstance(value, bool):
            raise ValueError(f"{spec}: {name}={value!r} must be true or false.")
        if number and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{spec}: {name}={value!r} must be a number. Use {default}, say.")
    return settings


def arguments_of(cls: type) -> dict[str, Any]:
    """Arguments of a strategy along its base classes, and their defaults."""
    found: dict[str, Any] = {"clip_quantile": 0.0} if issubclass(cls, FedOpt) else {}
    for base in cls.__mro__:
        for name, parameter in inspect.signature(base).parameters.items():
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                found.setdefault(name, parameter.default)
    return found


class in_one_line:
    """What goes wrong in a rule's constructor, in one line that names the rule."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, ValueError) and str(self.spec.name) in STRATEGIES:
            raise ValueError(
                f"{self.spec}: {error}" if self.spec.settings else str(error)
            ) from None
        if isinstance(error, Exception | SystemExit):
            line = " ".join(str(error).split())[:300]
            raise ValueError(f"{self.spec}: {type(error).__name__}: {line}.") from error
