"""What is no number is refused where a rule is made, in a line that names rule and field."""

import dataclasses
import inspect
import re
from typing import Any

import numpy as np
import pytest

from fedexp import strategies

NEEDED = {
    "Capped": {"step_size": strategies.Constant(1.0), "max_step_size": 1.0},
    "Relaxed": {"step_size": strategies.Constant(1.0), "factor": 1.0},
    "FixedClip": {"max_norm": 1.0},
    "DropBeyond": {"multiple": 2.0},
    "StochasticPolyak": {"gamma": 1.0},
    "TrustRegion": {"step_size": strategies.Constant(1.0)},
}
NOT_OURS = {"Received", "RoundInProgress"}  # made by the strategies, never by users
NUMBERS = {
    (kind, f.name)
    for name, kind in vars(strategies).items()
    if inspect.isclass(kind) and dataclasses.is_dataclass(kind) and name not in NOT_OURS
    for f in dataclasses.fields(kind)
    if f.init and str(f.type).removesuffix(" | None") in ("float", "int", "bool")
}


def test_there_are_rules_with_numbers():
    assert len({kind for kind, _ in NUMBERS}) > 25


@pytest.mark.parametrize(
    ("kind", "name"), sorted(NUMBERS, key=str), ids=lambda x: getattr(x, "__name__", x)
)
def test_a_field_that_is_a_number_takes_nothing_else(kind, name):
    given: dict[str, Any] = NEEDED.get(kind.__name__, {})
    for value in ("x", [1.0], {}, np.ones(2)):
        with pytest.raises(ValueError, match=re.escape(f"{name}={repr(value)[:80]}): must be")):
            kind(**{**given, name: value})


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), 0.5])
def test_numpys_numbers_are_numbers(value):
    assert strategies.Constant(value).value == 0.5
    assert strategies.Momentum(value, nesterov=np.bool_(True)).nesterov


@pytest.mark.parametrize("strategy", ["FedProx", "FedExP", "FedProxExP", "FedDyn"])
def test_a_proximal_term_is_a_number_too(strategy):
    with pytest.raises(ValueError, match="'x'"):
        getattr(strategies, strategy)(proximal_mu="x")
