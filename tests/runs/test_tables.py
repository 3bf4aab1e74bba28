"""Tables over seeds, held to pandas, statistics and the summary of a run itself."""

import io
import math
import re
import statistics
from dataclasses import replace

import numpy as np
import pytest
from folders import unit_of, without_accuracy

from fedexp.runs import columns, series, tables
from fedexp.runs.scores import numbers, rounds_to, target_accuracies

pandas = pytest.importorskip("pandas")

SEEDS = [
    unit_of("fedavg", [0.5, 0.8, 0.86, 0.9], seed=0),
    unit_of("fedavg", [0.4, 0.6, 0.7, 0.85], seed=1),
    unit_of("fedexp", [0.7, 0.85, 0.84, 0.88], seed=0),
    unit_of("fedexp", [0.86, 0.9, 0.92, 0.91], seed=1),
]


@pytest.mark.parametrize("accuracies", [[0.5, 0.9, 0.8], [0.2, 0.3], [None, None], [0.85]])
@pytest.mark.parametrize("num_failed", [0, 1])
def test_scores_count_from_the_first_round_that_succeeded(accuracies, num_failed):
    unit = unit_of(accuracies=accuracies)
    for row in unit.rows[:num_failed]:
        row["failed"] = True  # its scores are those of the initial model
    counted = [x for x in accuracies[num_failed:] if x is not None]
    reached = [i + 1 for i, x in enumerate(accuracies) if i >= num_failed and (x or 0) >= 0.85]
    found = numbers(unit)
    assert found["best-accuracy"] == max(counted, default=None)
    assert found["final-accuracy"] == (counted[-1] if counted else None)
    assert found["rounds-to-target"] == (reached[0] if reached else None)
    assert found["num-rounds"] == len(accuracies)


def test_a_summary_is_believed_before_rows():
    assert numbers(replace(SEEDS[0], summary={"best-accuracy": 0.123}))["best-accuracy"] == 0.123


def test_a_unit_without_rows_has_no_numbers():
    found = numbers(unit_of(accuracies=[]))
    assert set(found.values()) == {0, None}


def test_time_is_a_mean_and_traffic_a_sum():
    unit = unit_of(train_seconds=[1.0, 3.0], bytes_up=[5, 7], bytes_down=[10, None])
    found = numbers(unit)
    assert (found["train-seconds"], found["bytes-up"], found["bytes-down"]) == (2.0, 12, 10)
    assert found["move-seconds"] is None


def test_of_private_clients_a_summary_has_what_the_one_that_spent_most_has_spent():
    unit = unit_of(largest_epsilon_spent=[2.0, 1.5], epsilon_spent=1.0, budget_is_spent=[0, 0.5])
    found = numbers(unit)
    assert (found["epsilon-spent"], found["budget-is-spent"]) == (2.0, 0.5)
    assert numbers(unit_of(epsilon_spent=[0.5, 1.0]))["epsilon-spent"] == 1.0
    assert "epsilon-spent" not in numbers(SEEDS[0])
    assert "ε of an example" in tables.to_markdown([unit])
    assert "ε" not in tables.to_markdown(SEEDS)


def test_a_row_for_every_unit_with_settings_and_numbers():
    unit = replace(unit_of("a", settings={"batch-size": 5}), summary={"problem": "x", "nodes": [1]})
    (row,) = tables.results([unit])
    assert (row["strategy"], row["seed"], row["batch-size"], row["problem"]) == ("a", 0, 5, "x")
    assert "nodes" not in row
    read = pandas.read_csv(
        io.StringIO(tables.to_csv([row, {"other": 'with "quotes", and commas'}]))
    )
    assert read["best-accuracy"][0] == 0.9
    assert read["other"][1] == 'with "quotes", and commas'


