"""The hard federations are what their names say, and their tables those of the published runs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import hard_federations as hard
from experiments.hard_models import batch_norm, narrow_resnet18, noisy_digits, short_lstm, written
from experiments.server_step_tables import TUNING, read, reported, tuned_rate
from experiments.which_step import AVERAGE
from fedexp.datasets import load

ROOT = Path(__file__).parents[2]
ROWS = read(ROOT / "docs" / "hard-federations.jsonl")


def test_the_document_has_these_tables():
    page = (ROOT / "docs" / "which-step.md").read_text(encoding="utf-8")
    assert all(table in page for table in hard.document(ROWS).split("\n\n"))


@pytest.mark.parametrize("name", hard.ALL)
def test_all_methods_are_tuned_over_the_same_rates_and_reported_with_other_seeds(name):
    mine = [row for row in ROWS if row["federation"] == name]
    for method in hard.ALL[name].methods:
        tuning = {(r["rate"], r["seed"]) for r in mine if r["method"] == method} & {
            (rate, seed) for rate in hard.ALL[name].rates for seed in TUNING
        }
        assert len(tuning) == len(hard.ALL[name].rates) * len(TUNING), method
        found = reported(mine, method, tuned_rate(mine, method, AVERAGE))
        assert {row["seed"] for row in found} == set(hard.SEEDS), method


def test_a_fifth_of_the_labels_are_drawn_and_nothing_else_changes():
    noisy, digits = noisy_digits(""), load("digits")
    changed = (noisy.train[1] != digits.train[1]).float().mean().item()
    assert changed == pytest.approx(0.2 * 0.9, abs=0.03)  # a tenth of the draws is the old label
    assert torch.equal(noisy.train[0], digits.train[0])
    assert all(map(torch.equal, noisy.test, digits.test))


def test_written_data_are_those_of_the_function(tmp_path):
    with np.load(written("noisy-digits", "", tmp_path)) as file:
        assert np.array_equal(file["y_train"], noisy_digits("").train[1])
    assert written("digits", "", tmp_path) == "digits"


def test_models_are_as_their_names_say():
    assert sum(isinstance(m, torch.nn.BatchNorm1d) for m in batch_norm((64,), 10).modules()) == 2
    resnet = narrow_resnet18((1, 14, 14), 10)
    assert sum(isinstance(m, torch.nn.Conv2d) for m in resnet.modules()) == 17 + 3
    assert resnet(torch.zeros(2, 1, 14, 14)).shape == (2, 10)
    lstm, text = short_lstm((80,), 30), torch.randint(30, (3, 80))
    assert torch.equal(lstm(text), lstm(text[:, -20:]))


def test_what_a_federation_asks_of_clients_and_strategies_is_added_to_the_method():
    told = replace(hard.ALL["FedProx's clients"], settings={"control_variates": True})
    method = hard.set_as(told, "Nesterov 1 / 0.9")
    assert method.clients == {"proximal-mu": 0.1}
    assert method.settings["server_momentum"] == 0.9
    assert method.settings["control_variates"]


def test_a_run_is_a_line_and_is_not_made_again(tmp_path, monkeypatch):
    small = replace(
        hard.HARD["SCAFFOLD's clients"],
        config={"num_server_rounds": 1, "num_clients": 5, "local_steps": 1},
        methods=("FedAvg",),
        rates=(0.1,),
    )
    monkeypatch.setitem(hard.ALL, "small", small)
    file = tmp_path / "rows.jsonl"
    for seed in (*TUNING, 0, 1):
        hard.run_seed("", file, "small", seed, [("FedAvg", 0.1)])
    assert [row["seed"] for row in read(file)] == [*TUNING, 0, 1]
    assert list(hard.missing(["small"], read(file), TUNING)) == []
    assert list(hard.missing(["small"], read(file), (0, 1, 2))) == [("small", 2, [("FedAvg", 0.1)])]


def test_a_table_marks_what_is_ahead_and_behind_with_every_seed():
    def rows(method, values):
        seeds = {**dict.fromkeys(TUNING, values[0]), **dict(enumerate(values))}
        return [
            {"federation": "f", "method": method, "rate": 0.1, "seed": seed}
            | {"accuracy": {"last-1": 0.0, AVERAGE: value}}
            for seed, value in seeds.items()
        ]

    rival = rows("FedAvg", [0.5, 0.6, 0.7])
    others = [*rows("better", [0.6, 0.7, 0.8]), *rows("level", [0.6, 0.7, 0.6])]
    worse = [{**row, "federation": "g"} for row in (*rival, *rows("worse", [0.4, 0.5, 0.6]))]
    assert hard.table({"f": [*rival, *others], "g": worse}, "FedAvg").splitlines() == [
        "| federation | FedAvg | better | level | worse |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| f | 60.0 ± 10.0 | **70.0 ± 10.0** | 63.3 ± 5.8 |  |",
        "| g | 60.0 ± 10.0 |  |  | 50.0 ± 10.0 - |",
    ]
