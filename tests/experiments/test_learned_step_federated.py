"""What the experiment of learned step sizes in federations makes of its runs."""

import pytest

from experiments import learned_step_federated as experiment


def row(server, clients, accuracy, rounds=None, factor=0.01, seed=0):
    return {
        **{"seed": seed, "factor": factor, "server": server, "clients": clients},
        **{"accuracy": accuracy, "rounds": rounds, "accuracies": [accuracy] * (3 - seed)},
        **{"rates": [0.1, None, 0.1], "learned-step-size": None, "seconds": 2.0},
    }


def found():
    every = [
        row(s, c, 0.5 + 0.1 * seed, rounds=seed or None, seed=seed)
        for s in experiment.SERVERS
        for c in experiment.CLIENTS
        for seed in (0, 1)
    ]
    best = [row(s, "sgd", 0.9, 1, factor=1.0) for s in experiment.SERVERS]
    return {"rate": 0.1, "target": 0.85, "rows": best + every}


def test_its_table_has_means_spreads_and_who_never_arrives():
    text = experiment.table(found())
    assert "| 0.01 × 0.1 | fedexp | learned-step | 55.0 ± 7.1 | -, 1 | 2 |" in text
    assert "| 1 × 0.1 | fedavg | sgd | 90.0 | 1 | 2 |" in text
    assert len(text.splitlines()) == 2 + 2 + 6


def test_its_picture_shows_runs_that_ended_early(tmp_path):
    experiment.plot(tmp_path / "a.png", {"digits": found()})
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_learned_step_grows_from_a_hundred_times_too_small(tmp_path):
    federation = experiment.Federation("digits", 6, str(tmp_path))
    (only,) = federation.rows(0, 0.003, [("fedavg", "learned-step", {})])
    assert only["learned-step-size"][-1] > 20 * 0.003
