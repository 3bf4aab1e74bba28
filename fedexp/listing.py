"""What can be chosen by name, as ``fedexp list`` prints it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import Any

from fedexp.config import Config
from fedexp.specs import Spec
from fedexp.terminal import filled

_IN_TEXT_NO = ("Callable", "Mapping", "Iterable", "ServerOptimizer")  # types that no text names
_BY_A_RUN = {"min-train-nodes": 1, "min-evaluate-nodes": 1, "min-available-nodes": "all"}


@dataclass(frozen=True)
class ListedChoice:
    """Something that has a name.

    Attributes:
        line: what it is.
        arguments: default by argument, for those that take any in brackets.
    """

    line: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def names(kind: str) -> list[str]:
    """The names of a kind, one of ``LISTED``."""
    return list(LISTED[kind]())


def text(kind: str | None) -> str:
    """All names, or those of a kind with a line each, and their arguments."""
    if kind is None:
        return "\n".join(filled(f"{k}: ", ", ".join(names(k))) for k in LISTED)
    found = LISTED[kind]()
    widest = min(20, max(map(len, found)))
    lines = []
    for name, choice in found.items():
        lines.append(filled(f"{name:<{widest}}  ", choice.line, widest + 2))
        if choice.arguments:
            lines.append(filled("    ", _shown(choice.arguments)))
    if kind == "strategies":
        lines += ["", filled("all of them: ", _shown(common_arguments()))]
    if any(choice.arguments for choice in found.values()):
        lines.append(filled("", _BRACKETS, 0))
    return "\n".join(lines)


_BRACKETS = (
    "Arguments are written in brackets, as in 'adamw(eps=1e-6)'. One without a value here is the "
    "run's own: that of the flag of its name."
)


def as_json(kind: str | None) -> str:
    """The same for programs."""
    found: dict[str, Any] = {
        k: {name: asdict(choice) for name, choice in LISTED[k]().items()}
        for k in ([kind] if kind else LISTED)
    }
    if "strategies" in found:
        found["common-arguments"] = common_arguments()
    return json.dumps(found, indent=2, default=str)


def common_arguments() -> dict[str, Any]:
    """Default by argument, of those that all strategies have: ours, and Flower's FedAvg's.

    None for those that the run's flags of the same name fill.
    """
    from fedexp.strategies import FedOpt

    flags = set(Config.keys())
    found = {**_defaults(FedOpt), "clip-quantile": None, **_BY_A_RUN}
    del found["control-variates"]  # which make `scaffold` of `fedavg`
    return {name: None if name in flags else value for name, value in found.items()}


def _defaults(cls: type, until: type = object) -> dict[str, Any]:
    """Of the named arguments of ``cls`` and what it derives from; the nearest class decides."""
    found: dict[str, Any] = {}
    own = [base for base in cls.__mro__[: cls.__mro__.index(until)] if "__init__" in vars(base)]
    for base in own:
        for parameter in inspect.signature(base).parameters.values():
            is_named = parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            if is_named and not any(kind in str(parameter.annotation) for kind in _IN_TEXT_NO):
                found.setdefault(parameter.name, parameter.default)
    return _kebab(found)


def _kebab(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "-"): value for name, value in values.items()}


def _shown(arguments: Mapping[str, Any]) -> str:
    flags = set(Config.keys())
    return ", ".join(
        name if value is None and name in flags else str(Spec("", {name: value}))[1:-1]
        for name, value in arguments.items()
    )


def _strategies() -> dict[str, ListedChoice]:
    from fedexp.strategies import STRATEGIES, FedOpt

    return {
        key: ListedChoice(row.line, _defaults(row.strategy, until=FedOpt) | _kebab(row.options))
        for key, row in STRATEGIES.items()
    }


def _datasets() -> dict[str, ListedChoice]:
    from fedexp.datasets import SOURCES

    return {name: ListedChoice(source.about) for name, source in SOURCES.items()}


def _models() -> dict[str, ListedChoice]:
    from fedexp.models import MODELS

    return _documented(MODELS)


def _partitioners() -> dict[str, ListedChoice]:
    from fedexp.datasets import PARTITIONERS

    return _documented(PARTITIONERS)


def _optimizers() -> dict[str, ListedChoice]:
    from fedexp.clients.named import optimizers

    return {name: ListedChoice(line, arguments) for name, line, arguments in optimizers()}


def _schedulers() -> dict[str, ListedChoice]:
    from fedexp.clients.schedules import SCHEDULERS

    names = {cls: name for name, cls in reversed(SCHEDULERS.items())}  # the shortest of each
    return {
        name: ListedChoice(f"torch.optim.lr_scheduler.{cls.__name__}", _of_scheduler(cls))
        for name, cls in SCHEDULERS.items()
        if names[cls] == name and cls.__name__ not in _WAITING
    }


_WAITING = ("ReduceLROnPlateau",)  # for a loss that no round has when it begins
_OF_THE_RUN = {
    **dict.fromkeys(("T_max", "total_iters", "total_steps"), "num-server-rounds"),
    "max_lr": "learning-rate",
}


def _of_scheduler(cls: type) -> dict[str, Any]:
    """Default by argument: the run's, that of the class, or ``...`` where it has to be given."""
    _, *parameters = inspect.signature(cls).parameters.values()  # not the optimizer
    values = {p.name: "..." if p.default is p.empty else p.default for p in parameters}
    values |= {name: value for name, value in _OF_THE_RUN.items() if name in values}
    values.pop("last_epoch", None)
    return _kebab(values)


def _metrics() -> dict[str, ListedChoice]:
    always = {name: ListedChoice("always reported") for name in ("loss", "accuracy")}
    if find_spec("sklearn") is None:
        return always
    from sklearn.metrics import get_scorer, get_scorer_names

    scorers = {name: get_scorer(name)._score_func for name in get_scorer_names()}
    found = {
        name.removeprefix("neg_").replace("_", "-"): ListedChoice(
            f"sklearn.metrics.{score.__name__}"
        )
        for name, score in scorers.items()
        if ".cluster." not in score.__module__
    }
    return dict(sorted(found.items())) | always


def _documented(functions: Mapping[str, Any]) -> dict[str, ListedChoice]:
    lines = {name: (f.__doc__ or "").partition("\n")[0] for name, f in functions.items()}
    return {name: ListedChoice(line.rstrip(".").replace("``", "")) for name, line in lines.items()}


LISTED: dict[str, Callable[[], dict[str, ListedChoice]]] = {
    "strategies": _strategies,
    "datasets": _datasets,
    "models": _models,
    "partitioners": _partitioners,
    "optimizers": _optimizers,
    "schedulers": _schedulers,
    "metrics": _metrics,
}
"""What ``fedexp list`` knows, by the word behind it."""
