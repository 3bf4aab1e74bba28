"""The meta-descent of the paper, its trajectory, and a step size that backs off."""

import math
from functools import cache
from pathlib import Path

import pytest
import torch
from problems_and_models import as_model, federated_client, published

from fedexp.learned_steps import (
    LeastSquares,
    MetaDescent,
    MetaGradient,
    closed_form,
    descend,
    learned_step_size,
    loss_of,
    mean_loss,
    meta_gradient,
)

PAPER = {"scale": "linear", "rate": 0.01}


def test_the_trajectory_of_the_papers_experiment():
    problem = published()
    settings = MetaDescent(num_meta_steps=1000, **PAPER)
    first = torch.tensor(0.1, dtype=torch.float64)
    found = descend(lambda eta: [closed_form(problem, eta, 80)], first, settings)
    assert [float(x) for x in found.path[:3]] == pytest.approx([0.1, 0, 0.5066], abs=1e-4)
    # Between, it jumps around the minimum, and rounding decides where it is (measured: a factor of
    # 1 + 1e-13 in the matrix changes the third digit after 150 steps). In the end it settles.
    best = 0.03143
    assert all(abs(float(x) / best - 1) < 0.07 for x in found.path[300:])
    assert float(found.step_size) == pytest.approx(best, rel=0.003)


@pytest.mark.slow
def test_from_far_away_it_is_slow_and_not_unstable():
    problem = published()
    first = torch.tensor(10.0, dtype=torch.float64)
    settings = MetaDescent(num_meta_steps=1000, **PAPER)
    found = descend(lambda eta: [closed_form(problem, eta, 640)], first, settings)
    assert float(found.step_size) == pytest.approx(9.875425, abs=1e-6)


@pytest.mark.parametrize("first", [1e-4, 1e-2, 10.0])
def test_on_the_log_scale_it_comes_from_far_away_in_a_few_steps(first):
    problem = published()
    first = torch.tensor(first, dtype=torch.float64)
    settings = MetaDescent(num_meta_steps=60)
    found = descend(lambda eta: [meta_gradient(problem, eta, 40)], first, settings)
    assert float(found.best()) == pytest.approx(0.03118, rel=0.07)


def test_one_step_size_for_each_step_does_better_than_one_for_all():
    """Chebyshev's: two steps with rates 1/λ solve a problem with two eigenvalues."""
    two = LeastSquares(torch.eye(2).double() * torch.tensor([1.0, 2.0]).double(), torch.ones(2))
    two = LeastSquares(two.inputs, two.targets.double())
    settings = MetaDescent(num_meta_steps=300, rate=0.3)

    def tuned(first):
        first = torch.tensor(first, dtype=torch.float64)
        return min(descend(lambda eta: [meta_gradient(two, eta, 2)], first, settings).values)

    assert tuned([0.3, 0.6]) < tuned(0.5) - 0.5


def test_a_step_size_that_is_too_large_backs_off_until_there_is_a_gradient():
    loss, weights = as_model(torch.eye(2).double(), torch.ones(2).double())
    options = {"batches": [None] * 9, "max_norm": 40.0}
    settings = MetaDescent(num_meta_steps=12, back_off=0.25, rate=0.1)
    found = learned_step_size(
        loss, lambda w: loss(w, None), weights, step_size=64.0, settings=settings, **options
    )
    # 64 and 16 leave the ball. At 4 the steps multiply the distance by |1 - 4/2| = 1.
    assert [float(x) for x in found.path[:3]] == [64.0, 16.0, 4.0]
    assert found.num_truncated == 2
    assert found.values[:2] == [math.inf, math.inf]
    assert found.best() < 4


def test_where_every_trajectory_was_truncated_the_best_is_the_smallest():
    tasks = lambda eta: [MetaGradient(math.inf, eta * 0, 1, truncated=True)]  # noqa: E731
    found = descend(tasks, torch.tensor(8.0), MetaDescent(num_meta_steps=3))
    assert float(found.best()) == float(found.step_size) == 1.0


