"""The quick experiment finds what the paper states and the numbers known from elsewhere."""

import json

import pytest

from experiments.learned_step import main


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learned-step")
    with pytest.MonkeyPatch.context() as patch:  # to draw it takes a third of the time
        patch.setattr("matplotlib.figure.Figure.savefig", lambda self, path, **_: path.touch())
        main(["--out", str(folder)])
    return folder


@pytest.fixture(scope="module")
def result(out):
    return json.loads((out / "learned-step.json").read_text(encoding="utf-8"))


def test_it_leaves_its_picture(out):
    assert (out / "learned-step.png").exists()


def test_what_the_paper_states_holds(result):
    assert len(result["statements"]) == 5
    assert all(row["holds"] for row in result["statements"])


def test_back_propagation_fails_where_it_is_known_to_and_the_stable_way_nowhere(result):
    known = [row for row in result["failures"] if row["reference"]]
    assert len(known) == 13
    # Which of its two ways of failing it takes depends on the order of the machine's sums.
    assert all((row["outcome"] == "exact") == (row["reference"] == "exact") for row in known)
    assert {"zero", "nan"} <= {row["outcome"] for row in known}
    assert {row["stable-outcome"] for row in result["failures"]} == {"exact"}


def test_the_step_sizes_are_the_known_ones(result):
    for row in result["learned"]:
        assert row["best"] == pytest.approx(row["reference"], abs=1e-5)


def test_the_oracle_is_the_reference_at_the_same_ratio(result):
    for row in result["overfitting"]:
        assert row["oracle"]["step-size"] == pytest.approx(row["reference"]["step-size"], rel=0.02)
        assert row["oracle"]["rmse"] == pytest.approx(row["reference"]["rmse"], rel=0.005)
        assert row["simulated"]["rmse"] == pytest.approx(row["oracle"]["rmse"], rel=0.1)


def test_the_naive_gradient_vanishes_or_explodes_and_the_log_one_is_bounded(result):
    naive = {row["step-size"]: row["log10-naive"][-1] for row in result["gradients"]}
    assert naive[0.03] < -10
    assert naive[0.04] > 100
    assert all(abs(x) < 200 for row in result["gradients"] for x in row["log"])
