import json
from pathlib import Path

import numpy as np
import pytest

from experiments import attacks
from experiments.attacks import Attack, Cell, accuracies, cells, lost, main, shifted, table
from fedexp.config import Config
from fedexp.records import from_record
from fedexp.simulation import SerialGrid
from fedexp.strategies import (
    Constant,
    FedAvg,
    FedExP,
    Momentum,
    NesterovExP,
    ServerOptimizer,
)

CONFIG = Config(num_clients=6, fraction_train=1.0, local_steps=1)


def updates(attack):
    """What each client subtracts in a round of all clients, and its weight."""
    found = {}

    class Seen(SerialGrid):
        def send_and_receive(self, messages, *, timeout=None):
            for reply in super().send_and_receive(messages, timeout=timeout):
                before = from_record(next(iter(messages)).content["arrays"])
                after = from_record(reply.content["arrays"]) if reply.has_content() else before
                node = reply.metadata.src_node_id
                weight = reply.content["metrics"]["num-examples"] if reply.has_content() else 0
                found[node] = {k: np.float64(before[k]) - after[k] for k in before}, weight
                yield reply

    grid = Seen(attack.app(), CONFIG.num_clients, run_config=CONFIG.values())
    run = attacks.app.Run(CONFIG, "fedavg", CONFIG.num_clients)
    FedAvg(seed=0, fraction_evaluate=0.0).start(grid, run.arrays, num_rounds=1)
    return found, from_record(run.arrays)


def test_a_pair_cancels_and_is_a_hundred_times_as_long_as_the_model():
    attack = Attack.by(3, "pairs", CONFIG)
    found, model = updates(attack)
    a, b, alone = attack.nodes
    assert found[a][1] == found[b][1]
    for name, w in model.items():
        limit = 1e-5 * np.abs(found[a][0][name]).max()
        np.testing.assert_allclose(found[a][0][name], -found[b][0][name], atol=limit)
        assert np.abs(found[alone][0][name]).max() <= 1.0  # it trains
        assert w.shape == found[a][0][name].shape
    length = np.sqrt(sum(np.square(x).sum() for x in found[a][0].values()))
    size = np.sqrt(sum(np.square(np.float64(x)).sum() for x in model.values()))
    assert length == pytest.approx(100 * size, rel=1e-5)


@pytest.mark.parametrize(("kind", "factor"), attacks.FACTORS.items())
def test_a_factor_multiplies_the_honest_update(kind, factor):
    honest, _ = updates(Attack.by(0, "none", CONFIG))
    attack = Attack.by(1, kind, CONFIG)
    found, _ = updates(attack)
    for node in found:
        times = factor if node in attack.nodes else 1.0
        for name, x in honest[node][0].items():
            limit = 1e-4 * abs(times) * np.abs(x).max() + 1e-7
            np.testing.assert_allclose(found[node][0][name], times * x, atol=limit)


def test_claims_and_absence():
    attack = Attack.by(1, "1e14 examples", CONFIG)
    assert updates(attack)[0][attack.nodes[0]][1] == 1e14
    assert updates(Attack.by(1, "absent", CONFIG))[0][attack.nodes[0]][1] == 0


def test_buffers_are_not_multiplied():
    before = {"w": np.zeros(2), "bn.running_mean": np.zeros(2)}
    after = {"w": np.ones(2), "bn.running_mean": np.ones(2)}
    moved = shifted(before, after, 30.0)
    assert (moved["w"][0], moved["bn.running_mean"][0]) == (30.0, 1.0)


def test_a_cell_is_a_run_of_fifty_clients(monkeypatch):
    seen, by = [], Attack.by

    def watched(number, kind, config):
        seen.append(by(number, kind, config))
        return seen[-1]

    monkeypatch.setattr(Attack, "by", watched)
    found = accuracies(Cell("FedAvg", "absent", 5, 0.2, 0), 1)
    assert all(0 < found[iterate] < 1 for iterate in ("last", "averaged"))
    assert seen[0].config.num_clients == 50
    assert len(set(seen[0].nodes)) == 5


