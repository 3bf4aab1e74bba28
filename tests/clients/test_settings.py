"""Settings that come with a message are held to the rules of the command line."""

import math

import pytest
import torch
from flwr.app import ArrayRecord
from torch import nn

from fedexp.clients import ClientSettings, Examples, client_app
from fedexp.clients.settings import ALSO, KEYS
from fedexp.config import Config
from fedexp.simulation import SerialGrid
from fedexp.strategies import FedAvg

NUMBERS = [-1, -1e-9, 0, 0.5, 1, 1.5, 9, 10, "3", "-1", "x", math.nan, math.inf, [0.1]]
TEXTS = {"local-optimizer", "local-scheduler", "augmentation"}
SHARED = sorted((KEYS.keys() | ALSO.keys()) & Config.keys().keys() - TEXTS)


def refuses(of, settings):
    try:
        of(settings)
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("key", SHARED)
@pytest.mark.parametrize("value", [*NUMBERS, "fresh", "carry"])
def test_a_client_takes_the_values_that_the_command_line_takes(key, value):
    company = {"learning-rate-exponent": 1} if key == "learning-rate-offset" else {}
    if (key, value) == ("learning-rate", 0):
        assert ClientSettings.of({key: value}).lr == 0  # which a scheduler may send
    else:
        own = refuses(ClientSettings.of, {key: value, **company})
        assert own == refuses(Config.of, {key: value})


REFUSED = [
    ("local-steps", "x", "must be a number"),
    ("local-steps", -1, "must be at least 1"),
    ("local-steps", 2.5, "must be a whole number"),
    ("local-steps", True, "must be a number"),
    ("batch-size", 0, "must be at least 1"),
    ("learning-rate", [0.1], "must be a number"),
    ("learning-rate", -1, "must be at least 0"),
    ("learning-rate", math.inf, "must be a finite number"),
    ("learning-rate-decay", 1.5, "must be greater than 0 and at most 1"),
    ("proximal-mu", -0.1, "must be at least 0"),
    ("hyper-height", 10, "must be at least 1 and at most 9"),
    ("hyper-between-rounds", "carried", "must be one of fresh, carry, average"),
    ("server-round", -1, "must be at least 0"),
    ("final-loss", "false", "must be true or false"),
    ("local-optimizer", 3, "must be text"),
    ("augmentation", False, "must be text"),
]


@pytest.mark.parametrize(("key", "value", "rule"), REFUSED)
def test_a_setting_that_cannot_be_is_named_with_its_key_and_rule(key, value, rule):
    with pytest.raises(ValueError, match=r"^ClientSettings") as error:
        ClientSettings.of({key: value})
    assert str(error.value) == f"ClientSettings({key}={value!r}): {rule}."


def linear(context=None):
    return nn.Linear(2, 2)


def data(context=None):
    return (Examples(torch.eye(2), torch.arange(2)),) * 2


WRONG = [{"learning-rate": -1}, {"local-optimizer": "no-such"}, {"local-optimizer": "adam(eps=x)"}]


@pytest.mark.parametrize("vectorize", ["off", "on"])
@pytest.mark.parametrize("settings", WRONG)
def test_a_message_that_cannot_be_is_an_error_reply_alone_and_in_a_group(
    settings, vectorize, logged
):
    grid = SerialGrid(client_app(linear, data), num_nodes=2, vectorize=vectorize)
    strategy = FedAvg(fraction_train=1.0, client_config=settings)
    result = strategy.start(grid, ArrayRecord(linear().state_dict()), num_rounds=1)
    assert result.train_metrics_clientapp[1]["num-failures"] == 2
    (key, _), *_ = settings.items()
    assert any("Replies of 2 clients" in line and f"({key}=" in line for line in logged)


def test_a_run_config_that_cannot_be_is_refused_when_the_grid_is_made():
    with pytest.raises(ValueError, match=r"ClientSettings\(weight-decay=-1\): must be at least 0"):
        SerialGrid(client_app(linear, data), num_nodes=2, run_config={"weight-decay": -1})
