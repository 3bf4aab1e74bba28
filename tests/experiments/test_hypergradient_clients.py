"""Clients that start 100 times too slow need at most half the rounds if they tune their rate."""

import pytest

from experiments.hypergradient_clients import SERVERS, TOO_SMALL, Found, measure, table
from fedexp.config import Config
from fedexp.runs.engines import grid_of


@pytest.mark.slow
@pytest.mark.parametrize("server", SERVERS)
def test_tuning_clients_arrive_in_half_the_rounds_in_which_fixed_ones_do_not(server):
    grid = grid_of(Config(learning_rate=TOO_SMALL, engine="serial"))
    given = {"rate": TOO_SMALL, "seed": 0, "num_rounds": 40, "whole": False}
    assert measure(grid, server, "fixed", **given).rounds is None
    tuned = measure(grid, server, "hypersgd, height 1, average", **given).rounds
    assert tuned is not None
    assert tuned <= 20


def test_who_does_not_arrive_is_shown_with_the_rounds_it_was_given():
    never, late = Found(None, 0.5), Found(30, 0.9)
    found = {
        "fixed": {key: [never, late] for key in SERVERS},
        "tuned": {key: [never] for key in SERVERS},
    }
    assert "| fixed | > 40, 30 | > 40, 30 |" in table(found, 40, whole=False)
    assert "| tuned | > 20 | > 20 |" in table(found, 40, whole=False)
    assert "| tuned | > 40: 0.500 | > 40: 0.500 |" in table(found, 40, whole=True)
