"""What the experiment of private federations makes of its runs."""

import json
import math

import pytest

from experiments import private_federations as experiment
from experiments.private_federations import BOUNDS, METHODS, Crowd, line_of, main


def test_copies_of_clients_divide_the_noise_and_cost_the_same():
    one, ten = Crowd(2.0, norm_share=0.04), Crowd(2.0, norm_share=0.04, times=10.0)
    assert ten.multipliers[:2] == pytest.approx([z / 10 for z in one.multipliers[:2]])
    assert ten.multipliers[2] == math.inf
    assert ten.noise_multiplier == one.noise_multiplier  # of which epsilon is made


def test_runs_that_are_there_are_not_run_again_and_the_best_bound_is_taken(tmp_path, monkeypatch):
    ran = []

    def run(cell, data_dir, num_rounds):
        ran.append(cell)
        score = 0.8 if cell.clip == BOUNDS[1] else 0.5
        return {
            **{"accuracy": score, "mean-accuracy": score, "curve": [0.1, score]},
            **{"steps": [1.0, 2.0], "epsilon": 4.0},
        }

    monkeypatch.setattr(experiment, "run", run)
    out = tmp_path / "found.json"
    main(["--data-dir", "nowhere", "--out", str(out)])
    assert out.with_suffix(".png").stat().st_size > 1000
    assert len(json.loads(out.read_text())) == len(ran) == len(set(ran))
    assert {cell.clip for cell in ran if cell.times and cell.seed != 3} == {BOUNDS[1]}
    before = len(ran)
    main(["--data-dir", "nowhere", "--out", str(out)])
    assert len(ran) == before
    cell = next(cell for cell in ran if cell.clip == BOUNDS[1] and cell.times == 10)
    line = line_of("FedAvg", 10, cell, [run(cell, "", 1), run(cell, "", 1)])
    assert line == "| FedAvg | 5,390 | 0.3 |  | 80.0 ± 0.0 | 80.0 ± 0.0 | 1.50 (≤ 2.00) |"
    assert set(METHODS) == {cell.method for cell in ran}