def test_means_and_deviations_are_those_of_pandas():
    data = tables.frame(tables.results(SEEDS))
    wanted = data.groupby("strategy")["final-accuracy"].agg(["mean", "std", "size"])
    for row in tables.aggregate(SEEDS):
        mean, std, count = wanted.loc[row["strategy"]]
        assert row["final-accuracy"] == pytest.approx(mean)
        assert row["final-accuracy-std"] == pytest.approx(std)
        assert row["seeds"] == count


def test_one_seed_has_no_deviation():
    (row,) = tables.aggregate(SEEDS[:1])
    assert row["final-accuracy"] == 0.9
    assert row["final-accuracy-std"] is None


def test_rounds_to_a_target_and_the_speed_up_over_fedavg():
    average, extrapolated = tables.aggregate(SEEDS)
    assert average["rounds-to-0.85"] == statistics.fmean([3, 4])
    assert extrapolated["rounds-to-0.85"] == statistics.fmean([2, 1])
    assert extrapolated["rounds-to-0.85-std"] == statistics.stdev([2, 1])
    assert extrapolated["rounds-to-0.85-speed-up"] == pytest.approx(3.5 / 1.5)
    assert average["rounds-to-0.85-speed-up"] == 1


def test_a_target_that_not_every_seed_reached_has_no_mean():
    row = tables.aggregate(SEEDS, [0.9])[0]
    assert row["rounds-to-0.9"] is None
    assert row["rounds-to-0.9-reached"] == 1
    assert row["rounds-to-0.9-speed-up"] is None
    assert "(1 of 2)" in tables.to_markdown(SEEDS, [0.9])


def test_several_targets():
    rows = tables.aggregate(SEEDS, [0.5, 0.85])
    assert [row["rounds-to-0.5"] for row in rows] == [1.5, 1.0]
    assert rows[1]["rounds-to-0.5-speed-up"] == 1.5
    assert [rounds_to(u, 0.5) for u in SEEDS] == [1, 2, 1, 1]
    assert target_accuracies(SEEDS) == [0.85]


def test_a_sweep_is_compared_with_fedavg_in_the_same_settings():
    units = [
        unit_of(strategy, accuracies, settings={"learning-rate": rate})
        for strategy, rate, accuracies in [
            ("fedavg", 0.1, [0.1, 0.9]),
            ("fedavg", 0.2, [0.1, 0.1, 0.9]),
            ("fedexp", 0.1, [0.9]),
            ("fedexp", 0.2, [0.9]),
            ("fedexp", 0.3, [0.9]),
        ]
    ]
    rows = tables.aggregate(units)
    assert [row["rounds-to-0.85-speed-up"] for row in rows] == [1, 1, 2, 3, None]
    assert rows[2]["name"] == "fedexp, learning-rate=0.1"


def test_settings_are_in_the_name_only_where_they_tell_apart():
    units = [unit_of("fedavg", settings={"lr": 0.1}), unit_of("fedexp", settings={"lr": 0.3})]
    assert list(series.groups_of(units)) == ["fedavg", "fedexp"]
    assert [row["settings"] for row in tables.aggregate(units)] == ["lr=0.1", "lr=0.3"]


def test_tuning_is_among_the_results_and_no_part_of_the_means():
    tuning = replace(SEEDS[0], seed=9, about={"tuning": True})
    assert [row["tuning"] for row in tables.results([*SEEDS, tuning])][-2:] == [False, True]
    assert tables.aggregate([*SEEDS, tuning]) == tables.aggregate(SEEDS)
    assert len(tables.round_rows([*SEEDS, tuning])) == 16


def test_a_regression_shows_its_loss_wherever_a_classification_shows_accuracy():
    units = [replace(unit, rows=without_accuracy(unit)) for unit in SEEDS]
    titles = [column.title for column in columns.columns(units)]
    assert titles[:2] == ["Best loss, last", "Best loss, average"]
    assert not any("%" in title or "Rounds" in title for title in titles)
    row = tables.aggregate(units)[0]
    assert row["best-test-loss"] == pytest.approx(statistics.fmean([2 - 0.9, 2 - 0.85]))
    assert "**" in tables.to_markdown(units)


