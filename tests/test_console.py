"""The tables at the end of a run, from plain summaries and rows."""

import numpy as np
import pytest

from fedexp import console


def summary(strategy, seed=0, *, accuracy=0.8, reached=7, loss=0.5, **others):
    scores = {"rounds-to-target": reached, "best-accuracy": accuracy, "final-accuracy": accuracy}
    scores["final-test-loss"] = loss
    return {
        **{"strategy": strategy, "seed": seed, "settings": {}, "num-rounds": 40},
        **{"target-accuracy": 0.85, "average": "ema-0.7", "mean-server-step-size": 1.25},
        **{"seconds-a-round": 0.125, "failed-rounds": 0, "num-failures": 0, "missing-nodes": []},
        **scores,
        **{f"mean-{name}": value for name, value in scores.items()},
        **others,
    }


def lines_of(capsys, *arguments):
    console.table(*arguments)
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_one_seed_has_a_line_for_the_last_iterate_and_one_for_the_average(capsys):
    rows = [summary("fedexp", **{"mean-best-accuracy": 0.825, "mean-rounds-to-target": None})]
    lines = lines_of(capsys, rows, 0.85)
    assert lines[0].split() == [
        "strategy",
        "to",
        "85%",
        "best",
        "%",
        "final",
        "%",
        "step",
        "s/round",
    ]
    assert lines[2].split() == ["fedexp", "7", "80.0", "80.0", "1.25", "0.125"]
    assert lines[3].split() == ["ema-0.7", "-", "82.5", "80.0"]


def test_seeds_are_one_line_with_their_mean_and_the_deviation_of_a_sample(capsys):
    accuracies = [0.7, 0.8, 0.9]
    rows = [summary("a", i, accuracy=x, reached=10 * i) for i, x in enumerate(accuracies, 1)]
    lines = lines_of(capsys, [*rows, summary("b")], 0.85)
    spread = np.std([70, 80, 90], ddof=1)
    assert lines[2].split()[:3] == ["a", "20.0±10.0", f"80.0±{spread:.1f}"]
    assert lines[4].split()[:3] == ["b", "7", "80.0"]
    assert "standard deviation over 3 seeds" in lines[-1]


def test_seeds_that_never_reach_the_target_are_counted_not_averaged(capsys):
    rows = [summary("a", 0, reached=10), summary("a", 1, reached=20), summary("a", 2, reached=None)]
    assert "15.0±7.1 (2/3)" in lines_of(capsys, rows, 0.85)[2]
    assert lines_of(capsys, [summary("a", reached=None)], 0.85)[2].split()[1] == "-"


def test_settings_of_a_sweep_are_lines_of_their_own(capsys):
    rows = [summary("a", settings={"learning-rate": rate}) for rate in (0.1, 0.3)]
    lines = lines_of(capsys, rows, 0.85)
    assert lines[2].startswith("a(learning-rate=0.1) ")
    assert lines[4].startswith("a(learning-rate=0.3) ")


def test_a_regression_shows_its_loss(capsys):
    none = {f"{p}{n}-accuracy": None for p in ("", "mean-") for n in ("best", "final")}
    lines = lines_of(capsys, [summary("a", loss=0.0125, **none)], 0.85)
    assert lines[0].split()[:3] == ["strategy", "final", "loss"]
    assert lines[2].split() == ["a", "0.0125", "1.25", "0.125"]
    assert "%" not in lines[0]


def test_failures_are_told_only_if_there_are_any(capsys):
    assert not [x for x in lines_of(capsys, [summary("a")], 0.85) if "failed" in x]
    failed = {"failed-rounds": 2, "num-failures": 5, "missing-nodes": [3]}
    rows = [summary("a", 0, **failed), summary("a", 1)]
    assert lines_of(capsys, rows, 0.85)[-1].split() == ["a", "2", "of", "80", "5", "1"]


def test_the_longest_names_fit_into_sixty_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    rows = [summary("nesterovexp+hyperadagrad", i, accuracy=i / 2) for i in range(3)]
    lines = lines_of(capsys, rows, 0.85)
    table = lines[: 1 + max(i for i, line in enumerate(lines) if "50.0" in line)]
    assert max(map(len, table)) <= 60
    assert "50.0±50.0" in lines[2]
    assert "…" not in "".join(table)


