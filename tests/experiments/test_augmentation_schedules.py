"""The experiment runs end to end; exact, simulated and reference values agree."""

import json

import pytest

from experiments.augmentation_schedules import REFERENCE, main


def test_a_short_run_leaves_its_numbers_and_its_picture(tmp_path):
    main(["--smoke", "--out", str(tmp_path)])
    result = json.loads((tmp_path / "augmentation-schedules.json").read_text(encoding="utf-8"))
    assert (tmp_path / "augmentation-schedules.png").read_bytes().startswith(b"\x89PNG")
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