def test_the_best_of_each_column_is_bold_in_markdown_and_latex():
    lines = tables.to_markdown(SEEDS).splitlines()
    best = [f"{100 * statistics.fmean(x):.1f}" for x in ([0.9, 0.85], [0.88, 0.92])]
    assert f"| {best[0]} ± " in lines[2]
    assert f"| **{best[1]} ± " in lines[3]
    latex = tables.to_latex(SEEDS)
    assert rf"\textbf{{{best[1]} $\pm$ " in latex
    for word in (r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}", r"Best \%"):
        assert word in latex
    head, rules, below, *body = latex.splitlines()[2:-2]
    widths = [int(x) for x in re.findall(r"multicolumn{(\d)}", head)]
    assert {2 + sum(widths), below.count("&") + 1} == {body[-1].count("&") + 1}
    spans = [(int(a), int(b)) for a, b in re.findall(r"{(\d+)-(\d+)}", rules)]
    assert [b - a + 1 for a, b in spans] == widths
    assert [a for a, _ in spans[1:]] == [b + 1 for _, b in spans[:-1]]
    assert "last & average" in below


def test_letters_that_mean_something_to_latex_and_markdown_are_escaped():
    units = [unit_of(r"my_module:Rule|{#1} 50% ~^\&$")]
    latex = r"my\_module:Rule|\{\#1\} 50\% \textasciitilde{}\textasciicircum{}\textbackslash{}\&\$"
    assert latex in tables.to_latex(units)
    assert r"my_module:Rule\|" in tables.to_markdown(units)


def test_a_column_without_a_value_is_left_out():
    alone = [unit_of("fedexp", [0.1])]
    assert "Speed-up" not in tables.to_markdown(alone)
    assert "Rounds" not in tables.to_markdown(alone)


def test_no_units_no_lines():
    assert tables.aggregate([]) == tables.results([]) == []
    assert tables.to_markdown([]).count("\n") == 2
    assert r"\end{tabular}" in tables.to_latex([])
    assert tables.to_csv([]) == "\n"


def test_a_loss_has_as_many_decimals_as_its_deviation():
    column = columns.Column("loss", "x", columns.three_figures)
    assert columns.cell({"x": 1.1, "x-std": 0.0631}, column) == "1.10 ± 0.06"
    assert columns.cell({"x": 0.0123, "x-std": 0.001}, column) == "0.0123 ± 0.0010"


def test_every_row_is_in_the_frame():
    frame = tables.frame(tables.round_rows(SEEDS))
    assert len(frame) == 16
    assert {"strategy", "seed", "round", "test-accuracy"} <= set(frame.columns)


def test_curves_over_seeds_are_those_of_numpy():
    values = np.array([[row["test-accuracy"] for row in unit.rows] for unit in SEEDS[:2]])
    curve = series.over_seeds(SEEDS[:2], "test-accuracy")
    np.testing.assert_allclose(curve.mean, values.mean(0))
    np.testing.assert_allclose(curve.std, values.std(0, ddof=1))
    assert curve.x.tolist() == [1, 2, 3, 4]


def test_seeds_of_unlike_length_and_rows_without_a_number():
    units = [unit_of(accuracies=[0.1, None, 0.3]), unit_of(accuracies=[0.3, math.nan], seed=1)]
    curve = series.over_seeds(units, "test-accuracy")
    np.testing.assert_allclose(curve.mean, [0.2, np.nan, 0.3])
    np.testing.assert_allclose(curve.std, [np.std([0.1, 0.3], ddof=1), 0, 0])


def test_bytes_add_up_in_both_directions():
    unit = unit_of(accuracies=[0.1] * 3, bytes_up=[1, 2, 3], bytes_down=[10, 20, 30])
    assert series.over_seeds([unit], "test-accuracy", "bytes").x.tolist() == [11, 33, 66]
    assert not series.over_seeds([unit_of()], "test-accuracy", "bytes").drawable
