import numpy as np
import pytest
import torch
from torch import nn

from fedexp.clients import Examples, default_loss, module_arrays
from fedexp.clients.causes import cause

MODEL = nn.Linear(3, 2)
ARRAYS = {name: x.copy() for name, x in module_arrays(MODEL).items()}


def examples(x=None, y=None, rows=None):
    x = torch.randn(6, 3) if x is None else x
    return Examples(x, torch.arange(6) % 2 if y is None else y, rows)


def test_a_model_that_came_broken():
    before = {**ARRAYS, "bias": np.array([np.nan, 0], np.float32)}
    assert "'bias' of the model received holds NaN" in cause(
        MODEL, before, examples(), default_loss
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_with_nan_are_counted_among_the_clients_own(value):
    x = torch.randn(6, 3)
    x[[1, 3, 5], 2] = value
    own = examples(x, rows=torch.tensor([0, 1, 2, 3]))
    assert cause(MODEL, ARRAYS, own, default_loss).startswith("2 of its 4 rows hold NaN")


def test_targets_with_nan_count_too():
    y = torch.tensor([0.0, float("nan"), 1.0, 2.0, float("inf"), 1.0])
    assert cause(nn.Linear(3, 1), ARRAYS, examples(y=y), default_loss).startswith("2 of its 6 rows")


def test_a_loss_that_is_not_finite_before_any_step():
    told = cause(MODEL, ARRAYS, examples(), lambda z, y: z.sum() / 0)
    assert "before any step" in told


def test_else_the_learning_rate_is_too_large():
    assert cause(MODEL, ARRAYS, examples(), default_loss) == "use a smaller learning rate."
