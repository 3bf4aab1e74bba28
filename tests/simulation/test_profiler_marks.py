"""What a profiler sees of an optimizer's steps, and what a step costs without one."""

import pytest
import torch
from torch.autograd import profiler

from fedexp.simulation.flower.profiler_marks import skip_idle_marks


@pytest.fixture(autouse=True)
def patched(monkeypatch):
    monkeypatch.setattr(profiler, "record_function", profiler.record_function)
    skip_idle_marks()


def step():
    weight = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    weight.sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return weight


def test_a_profiler_that_runs_gets_its_marks():
    with torch.profiler.profile() as seen:
        step()
    marks = {event.key for event in seen.key_averages() if event.key.startswith("Optimizer.")}
    assert marks == {"Optimizer.step#SGD.step", "Optimizer.zero_grad#SGD.zero_grad"}


def test_without_one_a_step_makes_none(monkeypatch):
    def fail(*args):
        raise AssertionError("a mark was made")

    monkeypatch.setattr(torch.ops.profiler, "_record_function_enter_new", fail)
    assert step().tolist() == pytest.approx([-0.1, -0.1])


def test_an_error_in_a_step_goes_through():
    with pytest.raises(ZeroDivisionError), profiler.record_function("x"):
        raise ZeroDivisionError
