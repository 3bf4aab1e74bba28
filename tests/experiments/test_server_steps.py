"""The published tables are those of the published runs, and rates are chosen as they say."""

import json
from pathlib import Path

from experiments.server_step_tables import (
    DEMO,
    TUNING,
    document,
    overview,
    read,
    reported,
    tuned_rate,
    tuned_table,
)
from experiments.server_steps import FEDERATIONS, METHODS, wanted

ROOT = Path(__file__).parents[2]
ROWS = read(ROOT / "docs" / "server-steps.jsonl")


def test_the_documents_hold_the_tables_of_the_runs():
    digits = [row for row in ROWS if row["federation"] == "digits"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert document(ROWS) in (ROOT / "docs" / "server-steps.md").read_text(encoding="utf-8")
    assert overview(ROWS) in (ROOT / "docs" / "server-steps.md").read_text(encoding="utf-8")
    assert tuned_table(digits, DEMO) in readme


def test_ten_seeds_are_reported_for_the_demo_and_three_elsewhere():
    for name in {row["federation"] for row in ROWS}:
        mine = [row for row in ROWS if row["federation"] == name]
        for method in METHODS:
            rates = {row["rate"] for row in reported(mine, method)}
            for rate in rates:
                seeds = {row["seed"] for row in reported(mine, method, rate)}
                assert seeds == set(range(FEDERATIONS[name].seeds)), (name, method, rate)


def row(rate, seed, accuracy):
    accuracies = {"last-1": accuracy, "ema-0.7": 1 - accuracy}
    return {"method": "FedAvg", "rate": rate, "seed": seed, "accuracy": accuracies}


def test_a_rate_is_chosen_on_the_tuning_seeds_alone_and_for_each_score():
    rows = [row(0.1, seed, 0.8) for seed in TUNING] + [row(1.0, seed, 0.7) for seed in TUNING]
    rows += [row(0.1, 0, 0.1), row(1.0, 0, 0.9)]  # reported seeds that would choose otherwise
    assert tuned_rate(rows, "FedAvg", "last-1") == 0.1
    assert tuned_rate(rows, "FedAvg", "ema-0.7") == 1.0


def test_all_methods_are_tuned_over_the_same_rates():
    for federation in FEDERATIONS.values():
        tuning = [(m, rate) for seed, m, rate in wanted(federation, []) if seed in TUNING]
        by_method = {m: [rate for method, rate in tuning if method == m] for m in METHODS}
        assert all(rates == [*federation.rates] * len(TUNING) for rates in by_method.values())


def test_a_line_that_was_cut_short_is_not_read(tmp_path):
    file = tmp_path / "runs.jsonl"
    file.write_text(json.dumps({"seed": 1}) + "\n" + '{"seed": 2', encoding="utf-8")
    assert read(file) == [{"seed": 1}]
