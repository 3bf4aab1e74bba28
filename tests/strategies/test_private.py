"""Private rounds against their formulas, the claimed sensitivity, and what they let out."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from builders import content, grid_of, merging_if, partition, record, stats_of
from flwr.app import ConfigRecord, Message, RecordDict

from fedexp.arrays import sq_norm
from fedexp.privacy import client_epsilon
from fedexp.privacy.noise import SeededNoise
from fedexp.records import from_record
from fedexp.rounds import rounds
from fedexp.runs.checkpoint import Checkpoint
from fedexp.strategies import (
    CentralPrivacy,
    FedAdam,
    FedAvg,
    FedExP,
    FedExPM,
    FixedClip,
    Scaffold,
    Waiting,
)
from fedexp.strategies.extensions import Received, RoundInProgress
from fedexp.wire import ReplyFormat

pytestmark = pytest.mark.filterwarnings("ignore:The noise is fixed by the seed")

W = {"w": np.linspace(-1, 1, 4), "b": np.asarray(0.5)}
SIZES = [10, 20, 40, 80, 160, 320]
QUIET = {"fraction_evaluate": 0.0, "min_available_nodes": 1}
NOISE, CLIP, Q = 2.0, 0.5, 0.5
both = pytest.mark.parametrize("merges", [True, False])
private = partial(CentralPrivacy, NOISE, CLIP, seed=3)


def update(p, server_round):
    """What client ``p`` subtracts from the model; some are longer than the bound."""
    rng = np.random.default_rng([p, server_round])
    return {k: (0.1 + 0.2 * p) * rng.normal(size=x.shape) for k, x in W.items()}


def grid(merges=True, failing=False):
    def train(message, context):
        p, server_round = partition(context), int(message.content["config"]["server-round"])
        if failing:
            raise RuntimeError("no data")
        sent, own = from_record(message.content["arrays"]), update(p, server_round)
        arrays = {k: np.asarray(x - own[k]) for k, x in sent.items()}
        return content(arrays, num_examples=SIZES[p], train_loss=1.0 + p)

    return merging_if(merges, grid_of(len(SIZES), train))


def run(strategy, num_rounds=3, first=1, arrays=W, **kwargs):
    *_, last = rounds(strategy, grid(**kwargs), record(arrays), num_rounds=num_rounds, first=first)
    return from_record(last.arrays), last.train


def length(x):
    return math.sqrt(sq_norm(x))


def reference(num_rounds, norm_share, quantile=0.0, step=None):
    """The rounds from the formulas, client by client."""
    w, bound, last = dict(W), CLIP, {}
    z1, z2 = NOISE / math.sqrt(1 - norm_share - 0.02 * bool(quantile)), 0.0
    for t in range(1, num_rounds + 1):
        drawn = SeededNoise(3, t, 0).uniform(len(SIZES)) < Q
        noise, expected = SeededNoise(3, t, 1), Q * len(SIZES)
        updates = [update(p, t) for p in range(len(SIZES)) if drawn[p]]
        scales = [min(1.0, bound / length(u)) for u in updates]
        mean = {}
        for k, x in W.items():
            total = sum((s * u[k] for s, u in zip(scales, updates, strict=True)), np.zeros(x.shape))
            mean[k] = (total + z1 * bound * noise.normal(x.size).reshape(x.shape)) / expected
        eta = 1.0
        if norm_share:
            z2 = NOISE / math.sqrt(norm_share)
            squares = sum((s * length(u)) ** 2 for s, u in zip(scales, updates, strict=True))
            spread = (squares + z2 * bound**2 * noise.normal(1)[0]) / expected
            short = sq_norm(mean) - 5 * (z1 * bound / expected) ** 2 + 1e-3
            eta = max(1.0, spread / (2 * short)) if short > 0 else 1.0
        w = {k: w[k] - eta * mean[k] for k in W}
        last = {"eta": eta, "bound": bound}
        if quantile:
            votes = sum((s == 1) - 0.5 for s in scales)
            votes += NOISE / math.sqrt(0.02) / 2 * noise.normal(1)[0]
            bound *= math.exp(-0.2 * (votes / expected + 0.5 - quantile))
    return w, last


@both
@pytest.mark.parametrize("quantile", [0.0, 0.5])
@pytest.mark.parametrize("make", [FedAvg, FedExP])
def test_a_private_round_is_that_of_its_formula(make, merges, quantile):
    strategy = make(fraction_train=Q, extensions=[private(quantile=quantile)], **QUIET)
    ours, metrics = run(strategy, 3, merges=merges)
    w, last = reference(3, 0.04 if make is FedExP else 0.0, quantile)
    for name in W:
        np.testing.assert_allclose(ours[name], w[name], rtol=1e-12, atol=1e-12)
    assert metrics["server-step-size"] == pytest.approx(last["eta"])
    assert metrics["max-update-norm"] == pytest.approx(last["bound"])
    assert metrics["privacy-epsilon"] == pytest.approx(client_epsilon(NOISE, Q, 3, 1e-5))
    # Neither losses nor counts nor lengths of single clients, whatever their number was.
    assert "train-loss" not in metrics
    assert metrics["num-clients"] == 3
    assert ("mean-update-norm" in metrics) == (make is FedExP)
    assert "num-clipped" not in metrics


def test_the_budget_is_shared_among_what_is_released():
    strategy = FedExP(fraction_train=Q, extensions=[CentralPrivacy(2.0, quantile=0.5)], **QUIET)
    z = strategy.extensions.find(CentralPrivacy).multipliers
    assert sum(x**-2 for x in z) == pytest.approx(2.0**-2)
    assert z[1:] == (pytest.approx(2 / 0.04**0.5), pytest.approx(2 / 0.02**0.5))
    adam = FedAdam(fraction_train=Q, extensions=[CentralPrivacy(2.0)], **QUIET)
    assert adam.extensions.find(CentralPrivacy).multipliers == (2.0, math.inf, math.inf)


@both
def test_neighbouring_cohorts_move_the_sums_by_no_more_than_is_claimed(merges):
    rng = np.random.default_rng(0)
    for bound in (0.01, 0.7, 30.0):
        updates = [rng.normal(size=(5,)) * 10.0 ** rng.uniform(-3, 3) for _ in range(9)]

        def train(message, context, updates=updates):
            sent = from_record(message.content["arrays"])["w"]
            return content({"w": sent - updates[partition(context)]}, num_examples=1000)

        nodes = merging_if(merges, grid_of(9, train))
        strategy = FedAvg(extensions=[CentralPrivacy(NOISE, bound)], **QUIET)
        start = record({"w": np.zeros(5)})

        def sums(chosen, strategy=strategy, nodes=nodes, start=start):
            strategy.restart()
            strategy.begin(from_record(start), 1)
            config = ConfigRecord({"server-round": 1})
            body = RecordDict({"arrays": start, "config": config})
            usable = strategy.replies()
            messages = [Message(body, i + 2, "train") for i in chosen]
            usable.take(strategy.streamed(nodes).send_and_receive(messages))
            return usable.stats

        for left_out in range(9):
            all_, some = sums(range(9)), sums([i for i in range(9) if i != left_out])
            moved = length({"w": all_.update["w"] - some.update["w"]})
            assert moved <= bound * (1 + 1e-9)
            assert abs(all_.sq_norm - some.sq_norm) <= bound**2 * (1 + 1e-9)
            votes = [s.count / 2 - s.num_clipped for s in (all_, some)]
            assert abs(votes[0] - votes[1]) == 0.5


def received(sums, extension, size):
    before = {"w": np.zeros(size)}
    reading = ReplyFormat("num-examples", False, frozenset("w"), "arrays")
    reading = replace(reading, **extension.reading({}))
    asked = RoundInProgress(before, reading, 1, num_nodes=sums.count, sampling_rate=1.0)
    return Received(asked, sums, [], [], [])


def test_the_noise_has_its_variance_and_its_excess_is_taken_off():
    size, updates = 400, np.random.default_rng(1).normal(size=(8, 400)) / 100
    sums, mean = stats_of(*updates), updates.mean(0)
    lengths, squares, entries = [], [], []
    for seed in range(200):
        extension = CentralPrivacy(NOISE, CLIP, norm_share=0.04, seed=seed)
        given = received(sums, extension, size)
        state = extension.send(given.round, {}).state
        adapted = extension.aggregate(given, sums, dict(state)).stats
        lengths.append(sq_norm(adapted.mean_update) - adapted.excess)
        squares.append(adapted.sq_norm - sums.sq_norm)
        entries.append(adapted.update["w"] - sums.update["w"])
    z1, z2, _ = extension.multipliers
    # Standard errors: of a variance 2/√(2·80000), of a spread 1/√400, of a mean σ/√200.
    assert np.var(entries) == pytest.approx((z1 * CLIP) ** 2, rel=0.02)
    assert np.std(squares) == pytest.approx(z2 * CLIP**2, rel=0.2)
    error = np.std(lengths) / math.sqrt(200)
    assert abs(np.mean(lengths) - mean @ mean) < 4 * error
    assert 400 * (z1 * CLIP / 8) ** 2 > 20 * error  # so that without the correction it would fail


@both
@pytest.mark.parametrize("failing", [True, False])
def test_a_round_that_nobody_answers_releases_noise(failing, merges):
    # Otherwise an unchanged model would tell that nobody was there.
    rate = 1.0 if failing else 1e-9
    strategy = FedExP(fraction_train=rate, extensions=[private(num_clients=6)], **QUIET)
    ours, metrics = run(strategy, 1, failing=failing, merges=merges)
    scale = strategy.extensions.find(CentralPrivacy).multipliers[0] * CLIP / (rate * 6)
    expected = W["w"] - metrics["server-step-size"] * scale * SeededNoise(3, 1, 1).normal(4)
    np.testing.assert_allclose(ours["w"], expected, rtol=1e-9)
    assert strategy.state["privacy"]["rounds"] == 1
    # Nor does a count: a client that always fails would be seen to be there.
    assert not {"num-failures", "num-late"} & metrics.keys()


def test_a_resumed_run_takes_the_same_steps_and_goes_on_counting(tmp_path):
    make = partial(FedExP, fraction_train=Q, **QUIET)
    whole, at_end = run(make(extensions=[private(quantile=0.5)]), 4)
    first = make(extensions=[private(quantile=0.5)])
    arrays, _ = run(first, 2)
    Checkpoint(2, arrays, first.state).save(tmp_path / "c")
    saved, second = Checkpoint.load(tmp_path / "c"), make(extensions=[private(quantile=0.5)])
    second.state = dict(saved.state)
    resumed, metrics = run(second, 4, 3, saved.params)
    np.testing.assert_array_equal(resumed["w"], whole["w"])
    assert metrics["privacy-epsilon"] == at_end["privacy-epsilon"]
    other, _ = run(make(extensions=[CentralPrivacy(NOISE, CLIP)]), 1)
    again, _ = run(make(extensions=[CentralPrivacy(NOISE, CLIP)]), 1)
    assert not np.array_equal(other["w"], again["w"])  # the system's noise is never the same


@pytest.mark.parametrize(
    ("make", "arguments", "words"),
    [
        (FedAvg, {"clip": FixedClip(1.0)}, "FixedClip.* depends on what single clients sent"),
        (FedAvg, {"drop_beyond": 4.0}, "DropBeyond.* depends on what single clients sent"),
        (Scaffold, {}, "ServerControlVariate.* depends on what single clients sent"),
        (FedExPM, {}, "RunningExtrapolation is misled by noise"),
        (FedAvg, {"waiting": Waiting(enough=2)}, "Use a deadline alone"),
    ],
)
def test_what_would_tell_of_single_clients_is_refused(make, arguments, words):
    with pytest.raises(ValueError, match=words):
        make(extensions=[CentralPrivacy()], **arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"noise_multiplier": 0.1}, r"noise_multiplier=0.1\): must be at least 0.3"),
        ({"clip": 0.0}, r"clip=0.0\): must be > 0"),
        ({"delta": 1.0}, r"delta=1.0\): must be in"),
        ({"norm_share": 1.0}, r"norm_share=1.0\): must be in"),
        ({"norm_share": 0.5, "quantile_share": 0.5}, "nothing is left"),
        ({"quantile": 1.0}, r"quantile=1.0\): must be in"),
        ({"quantile": 0.5, "rate": 0.0}, r"rate=0.0\): must be > 0"),
        ({"quantile": 0.5, "rate": math.inf}, r"rate=inf\): must be > 0"),
        ({"noise_multiplier": 1e300}, r"noise_multiplier=1e\+300\): must be .* at most 1e\+09"),
        ({"clip": 1e300}, r"clip=1e\+300\): must be > 0 and at most 1e\+15"),
        ({"delta": 1e-300}, r"delta=1e-300\): must be in \(0, 1\), and at least 1e-10"),
        ({"num_clients": -5}, r"num_clients=-5\): must be a whole number"),
        ({"num_clients": 0.5}, r"num_clients=0.5\): must be a whole number"),
        ({"seed": 1.5}, r"seed=1.5\): must be a whole number"),
        ({"seed": -1}, r"seed=-1\): must be a whole number"),
    ],
)
def test_what_has_no_meaning_is_said_in_a_line(arguments, words):
    with pytest.raises(ValueError, match=words):
        CentralPrivacy(**arguments)


@both
def test_neither_a_first_model_nor_a_lack_of_buffers_gets_past_the_noise(merges, logged):
    start = {"w": np.zeros(3), "0.running_mean": np.ones(2)}

    def train(message, context):
        return content({"w": np.full(3, 1.0 + partition(context))})  # without the buffer

    nodes, strategy = merging_if(merges, grid_of(3, train)), FedAvg(extensions=[private()], **QUIET)
    with pytest.raises(ValueError, match="Start from a model"):
        list(rounds(strategy, nodes, record({}), num_rounds=1))
    (last,) = rounds(strategy, nodes, record(start), num_rounds=1)
    ours = from_record(last.arrays)
    np.testing.assert_allclose(ours["w"], -NOISE * CLIP / 3 * SeededNoise(3, 1, 1).normal(3))
    np.testing.assert_array_equal(ours["0.running_mean"], [1.0, 1.0])
    assert any("missing ['0.running_mean']" in line for line in logged)


def test_clients_that_were_drawn_otherwise_are_refused():
    strategy = FedAvg(fraction_train=Q, extensions=[private()], **QUIET)
    arrays, _ = run(strategy, 1)
    strategy.released, strategy.fraction_train = None, 0.25
    with pytest.raises(ValueError, match=r"same probability in every round, not 0.25 after 0.5"):
        run(strategy, 2, 2, arrays)
    with pytest.raises(ValueError, match=r"norm_share=0\): the step size needs squared norms"):
        FedExP(extensions=[private(norm_share=0)])
    with pytest.raises(ValueError, match=r"nothing is left for the updates"):
        FedExP(extensions=[private(quantile=0.5, quantile_share=0.97)])


@both
def test_clients_that_send_a_part_are_dropped_however_many_they_are(merges):
    def train(message, context):
        sent, p = from_record(message.content["arrays"]), partition(context)
        return content(sent if p == 0 else {"w": sent["w"] + (1e3 if p == 1 else 1.0)})

    strategy = FedAvg(extensions=[private()], **QUIET)
    grid = merging_if(merges, grid_of(len(SIZES), train))
    (last,) = rounds(strategy, grid, record(W), num_rounds=1)
    assert sum(map(len, strategy.attendance.reasons.values())) == len(SIZES) - 1
    expected = W["w"] - NOISE * CLIP / len(SIZES) * SeededNoise(3, 1, 1).normal(4)
    np.testing.assert_allclose(from_record(last.arrays)["w"], expected, rtol=1e-9)


def test_a_bound_that_only_noise_moves_stays_a_number():
    extension = CentralPrivacy(1e9, 1.0, quantile=0.5, seed=0)
    strategy = FedAvg(fraction_train=Q, extensions=[extension], **QUIET)
    _, metrics = run(strategy, 12)
    assert 1e-15 <= metrics["max-update-norm"] <= 1e15
    assert metrics["num-clients"] == 3
