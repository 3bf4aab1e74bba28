"""Local optimizers of packages that fedexp does not need itself: extras of its own name."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from typing import Any

from fedexp import keys
from fedexp.clients.between_rounds import Kept
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
    """

    line: str
    package: str
    name: str
    extra: str
    given: Mapping[str, float] = field(default_factory=dict)
    keeps: Kept = "state"

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


def _silent(kind: Any) -> Any:
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        with redirect_stdout(StringIO()):  # Prodigy prints at each client that decays weights
            kind.__init__(self, *args, **kwargs)

    init.__wrapped__ = kind.__init__  # type: ignore[attr-defined]  # what arguments it takes
    return init


EXTRA_OPTIMIZERS: dict[str, ExtraOptimizer] = {
    "prodigy": ExtraOptimizer(
        "Adam, its rate from the distance to the solution (Mishchenko & Defazio 2024)",
        "prodigyopt",
        "Prodigy",
        "prodigy",
        {keys.LEARNING_RATE: 1.0},  # a factor of what it finds itself
    ),
    "schedule-free-sgd": ExtraOptimizer(
        "SGD that returns an average of its steps (Defazio et al. 2024)",
        "schedulefree",
        "SGDScheduleFree",
        "schedulefree",
        keeps="nothing",
    ),
    "schedule-free-adamw": ExtraOptimizer(
        "AdamW that returns an average of its steps (Defazio et al. 2024)",
        "schedulefree",
        "AdamWScheduleFree",
        "schedulefree",
        keeps="nothing",
    ),
}
"""``--local-optimizer`` to what it means; their packages are imported when they are used.

A schedule-free optimizer keeps nothing between rounds: besides the average it has a point of its
own, which belongs to the model that the round began with.
"""
