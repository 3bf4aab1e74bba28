"""Local optimizers of packages that fedexp does not need itself: extras of its own name."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from math import inf
from typing import Any

from fedexp import keys
from fedexp.clients.arguments import kebab
from fedexp.clients.between_rounds import Kept
from fedexp.clients.ranges import POSITIVE, SHARE, Range
from fedexp.extras import need


@dataclass(frozen=True)
class ExtraOptimizer:
    """An optimizer in torch's form that another package has.

    Attributes:
        line: what it does, in a line.
        package: that has it.
        name: of the class.
        extra: of fedexp that brings the package.
        given: settings of the clients that it comes with, in place of the run's.
        keeps: what of it may be kept for a client's next round.
        ranges: of its own settings that the package takes without a look; of each number in a list.
    """

    line: str
    package: str
    name: str
    extra: str
    given: Mapping[str, float] = field(default_factory=dict)
    keeps: Kept = "state"
    ranges: Mapping[str, Range] = field(default_factory=dict)

    @property
    def is_installed(self) -> bool:
        """Whether the package can be imported."""
        return find_spec(self.package) is not None

    def load(self) -> Any:
        """The class, made without what its constructor prints.

        Raises:
            ModuleNotFoundError: with the ``pip install`` that brings the package.
        """
        need(self.package, self.extra)
        kind = getattr(import_module(self.package), self.name)
        return type(self.name, (kind,), {"__init__": _silent(kind), "__module__": self.package})

    def check(self, owner: str, settings: Mapping[str, Any]) -> None:
        """Raise ``ValueError`` for a setting of its own that lies outside of its range."""
        for name, value in settings.items():
            allowed = self.ranges.get(name.lower())
            if allowed is None or value is None:
                continue
            for x in value if isinstance(value, list | tuple) else (value,):
                if why := allowed.fault(x):
                    raise ValueError(f"{owner}: {kebab(name)}={value!r} {why}.")


def _silent(kind: Any) -> Any:
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        with redirect_stdout(StringIO()):  # Prodigy prints at each client that decays weights
            kind.__init__(self, *args, **kwargs)

    init.__wrapped__ = kind.__init__  # type: ignore[attr-defined]  # what arguments it takes
    return init


_AVERAGED = {
    "warmup_steps": Range(whole=True),
    "r": Range(-inf, inf, "()"),
    "weight_lr_power": Range(),
}

EXTRA_OPTIMIZERS: dict[str, ExtraOptimizer] = {
    "prodigy": ExtraOptimizer(
        "Adam, its rate from the distance to the solution (Mishchenko & Defazio 2024)",
        "prodigyopt",
        "Prodigy",
        "prodigy",
        {keys.LEARNING_RATE: 1.0},  # a factor of what it finds itself
        ranges={
            **dict.fromkeys(("d_coef", "d0", "eps"), POSITIVE),
            "growth_rate": Range(1, inf, "[]"),  # inf for no bound
            "beta3": SHARE,
            "slice_p": Range(1, whole=True),
        },
    ),
    "schedule-free-sgd": ExtraOptimizer(
        "SGD that returns an average of its steps (Defazio et al. 2024)",
        "schedulefree",
        "SGDScheduleFree",
        "schedulefree",
        keeps="nothing",
        ranges=_AVERAGED,
    ),
    "schedule-free-adamw": ExtraOptimizer(
        "AdamW that returns an average of its steps (Defazio et al. 2024)",
        "schedulefree",
        "AdamWScheduleFree",
        "schedulefree",
        keeps="nothing",
        ranges={**_AVERAGED, "betas": Range(0, 1, "()"), "eps": Range()},  # it divides by beta1
    ),
}
"""``--local-optimizer`` to what it means; their packages are imported when they are used.

A schedule-free optimizer keeps nothing between rounds: besides the average it has a point of its
own, which belongs to the model that the round began with.
"""
