"""The experiment runs end to end; exact, simulated and reference values agree."""

import json

import numpy as np
import pytest

from experiments.augmentation_schedules import REFERENCE, Problem, main
from fedexp.augmentation import unseen_component


def test_a_short_run_leaves_its_numbers_and_its_picture(tmp_path, undrawn):
    main(["--smoke", "--out", str(tmp_path)])
    result = json.loads((tmp_path / "augmentation-schedules.json").read_text(encoding="utf-8"))
    assert (tmp_path / "augmentation-schedules.png").exists()
    assert [(row["x"], row["y"]) for row in result["schedules"]] == list(REFERENCE)
    for row in result["schedules"]:
        assert row["rms"][0] == pytest.approx(row["rms-reference"][0], abs=2e-6)
        far = abs(row["rms-simulated"][0] - row["rms"][0])
        assert far < 5 * row["rms-standard-error"][0]
        if row["unseen-reference"][0] is not None:
            assert row["unseen"][0] == pytest.approx(row["unseen-reference"][0], abs=2e-6)
    assert result["ridge"]["distance-of-mean"] == pytest.approx([0.11313], abs=1e-5)
    for row in result["projections"]:
        assert row["distance-of-mean"] < 1e-10
        assert row["largest-error-in-standard-errors"] < 5
    problem = Problem.drawn()
    hidden = np.linalg.norm(unseen_component(problem.start, problem.x))
    rows = result["federated"]["regression"]
    assert [row["rms-of-recursion"] is None for row in rows] == [False] + 7 * [True]
    for row in rows:  # without noise nothing moves what no example sees
        assert row["augmentation"] or row["rms"] > hidden * (1 - 1e-6)
        assert row["steps"] == row["curve-steps"][-1] == 20
    assert all(0 <= x <= 1 for row in result["federated"]["digits"] for x in row["accuracy"])
