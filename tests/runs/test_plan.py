"""Seeds, sweeps and selection: which runs a configuration asks for."""

from itertools import product

import pytest

from fedexp.config import Config
from fedexp.runs.plan import first_units, points_of, reporting_units, seeds_of, selected_units

TWO = {"fedavg": "fedavg", "fedexp": "fedexp"}


def units(**fields):
    return first_units(Config(**fields), TWO)


def test_without_seeds_and_sweep_a_unit_is_a_strategy():
    found = units(seed=3)
    assert [(u.label, u.config.strategy, u.config.seed, str(u.folder)) for u in found] == [
        ("fedavg", "fedavg", 3, "fedavg"),
        ("fedexp", "fedexp", 3, "fedexp"),
    ]


def test_every_strategy_runs_with_every_seed_at_every_point():
    found = units(seeds="0,2", sweep="learning-rate=0.1,0.3; local-steps=5,10")
    expected = product(TWO, (0.1, 0.3), (5, 10), (0, 2))
    settings = [
        (u.label, u.config.learning_rate, u.config.local_steps, u.config.seed) for u in found
    ]
    assert settings == list(expected)
    assert len({u.folder for u in found}) == len(found)
    assert found[1].folder.as_posix() == "fedavg/learning-rate=0.1,local-steps=5/seed-2"
    assert not any(u.config.seeds or u.config.sweep for u in found)


def test_seeds_that_select_are_other_than_those_that_report():
    config = Config(seeds="0-2", sweep="learning-rate=0.1,0.3", select="best-accuracy")
    tried = first_units(config, TWO)
    assert {u.config.seed for u in tried} == {3, 4}
    assert all(u.tuning and u.folder.parts[0] == "tuning" for u in tried)
    best = selected_units(config, TWO, [(u, {"best-accuracy": 0.5}) for u in tried])
    assert [u.config.seed for u in best] == [0, 1, 2, 0, 1, 2]
    assert not any(u.tuning for u in best)
    assert [u.folder for u in best] == [u.folder for u in reporting_units(config, TWO)]


@pytest.mark.parametrize(
    ("select", "scores", "best"),
    [
        ("best-accuracy", {0.1: (0.8, 0.4), 0.3: (0.7, 0.7)}, 0.3),  # means 0.6 and 0.7
        ("final-test-loss", {0.1: (0.8, 0.4), 0.3: (0.7, 0.7)}, 0.1),
        ("rounds-to-target", {0.1: (3, None), 0.3: (9, 9)}, 0.3),  # one seed never got there
        ("best-accuracy", {0.1: (None, None), 0.3: (0.1, 0.1)}, 0.3),
        ("best-accuracy", {0.1: (0.5, 0.5), 0.3: (0.5, 0.5)}, 0.1),  # the first of equals
    ],
)
def test_each_strategy_gets_the_point_of_the_best_mean_over_the_tuning_seeds(select, scores, best):
    config = Config(sweep="learning-rate=0.1,0.3", select=select)
    tried = []
    for unit in first_units(config, TWO):
        rate = (
            unit.config.learning_rate if unit.label == "fedavg" else 0.4 - unit.config.learning_rate
        )
        value = scores[round(rate, 6)][unit.config.seed - 1]
        tried.append((unit, {select: value}))
    found = {u.label: u.config.learning_rate for u in selected_units(config, TWO, tried)}
    other = best if scores[0.1] == scores[0.3] else round(0.4 - best, 6)
    assert found == {"fedavg": best, "fedexp": other}


def test_labels_that_make_one_folder_get_two():
    labels = {"a b": "fedavg", "ab": "fedexp", "tuning": "fedavgm"}
    names = [str(u.folder) for u in first_units(Config(), labels)]
    assert len(set(names)) == 3
    assert "tuning" not in names


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"seeds": "0,x"}, "must be numbers by comma, or 0-9"),
        ({"seeds": "1,1"}, "each once"),
        ({"seeds": "-1"}, "must be numbers"),
        ({"seeds": "3-1"}, "must name numbers"),
        ({"sweep": "learning-rate"}, "must be KEY=VALUE,VALUE"),
        ({"sweep": "learning-rate="}, "must be KEY=VALUE,VALUE"),
        ({"sweep": "learning-rat=1,2"}, "Did you mean 'learning-rate'"),
        ({"sweep": "learning-rate=1,-2"}, "greater than 0"),
        ({"sweep": "seed=1,2"}, "seed cannot be swept"),
        ({"sweep": "alpha=1;alpha=2"}, "alpha is given twice"),
        ({"select": "best-accuracy"}, "there is no sweep"),
        ({"sweep": "alpha=1,2", "select": "best"}, "must be one of best-accuracy"),
        ({"tuning_seeds": "1"}, "nothing is selected"),
        (
            {"sweep": "alpha=1,2", "select": "best-accuracy", "tuning_seeds": "0,1"},
            "seed 0 also reports",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(fields, words):
    with pytest.raises(ValueError, match=words) as caught:
        units(**fields)
    assert "\n" not in str(caught.value)


def test_ranges_and_lists_of_seeds():
    assert seeds_of(Config(seeds="0-2,7", seed=9)) == [0, 1, 2, 7]
    assert seeds_of(Config(seed=9)) == [9]
    assert points_of(Config()) == [{}]
