"""Runs whose clients fail to order and are unlike devices: what they count, and how they resume."""

import shlex
from pathlib import Path

import numpy as np
import pytest
from kept import timeless

from fedexp.checks import check_read
from fedexp.config import Config
from fedexp.flags import add_simulate_flags, config_of
from fedexp.parser import Parser
from fedexp.runs.engines import grid_of
from fedexp.runs.federation import Federation
from fedexp.runs.job import Job, run_job
from fedexp.runs.plan import first_units
from fedexp.runs.unit_run import UnitRun
from fedexp.simulation.profiles import ClientProfiles


@pytest.fixture(scope="module")
def outcome():
    """What a run under all conditions leaves."""
    config = Config.of(
        {
            **{"strategy": "fedavg", "num-clients": 12, "num-server-rounds": 4, "engine": "serial"},
            **{"fraction-train": 0.5, "batch-size": 4, "fraction-evaluate": 0.3},
            "client-profiles": "availability=random(0.7), local-steps=uniform(1, 4)",
            **{"faults": "drop=0.3, scale=0.2, crash=0.1", "deadline": 2.0},
        }
    )
    federation = Federation(config)
    (unit,) = first_units(config, {"fedavg": "fedavg"})
    with grid_of(config, federation) as grid:
        return config, grid, run_job(Job(unit), federation, grid)


def test_every_row_counts_what_was_ordered_and_what_came_of_it(outcome):
    config, _, done = outcome
    for row in done.rows:
        ordered = {kind: row[f"faults-{kind}"] for kind in ("drop", "scale", "crash")}
        assert row.get("bad-replies-lost", 0) == ordered["drop"]
        assert row.get("bad-replies-crash", 0) == ordered["crash"]
        assert row["num-failures"] == ordered["drop"] + ordered["crash"]
        silent = ordered["drop"] + ordered["crash"] > 0
        assert (row["simulated-seconds"] == config.deadline) == silent
    assert done.summary["faults"] == sum(
        n for row in done.rows for key, n in row.items() if key.startswith("faults-")
    )
    assert done.summary["faults"] > 3
    times = sum(row["simulated-seconds"] for row in done.rows)
    assert done.summary["simulated-seconds"] == pytest.approx(times)


def test_a_run_whose_clients_fail_to_order_has_no_problem(outcome):
    assert outcome[2].summary["problem"] is None


def test_a_private_run_that_no_reply_ever_reached_is_no_success():
    """Its rounds do not fail, since the number of replies is secret: its model is all noise."""
    config = Config.of(
        {
            **{"strategy": "fedavg", "num-clients": 3, "num-server-rounds": 1, "engine": "serial"},
            **{"fraction-train": 1.0, "local-steps": 1, "model": "linear", "faults": "drop=1"},
            "privacy": "central(noise-multiplier=1, clip=1)",
        }
    )
    federation = Federation(config)
    (unit,) = first_units(config, {"fedavg": "fedavg"})
    with grid_of(config, federation) as grid:
        done = run_job(Job(unit), federation, grid)
    assert done.summary["failed-rounds"] == 0
    assert done.summary["problem"] == "3 clients never contributed: 3 clients: no reply came."


def test_a_cohort_is_drawn_from_those_that_are_there(outcome):
    config, grid, done = outcome
    profiles = ClientProfiles.of(config.client_profiles)
    for row in done.rows:
        present = profiles.present(config.seed, row["round"], 12)
        assert row["num-clients"] + row["num-failures"] == int(0.5 * len(present))
        grid.begin_round(row["round"])
        assert grid.get_node_ids() == [c + 2 for c in present]
    grid.begin_round(0)
    assert len(grid.get_node_ids()) == 12


