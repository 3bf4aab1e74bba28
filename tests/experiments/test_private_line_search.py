"""What the experiment of private line searches makes of its runs."""

import torch

from experiments import private_line_search as experiment
from fedexp.datasets.dataset import Dataset


def row(method, epsilon, seed):
    return {
        **{"method": method, "epsilon": epsilon, "seed": seed, "rate": 1.0, "steps": 10 + seed},
        **{"accuracy": 0.5 + 0.1 * seed, "loss": 0.25, "epsilon-spent": epsilon},
    }


def test_its_table_has_means_and_spreads_and_its_picture_every_method(tmp_path):
    rows = [row(m, e, seed) for e in (0.1, 0.8) for m in experiment.METHODS for seed in (0, 1)]
    lines = experiment.table(rows).splitlines()
    assert len(lines) == 2 + 2 * len(experiment.METHODS)
    assert "| 0.8 | line search | 55.00 ± 7.07 | 0.250 ± 0.000 | 10 | 1.00 |" in lines
    experiment.plot(tmp_path / "a.png", rows)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_spends_no_more_than_its_epsilon(monkeypatch):
    monkeypatch.setattr(experiment, "STEPS", 5)
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    rows = x, (x[:, 0] > 0).long()
    found = experiment.run(Dataset(rows, rows, 2), "adaptive line search", 4.0, seed=0)
    assert 0 < found["epsilon-spent"] <= 4
    assert found["steps"] <= 5
