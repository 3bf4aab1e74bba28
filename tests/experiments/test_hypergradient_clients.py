"""Clients that start 100 times too slow need at most half the rounds if they tune their rate."""

import pytest

from experiments.hypergradient_clients import SERVERS, SETTINGS, measure, table
from fedexp.config import Config
from fedexp.simulation.run import grid_of


@pytest.mark.slow
@pytest.mark.parametrize("server", SERVERS)
def test_tuning_clients_arrive_in_half_the_rounds_in_which_fixed_ones_do_not(server):
    grid = grid_of(Config(**SETTINGS, engine="serial"))
    assert measure(grid, server, "fixed", seed=0, max_rounds=40) is None
    tuned = measure(grid, server, "hypersgd, height 1, average", seed=0, max_rounds=40)
    assert tuned is not None
    assert tuned <= 20


def test_who_does_not_arrive_is_shown_with_the_rounds_it_was_given():
    found = {"fixed": {s: [None, 30] for s in SERVERS}, "tuned": {s: [None] for s in SERVERS}}
    assert "| fixed | > 40, 30 | > 40, 30 |" in table(found, 40)
    assert "| tuned | > 20 | > 20 |" in table(found, 40)