def test_a_resumed_run_meets_the_same_faults(outcome, tmp_path):
    config, _, whole = outcome
    federation = Federation(config)
    (unit,) = first_units(config, {"fedavg": "fedavg"})
    for number in (2, 4):
        going = UnitRun(unit, federation, folder=tmp_path)
        with grid_of(config, federation) as grid:
            going.begin(grid, resume=True)
            going.advance(grid, number)
    assert list(map(timeless, going.rows)) == list(map(timeless, whole.rows))


def after_two_rounds(**fields):
    """The rows and the last model of a small run."""
    small = {"strategy": "fedavg", "num-clients": 12, "num-server-rounds": 2, "fraction-train": 1.0}
    config = Config.of({**small, "local-steps": 2, "engine": "serial", **fields})
    federation = Federation(config)
    (unit,) = first_units(config, {"fedavg": "fedavg"})
    with grid_of(config, federation) as grid:
        done = run_job(Job(unit), federation, grid)
    return done.rows, done.models[0]


def test_a_client_takes_the_steps_of_its_profile():
    own = {"client-profiles": "local-steps=uniform(3, 3)", "vectorize": "off"}
    _, as_profiled = after_two_rounds(**own)
    _, as_set = after_two_rounds(**{"local-steps": 3, "vectorize": "off"})
    assert all(np.array_equal(as_profiled[name], x) for name, x in as_set.items())


@pytest.mark.parametrize("faults", ["drop=0.2, nan=0.2, scale=0.1, garbage=0.1", "crash=0.3"])
def test_clients_that_train_in_a_group_have_the_faults_of_those_that_train_alone(faults):
    (alone, one), (in_group, other) = (
        after_two_rounds(faults=faults, vectorize=mode) for mode in ("off", "on")
    )
    for mine, theirs in zip(alone, in_group, strict=True):
        assert mine["failures"] == theirs["failures"]
        assert 0 < mine["num-failures"] < 12
    assert all(np.allclose(one[name], x, atol=1e-5) for name, x in other.items())


def test_the_commands_of_the_document_can_be_read():
    text = (Path(__file__).parents[2] / "docs" / "faults.md").read_text("utf-8")
    lines = text.replace("\\\n", " ").splitlines()
    commands = [shlex.split(x) for x in lines if x.startswith("    fedexp simulate")]
    assert len(commands) == 2
    parser = Parser(dict)
    add_simulate_flags(parser)
    for command in commands:
        values = vars(parser.parse_args(command[2:]))
        config, _ = config_of({k: v for k, v in values.items() if k in Config.keys()})  # noqa: SIM118
        assert config.client_profiles
        assert config.deadline


def test_real_devices_have_no_faults_to_order():
    for settings in ({"faults": "drop=0.1"}, {"client_profiles": "speed=lognormal(0.5)"}):
        config = Config(strategy="fedavg", **settings)
        check_read(config, (), "serial")
        with pytest.raises(ValueError, match="no chosen engine reads"):
            check_read(config, (), "fedexp run")


def test_a_deadline_among_clients_that_are_alike_is_refused():
    config = Config.of({"strategy": "fedavg", "deadline": 2.0})
    with pytest.raises(ValueError, match="all in time or all late"):
        Federation(config).check(config)


def test_simulated_time_is_that_of_local_steps():
    rows, _ = after_two_rounds(**{"faults": "drop=0.2", "local-epochs": 1.0})
    assert all("faults-drop" in row and "simulated-seconds" not in row for row in rows)
    with pytest.raises(ValueError, match="simulated time is that of local-steps"):
        after_two_rounds(**{"client-profiles": "speed=lognormal(1)", "local-epochs": 1.0})


def test_a_strategy_that_would_wait_for_ever_is_refused():
    from flwr.serverapp.strategy import FedAvg

    config = Config.of({"strategy": "fedavg", "client-profiles": "availability=random(0.5)"})
    with pytest.raises(ValueError, match="it would wait for ever"):
        Federation(config).run(config, FedAvg(fraction_evaluate=0.0, min_train_nodes=3))
    Federation(config).run(config, FedAvg(fraction_evaluate=0.0))
