"""Clients as devices: speed, availability and local steps, and the simulated time of a round."""

import math
import statistics

import pytest

from fedexp.config import Config
from fedexp.runs.engines import grid_of
from fedexp.runs.federation import Federation
from fedexp.runs.job import Job, run_job
from fedexp.runs.plan import first_units
from fedexp.simulation.conditions import Conditions
from fedexp.simulation.faults import Faults
from fedexp.simulation.profiles import ClientProfiles

MANY = range(2000)


def test_speeds_have_the_law_that_is_named():
    logs = [math.log(ClientProfiles.of("speed=lognormal(0.5)").speed_of(3, c)) for c in MANY]
    assert statistics.fmean(logs) == pytest.approx(0, abs=0.05)
    assert statistics.stdev(logs) == pytest.approx(0.5, abs=0.03)
    even = [ClientProfiles.of("speed=uniform(0.5, 2)").speed_of(3, c) for c in MANY]
    assert statistics.fmean(even) == pytest.approx(1.25, abs=0.05)
    assert min(even) >= 0.5
    assert max(even) < 2
    assert {ClientProfiles().speed_of(3, c) for c in MANY} == {1.0}


def test_local_steps_are_whole_and_both_ends_come():
    profiles = ClientProfiles.of("local-steps=uniform(5, 8)")
    assert {profiles.steps_of(0, c, 20) for c in MANY} == {5, 6, 7, 8}
    assert ClientProfiles().steps_of(0, 0, 20) == 20


def test_clients_are_there_as_often_as_is_said():
    random = ClientProfiles.of("availability=random(0.3)")
    there = [len(random.present(1, r, 100)) for r in range(1, 31)]
    assert statistics.fmean(there) == pytest.approx(30, abs=3)
    assert random.present(1, 5, 100) == random.present(1, 5, 100) != random.present(1, 6, 100)


def test_a_day_goes_up_and_down_for_each_client_at_its_own_time():
    profiles = ClientProfiles.of("availability=diurnal(0.2, 0.9, 24)")
    day = [profiles.presence(0, r, 0) for r in range(48)]
    assert day[:24] == pytest.approx(day[24:])
    assert min(day) == pytest.approx(0.2, abs=0.01)
    assert max(day) == pytest.approx(0.9, abs=0.01)
    assert statistics.fmean(day) == pytest.approx(0.55)
    tops = {max(range(24), key=lambda r, c=c: profiles.presence(0, r, c)) for c in range(200)}
    assert len(tops) == 24


def test_somebody_is_always_there():
    assert len(ClientProfiles.of("availability=random(0)").present(0, 1, 5)) == 1


def test_time_is_steps_over_speed_and_bytes_over_bandwidth():
    text = "speed=uniform(4, 4), step-seconds=0.1, bandwidth=1000, local-steps=uniform(40, 40)"
    assert ClientProfiles.of(text).seconds(0, 0, 20, num_bytes=500) == 40 * 0.1 / 4 + 2 * 500 / 1000


def test_a_round_takes_as_long_as_its_slowest_client_or_until_the_deadline():
    def of(**settings):
        return Conditions.of({"client-profiles": "speed=lognormal(1)", "seed": 2, **settings})

    plain = of()
    times = [plain.seconds(1, c, 0) for c in range(6)]
    assert plain.round_seconds(1, range(6), 0) == max(times) > 0.2 > min(times)  # 20 steps of 0.01
    assert plain.round_seconds(1, [], 0) == 0
    assert of(deadline=0.2).round_seconds(1, range(6), 0) == 0.2
    assert of(deadline=99.0).round_seconds(1, range(6), 0) == max(times)
    # Whoever stays silent is waited for, if there is an end to it.
    assert of(faults="drop=1").round_seconds(1, range(6), 0) == max(times)
    assert of(faults="crash=1", deadline=99.0).round_seconds(1, range(6), 0) == 99
    assert of(faults="slow=1").seconds(1, 0, 0) == 10 * times[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sped=1", "no 'sped'; known are speed, availability"),
        ("speed=lognormal", r"cannot be; write lognormal\(0.5\) or uniform\(0.5, 2\)"),
        ("speed=lognormal(-1)", "a spread is not negative"),
        ("speed=uniform(2, 1)", "the lower one first"),
        ("availability=random(2)", "a probability is from 0 to 1"),
        ("availability=diurnal(0.2, 0.9, 0)", "a day has a positive number of rounds"),
        ("local-steps=uniform(1, 2.5)", "a number of steps is whole"),
        ("step-seconds=0", "it must be positive"),
        ("bandwidth=inf", "cannot be; write 1e6"),
        ("speed=uniform(1, 2), speed=uniform(1, 2)", "speed is given twice"),
        ("speed=lognormal(0.5", "a bracket is missing"),
    ],
)
def test_a_slip_in_a_profile_is_one_line(text, words):
    with pytest.raises(ValueError, match=words) as caught:
        Config.of({"client-profiles": text})
    assert "\n" not in str(caught.value)


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


def test_a_client_takes_the_steps_of_its_profile():
    def trained(**fields):
        small = {"strategy": "fedavg", "num-clients": 3, "num-server-rounds": 1}
        config = Config.of({**small, "vectorize": "off", "engine": "serial", **fields})
        federation = Federation(config)
        (unit,) = first_units(config, {"fedavg": "fedavg"})
        with grid_of(config, federation) as grid:
            (last, _) = run_job(Job(unit), federation, grid).models
        return {name: x.tobytes() for name, x in last.items()}

    assert trained(**{"client-profiles": "local-steps=uniform(3, 3)"}) == trained(
        **{"local-steps": 3}
    )


def test_a_deadline_among_clients_that_are_alike_is_refused():
    config = Config.of({"strategy": "fedavg", "deadline": 2.0})
    with pytest.raises(ValueError, match="all in time or all late"):
        Federation(config).check(config)


def test_a_strategy_that_would_wait_for_ever_is_refused():
    from flwr.serverapp.strategy import FedAvg

    config = Config.of({"strategy": "fedavg", "client-profiles": "availability=random(0.5)"})
    with pytest.raises(ValueError, match="it would wait for ever"):
        Federation(config).run(config, FedAvg(fraction_evaluate=0.0))


def test_faults_and_none_are_told_apart():
    assert Conditions.of({"faults": "", "client-profiles": "", "deadline": 3.0}) is None
    assert Conditions.of({"faults": "drop=0.1"}).faults == Faults(drop=0.1)
