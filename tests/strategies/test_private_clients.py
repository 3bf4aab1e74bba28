"""Local privacy: what clients send, and FedExP's ratio before and after the correction."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import content, grid_of, merging_if, partition, stats_of
from torch import nn

from fedexp.arrays import sq_norm
from fedexp.clients import Examples, client_app
from fedexp.clients.local_privacy import hidden
from fedexp.privacy import client_epsilon
from fedexp.privacy.noise import SeededNoise
from fedexp.records import from_record, to_record
from fedexp.rounds import rounds
from fedexp.simulation import SerialGrid
from fedexp.strategies import FedExP, LocalPrivacy
from fedexp.strategies.extensions import Received, RoundInProgress
from fedexp.wire import ClientResult, ReplyFormat

pytestmark = pytest.mark.filterwarnings("ignore:The noise is fixed by the seed")

NUM, SIZE, SIGMA = 50, 1000, 0.1
MEAN, SPREAD = 0.1002, 0.1966  # ‖Δ̄‖², and the mean of ‖Δᵢ‖²


def updates():
    """Fifty updates of exactly these moments."""
    rng = np.random.default_rng(0)
    mean, own = rng.normal(size=SIZE), rng.normal(size=(NUM, SIZE))
    mean *= (MEAN / (mean @ mean)) ** 0.5
    own -= own.mean(0)
    own -= np.outer(own @ mean, mean) / MEAN
    return mean + own * ((SPREAD - MEAN) * NUM / (own**2).sum()) ** 0.5


def sent(given, sigma, bound, draw):
    """The pseudo-gradients as the clients send them."""
    before = {"w": np.zeros(SIZE)}
    told = {"local-noise": sigma, "local-clip": bound, "local-noise-seed": 1, "server-round": draw}
    return [
        -hidden(ClientResult(p, {"w": -x}), before, told, p).arrays["w"]
        for p, x in enumerate(given)
    ]


def corrected(sums, extension):
    reading = ReplyFormat("num-examples", True, frozenset("w"), "arrays")
    received = Received(RoundInProgress({}, reading), sums, [], [], [])
    return extension.aggregate(received, sums, {}).stats


def test_the_ratio_is_right_in_expectation_only_if_both_lengths_are_corrected():
    # Ten times as long, so that the noise is what z = 0.5 gives at C = 1.
    given, extension = 10 * updates(), LocalPrivacy(10 * SIGMA / 2, 1.0)
    found = []
    for draw in range(60):
        noisy = stats_of(*sent(given, 10 * SIGMA, 1e9, draw))
        right = corrected(noisy, extension)
        length = sq_norm(noisy.mean_update)
        found.append([noisy.mean_sq_norm, length, right.mean_sq_norm, length - right.excess])
    top, bottom, right_top, right_bottom = np.mean(found, 0)
    assert top / bottom == pytest.approx(33.966, rel=0.01)
    assert right_top / bottom == pytest.approx(0.6549, rel=0.05)
    assert right_top / right_bottom == pytest.approx(1.9621, rel=0.08)


def test_without_the_correction_the_ratio_tends_to_the_number_of_clients():
    noisy = stats_of(*sent(updates(), 10.0, 1.0, 0))
    assert noisy.mean_sq_norm / sq_norm(noisy.mean_update) == pytest.approx(NUM, rel=0.1)
    right = corrected(noisy, LocalPrivacy(5.0, 1.0))
    assert abs(right.mean_sq_norm) < 0.05 * noisy.mean_sq_norm


def test_a_client_clips_its_update_then_adds_noise_of_its_variance():
    long = np.zeros(20_000)
    long[0] = 30.0
    told = {"local-noise": 0.5, "local-clip": 2.0, "local-noise-seed": 1}
    before = {"w": np.ones(20_000), "n": np.array(3)}
    result = ClientResult(7, {"w": 1 - long, "n": np.array(9)}, {"num-examples": 8, "loss": 1.0})
    out = hidden(result, before, told, 0)
    noise = 1 - out.arrays["w"] - 2.0 * long / 30
    assert abs(noise.mean()) < 4 * 0.5 / 20_000**0.5
    assert noise.std() == pytest.approx(0.5, rel=0.03)
    assert out.arrays["n"] == 3  # a counter tells of the data too
    assert out.metrics == {"num-examples": 1, "local-noise": 0.5}
    other = hidden(result, before, told, 1).arrays["w"]
    assert not np.array_equal(other, out.arrays["w"])
    assert hidden(result, before, {}, 0) is result
    lost = hidden(replace(result, arrays={**before, "w": before["w"] * np.nan}), before, told, 0)
    np.testing.assert_allclose(lost.arrays["w"], 1 - noise)  # an error would tell of the data


def linear(context):
    return nn.Linear(3, 3)


def mine(context):
    x = Examples(torch.eye(3), torch.arange(3))
    return x, x


@pytest.mark.parametrize("vectorize", ["on", "off"])
def test_a_run_hides_every_client_alone_and_in_groups(vectorize):
    config = {"local-steps": 1, "batch-size": 3, "learning-rate": 0.1}
    grid = SerialGrid(client_app(linear, mine), 4, run_config=config, vectorize=vectorize)
    strategy = FedExP(smoothing=0.5, extensions=[LocalPrivacy(8.0, 1e-3, seed=5)])
    strategy.fraction_evaluate = 0.0
    start = to_record({"weight": np.zeros((3, 3), "f"), "bias": np.zeros(3, "f")})
    *_, last = rounds(strategy, grid, start, num_rounds=2)
    assert last.train["privacy-epsilon"] == pytest.approx(client_epsilon(8.0, 1.0, 2, 1e-5))
    assert "train-loss" not in last.train
    assert "learning-rate-std" not in last.train
    # All gradients are the same; only the noise, much longer, tells the clients apart.
    assert last.train["update-norm"] > 5e-3


@pytest.mark.parametrize(
    ("optimizer", "vectorize"), [("sgd", "on"), ("sgd", "off"), ("dp-sgd(steps=5)", "off")]
)
def test_private_and_diverging_clients_are_hidden_too(optimizer, vectorize):
    def data(context):
        x, _ = mine(context)
        bad = Examples(x.inputs * np.nan, x.targets)
        return (bad if context.node_config["partition-id"] == 0 else x), x

    config = {"local-steps": 1, "batch-size": 3, "local-optimizer": optimizer}
    grid = SerialGrid(client_app(linear, data), 4, run_config=config, vectorize=vectorize)
    strategy = FedExP(smoothing=0.5, extensions=[LocalPrivacy(8.0, 1e-3, seed=5)])
    strategy.fraction_evaluate = 0.0
    start = to_record({"weight": np.zeros((3, 3), "f"), "bias": np.zeros(3, "f")})
    *_, last = rounds(strategy, grid, start, num_rounds=1)
    assert (last.train["num-clients"], last.train["num-failures"]) == (4, 0)
    assert not {"train-loss", "private-steps", "learning-rate"} & last.train.keys()


def test_a_client_that_hides_nothing_or_sends_more_than_its_noise_is_dropped():
    extension, noise = LocalPrivacy(1.0, 0.5, seed=1), SeededNoise(1)

    def train(message, context):
        sent, number = from_record(message.content["arrays"])["w"], partition(context)
        told = {"local_noise": message.content["config"]["local-noise"]}
        own = sent + told["local_noise"] * noise.normal(3)
        return [
            content({"w": own}, **told),
            content({"w": own}),
            content({"w": own}, local_noise=0.1),
            content({"w": sent + 1e20}, **told),
            content({"w": own * np.nan}, **told),
        ][number]

    for merges in (True, False):
        strategy = FedExP(fraction_evaluate=0.0, extensions=[extension], max_step_size=1.0)
        grid = merging_if(merges, grid_of(5, train))
        (last,) = rounds(strategy, grid, to_record({"w": np.zeros(3)}), num_rounds=1)
        assert (last.train["num-clients"], last.train["num-failures"]) == (1, 4)
        assert np.abs(from_record(last.arrays)["w"]).max() < 10