def evaluated(strategy, client, number, accuracy, **others):
    own = {"strategy": strategy, "seed": 0, "client": client, "round": number, "examples": 10}
    return {**own, "accuracy": accuracy, "loss": 1.0, **others}


def test_clients_are_listed_by_name_in_their_last_round_the_worst_first(capsys):
    console.client_table(
        [
            evaluated("a", "oslo", 1, 0.1),
            evaluated("a", "bern", 2, 0.4),
            evaluated("a", "oslo", 2, 0.9),
            evaluated("b", "oslo", 2, 0.7),
            evaluated("b", "bern", 1, 0.6),
        ]
    )
    *head, _, bern, oslo, note = capsys.readouterr().out.splitlines()
    assert " ".join(head).split() == ["last", "client", "examples", "round", "a", "b"]
    assert bern.split() == ["bern", "10", "2", "40.0", "60.0"]
    assert oslo.split() == ["oslo", "10", "2", "90.0", "70.0"]
    assert note.startswith("Accuracy in %")


def test_clients_of_a_regression_are_listed_by_their_loss(capsys):
    console.client_table(
        [evaluated("a", name, 1, None, loss=loss) for name, loss in (("x", 0.5), ("y", 2.0))]
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[3:5]] == ["y", "x"]
    assert lines[5].startswith("Loss")


def test_at_most_twenty_clients_are_listed(capsys):
    console.client_table([evaluated("a", f"c{i}", 1, i / 100) for i in range(25)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[3:23]] == [f"c{i}" for i in range(20)]
    assert lines[-1] == "... and 5 more clients"


@pytest.mark.parametrize(("columns", "num"), [(60, 2), (80, 3), (120, 6)])
def test_no_cell_of_the_clients_is_cut_off(columns, num, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    names = [f"nesterovexp+hypersgd(learning-rate=0.{i})" for i in range(9)]
    console.client_table(
        [evaluated(n, "hospital", 1, x, seed=seed) for n in names for seed, x in enumerate((0, 1))]
    )
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    (row,) = [line for line in lines if line.startswith("hospital")]
    assert row.split() == ["hospital", "10", "1", *["50.0±70.7"] * num]
    assert lines[-1].startswith(f"... and {9 - num} more strategies")
    assert "…" not in "".join(lines)


def test_where_no_client_evaluates_there_is_no_table_of_clients(capsys):
    console.client_table([])
    assert not capsys.readouterr().out


@pytest.mark.parametrize("num", [3, 30])
def test_a_partition_is_a_line_per_client(num, capsys):
    console.partition_table(np.full(num, 8), np.full((num, 2), 4))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[2] == ["0", "8", "4", "4"]
    assert (lines[-1] == ["...", "and", "10", "more", "clients"]) is (num == 30)


def test_learned_step_sizes_have_a_column_where_there_are_any(capsys):
    first = lines_of(capsys, [summary("a"), summary("b", **{"learned-step-size": 0.04567})], 0.85)
    assert first[0].split()[-3:] == ["step", "learned", "s/round"]
    assert any("0.0457" in line for line in first if line.lstrip().startswith("b"))
    assert "learned" not in lines_of(capsys, [summary("a")], 0.85)[0]


def test_epsilon_of_servers_and_of_clients_have_columns_that_say_whom_they_protect(capsys):
    spent = {"epsilon-spent": 0.5, "budget-is-spent": 0.25}
    rows = [summary("a", **{"privacy-epsilon": 4.0}), summary("b", **spent), summary("b", 1)]
    lines = lines_of(capsys, rows, 0.85)
    assert lines[0].split()[-5:] == ["step", "ε", "ε", "example", "s/round"]
    assert [line.split()[-3:-1] for line in (lines[2], lines[4])] == [["4", "-"], ["-", "0.5"]]
    assert lines[-3].startswith("ε: protects a client against")
    assert lines[-2].startswith("ε example: protects one example of a client against the server")
    assert lines[-1].startswith("b: 12% of the clients of the last round")
    assert "example" not in " ".join(lines_of(capsys, rows[:1], 0.85))
