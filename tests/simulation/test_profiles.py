"""Clients as devices: speed, availability and local steps, and the simulated time of a round."""

import math
import statistics

import pytest

from fedexp.config import Config
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
    nobody = ClientProfiles.of("availability=random(0)")
    assert [len(nobody.present(0, 1, n)) for n in (1, 2, 5)] == [1, 2, 2]  # Flower waits for two


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


def test_faults_and_none_are_told_apart():
    assert Conditions.of({"faults": "", "client-profiles": "", "deadline": 3.0}) is None
    assert Conditions.of({"faults": "drop=0.1"}).faults == Faults(drop=0.1)