def test_the_experiment_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    asked = []

    def measured(cell, num_rounds):
        asked.append(cell)
        return {"last": 0.5, "averaged": 0.25}

    monkeypatch.setattr(attacks, "accuracies", measured)
    file = tmp_path / "found.json"
    main(["--out", str(file)])
    assert asked == cells(1)
    kept = json.loads(file.read_text())
    del kept["accuracies"][asked[3].name]
    file.write_text(json.dumps(kept))
    main(["--out", str(file)])
    assert asked[len(cells(1)) :] == [asked[3]]
    assert list(json.loads(file.read_text())["accuracies"]) == [cell.name for cell in cells(1)]
    assert f"| none | 0 | 1 |{' 50.0 |' * 8}" in capsys.readouterr().out


def test_the_table_has_means_over_seeds_in_percent():
    cell = Cell("FedExP", "flip", 2, 0.2, 0)
    found = {
        cell.name: {"last": 0.5, "averaged": 0.7},
        Cell("FedExP", "flip", 2, 0.2, 1).name: {"last": 0.6, "averaged": 0.7},
        Cell("FedAvg", "pairs", 2, 0.2, 0).name: {"last": 0.8, "averaged": 0.7},
    }
    lines = table(found, 0.2, "last").splitlines()
    assert lines[0] == "| attack | clients | seeds | FedAvg | FedExP |"
    assert lines[2:] == ["| flip | 2 | 2 |  | 55.0 |", "| pairs | 2 | 1 | 80.0 |  |"]
    assert "flip" not in table(found, 1.0, "last")


def test_a_row_compares_strategies_on_the_seeds_that_all_of_them_have():
    found = {
        Cell("FedAvg", "flip", 2, 0.2, 0).name: {"last": 0.5},
        Cell("FedAvg", "flip", 2, 0.2, 1).name: {"last": 0.9},
        Cell("FedExP", "flip", 2, 0.2, 0).name: {"last": 0.6},
    }
    assert "| flip | 2 | 1 | 50.0 | 60.0 |" in table(found, 0.2, "last")


def test_what_a_robust_rule_loses_is_taken_seed_by_seed():
    found = {
        Cell(f"{name}{ending}", kind, number, 0.2, seed).name: {"last": accuracy}
        for name in attacks.RULES
        for kind, number, ending, seed, accuracy in (
            *(("none", 0, "", 0, 0.9), ("none", 0, "", 1, 0.8)),
            *(("none", 0, ", robust", 0, 0.9), ("none", 0, ", robust", 1, 0.9)),
            *(("flip", 2, ", robust", 0, 0.8), ("flip", 2, ", robust", 1, 0.5)),
        )
    }
    text = lost(found, 0.2, "last")
    assert f"| none | 0 | 2 |{' -5.0 (-10.0 to 0.0) |' * 4}" in text
    assert f"| flip | 2 | 2 |{' 20.0 (10.0 to 30.0) |' * 4}" in text


def test_the_rules_are_those_that_the_tables_name():
    grid = SerialGrid(Attack.by(0, "none", CONFIG).app(), 6, run_config=CONFIG.values())
    rules = {
        name: attacks.app.Run(CONFIG, key, grid.num_nodes).strategy.optimizer
        for name, key in attacks.RULES.items()
    }
    assert rules["Nesterov"] == ServerOptimizer(Momentum(0.9, nesterov=True), Constant(1.0))
    assert rules["NesterovExP"] == NesterovExP().optimizer
    assert (rules["FedAvg"], rules["FedExP"]) == (FedAvg().optimizer, FedExP().optimizer)


@pytest.mark.parametrize("fraction", [0.2, 1.0])
@pytest.mark.parametrize("iterate", ["last", "averaged"])
def test_the_published_tables_are_those_of_the_published_numbers(fraction, iterate):
    docs = Path(__file__).parents[2] / "docs"
    found = json.loads((docs / "attacks.json").read_text(encoding="utf-8"))["accuracies"]
    assert list(found) == [cell.name for cell in cells(3)]
    text = (docs / "robustness.md").read_text(encoding="utf-8")
    assert table(found, fraction, iterate) in text
    assert fraction == 1.0 or lost(found, fraction, iterate) in text