def test_a_truncated_task_counts_as_0_beside_others():
    def tasks(eta):
        return [
            MetaGradient(math.inf, eta * 0, 1, truncated=True),
            MetaGradient(float(eta), torch.tensor(2.0), 1),
        ]

    settings = MetaDescent(num_meta_steps=1, rate=0.1, scale="linear")
    found = descend(tasks, torch.tensor(1.0), settings)
    assert float(found.step_size) == pytest.approx(1 - 0.1 * 2 / 2)
    assert found.num_truncated == 0


def test_tasks_are_averaged():
    def tasks(eta):
        return [MetaGradient(float(eta) * a, torch.tensor(a), num_steps=1) for a in (1.0, 3.0)]

    settings = MetaDescent(num_meta_steps=2, rate=0.1, scale="linear")
    found = descend(tasks, torch.tensor(1.0), settings)
    assert float(found.step_size) == pytest.approx(1 - 0.1 * 2 - 0.1 / math.sqrt(2) * 2)
    assert found.values == pytest.approx([2.0, 1.6])


def test_the_naive_objective_may_explode_and_the_step_size_stays_a_number():
    problem = published()
    for scale in ("linear", "log"):
        settings = MetaDescent(objective="naive", num_meta_steps=5, scale=scale)
        first = torch.tensor(10.0, dtype=torch.float64)
        found = descend(lambda eta: [meta_gradient(problem, eta, 640)], first, settings)
        assert found.values[0] == math.inf
        assert found.step_size.isfinite()


@cache
def _value_of(eta):
    loss, weights, batches, others = federated_client("logistic", 12, torch.float32)
    settings = MetaDescent(num_meta_steps=1)
    path = learned_step_size(
        *(loss, mean_loss(loss, others), weights, batches, eta, settings),
        max_norm=100.0,
        symmetric=True,  # which is faster, and the loss at the end is the same
    )
    return path.values[0]


@pytest.mark.parametrize("first", [2e-3, 60.0])
def test_a_client_finds_its_step_size(first):
    """From far too small and far too large it ends with a loss near the best of a grid."""
    loss, weights, batches, others = federated_client("logistic", 12, torch.float32)
    end = mean_loss(loss, others)
    best = min(_value_of(10 ** (k / 4)) for k in range(-12, 8))
    before = {k: v.clone() for k, v in weights.items()}
    settings = MetaDescent(num_meta_steps=40, rate=1.0)
    found = learned_step_size(loss, end, weights, batches, first, settings, max_norm=100.0)
    assert min(found.values) <= best + 0.01
    assert all(torch.equal(v, before[k]) for k, v in weights.items())
    assert found.step_size.dtype == torch.float32


def test_the_example_of_the_documentation_runs(capsys):
    text = (Path(__file__).parents[2] / "docs" / "learned-steps.md").read_text(encoding="utf-8")
    code = text.partition("```python\n")[2].partition("```")[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        exec(code, {})
    assert capsys.readouterr().out.startswith("tensor(")


def test_buffers_of_a_module_take_part():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1)).eval()
    loss = loss_of(model, torch.nn.functional.mse_loss)
    weights = {k: v.detach() for k, v in model.named_parameters()}
    batch = (torch.ones(3, 2), torch.zeros(3, 1))
    with torch.no_grad():
        direct = torch.nn.functional.mse_loss(model(batch[0]), batch[1])
    assert float(loss(weights, batch)) == pytest.approx(float(direct))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("objective", "loss"),
        ("scale", "square"),
        ("num_meta_steps", 0),
        ("num_meta_steps", 1.5),
        ("rate", -1.0),
        ("rate", math.nan),
        ("back_off", 1.0),
    ],
)
def test_settings_out_of_range_are_named(field, value):
    with pytest.raises(ValueError, match=rf"^MetaDescent\({field}=.*\): must be "):
        MetaDescent(**{field: value})


def test_a_step_size_of_0_is_refused_on_the_log_scale():
    with pytest.raises(ValueError, match="it never moves on the log scale"):
        descend(lambda eta: [], torch.tensor(0.0), MetaDescent())


def test_no_tasks_are_named():
    with pytest.raises(ValueError, match="Give at least one task"):
        descend(lambda eta: [], torch.tensor(0.1), MetaDescent())


def test_no_weights_are_named():
    with pytest.raises(ValueError, match="there is nothing to move"):
        learned_step_size(lambda w, b: w["a"], lambda w: w["a"], {}, [0], 0.1, MetaDescent())
