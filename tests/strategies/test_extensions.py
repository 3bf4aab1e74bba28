"""Methods added to a round without editing ``FedOpt``, against the formulas of their papers."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from builders import content, grid_of, merging_if, partition, record
from flwr.app import ConfigRecord

from fedexp.records import from_record
from fedexp.rounds import rounds
from fedexp.runs.checkpoint import Checkpoint
from fedexp.strategies import (
    FedAvg,
    FedExP,
    FedOpt,
    FixedClip,
    Identity,
    MedianBounds,
    QuantileClip,
    ServerOptimizer,
)
from fedexp.strategies.extensions import Adapted, Extension, Extensions, Sent
from fedexp.strategies.robustness import DropBeyond

W = {"w": np.linspace(-1, 1, 4), "b": np.asarray(0.5)}
SIZES, STEPS = [10, 20, 40], [3, 12, 5]
QUIET = {"fraction_evaluate": 0.0}


def update(p, server_round, scale=1.0):
    """What client ``p`` subtracts from the model."""
    rng = np.random.default_rng([p, server_round])
    return {k: scale * STEPS[p] * rng.normal(size=x.shape) for k, x in W.items()}


def grid(merges=True, seen=None, lost=()):
    def train(message, context):
        p, server_round = partition(context), int(message.content["config"]["server-round"])
        if seen is not None:
            seen.append((server_round, p, dict(message.content)))
        own = update(p, server_round)
        sent = from_record(message.content["arrays"])
        metrics = {} if p in lost else {"local_steps": STEPS[p]}
        arrays = {k: np.asarray(x - own[k]) for k, x in sent.items()}
        return content(arrays, num_examples=SIZES[p], **metrics)

    return merging_if(merges, grid_of(len(SIZES), train))


def run(strategy, num_rounds=3, first=1, arrays=W, **kwargs):
    *_, last = rounds(strategy, grid(**kwargs), record(arrays), num_rounds=num_rounds, first=first)
    return from_record(last.arrays), last.train


def close(ours, expected):
    for name in W:
        np.testing.assert_allclose(ours[name], expected[name], rtol=1e-12, atol=1e-12)


both = pytest.mark.parametrize("merges", [True, False])


# --- FedNova ------------------------------------------------------------------------------


@dataclass(frozen=True)
class FedNova(Extension):
    """``w ← w - τ Σ pᵢ Δᵢ/τᵢ`` with ``τ = Σ pᵢτᵢ``, where client ``i`` has taken ``τᵢ`` steps."""

    def reading(self, state):
        return {"divided_by": "local-steps"}  # so that the sums are Σ (nᵢ/τᵢ) Δᵢ and Σ nᵢ/τᵢ

    def aggregate(self, received, stats, state):
        taus = [metrics["local-steps"] for metrics in received.metrics]
        sizes = [p * tau for p, tau in zip(received.weights, taus, strict=True)]
        total = sum(sizes)
        effective = sum(n * tau for n, tau in zip(sizes, taus, strict=True)) / total
        factor = effective * stats.weight / total
        update = {k: x * factor for k, x in stats.update.items()}
        return Adapted(replace(stats, update=update), {}, {"effective-steps": effective})


@both
@pytest.mark.parametrize("weighted", [True, False])
def test_fednova_is_the_papers_formula(merges, weighted):
    # Wang et al. 2020, arXiv:2007.07481, eq. 10: plain SGD, so that |a_i|_1 is the number of steps.
    p = np.array(SIZES) / sum(SIZES) if weighted else np.full(3, 1 / 3)
    w, effective = dict(W), float(p @ STEPS)
    for t in (1, 2, 3):
        updates = [update(i, t) for i in range(3)]
        w = {
            k: w[k] - effective * sum(p[i] * updates[i][k] / STEPS[i] for i in range(3)) for k in W
        }
    ours, metrics = run(FedAvg(extensions=[FedNova()], weighted=weighted, **QUIET), merges=merges)
    close(ours, w)
    assert metrics["effective-steps"] == pytest.approx(effective)


@both
def test_a_client_that_does_not_say_how_many_steps_it_took_is_dropped(merges):
    strategy = FedAvg(extensions=[FedNova()], **QUIET)
    _, metrics = run(strategy, 1, merges=merges, lost={1})
    assert (metrics["num-clients"], metrics["num-failures"]) == (2, 1)
    (reason,) = strategy.attendance.reasons
    assert "local-steps is None, it must be a positive number" in reason


# --- FedDyn -------------------------------------------------------------------------------


@dataclass(frozen=True)
class FedDyn(Extension):
    """``h ← h - α/m Σ (wᵢ - w)``, ``w ← mean wᵢ - h/α``, with ``m`` clients in all."""

    alpha: float

    def aggregate(self, received, stats, state):
        old, factor = state.get("feddyn", {}), self.alpha / received.round.num_nodes
        h = {k: old.get(k, 0.0) + factor * x for k, x in stats.update.items()}
        update = {k: x + stats.weight * h[k] / self.alpha for k, x in stats.update.items()}
        return Adapted(replace(stats, update=update), {"feddyn": h})


def feddyn(**kwargs):
    few = {"fraction_train": 0.67, "seed": 5, "min_train_nodes": 1, "min_available_nodes": 3}
    return FedAvg(weighted=False, extensions=[FedDyn(0.1)], **few, **QUIET, **kwargs)


@both
def test_feddyn_is_the_papers_algorithm_with_partial_participation(merges):
    # Acar et al. 2021, arXiv:2111.04263, alg. 1, the server's lines.
    seen = []
    ours, _ = run(feddyn(), 4, merges=merges, seen=seen)
    w, h = dict(W), {k: np.zeros_like(x) for k, x in W.items()}
    drawn = {t: sorted(p for s, p, _ in seen if s == t) for t in (1, 2, 3, 4)}
    assert len({tuple(ps) for ps in drawn.values()}) > 1
    for t, ps in drawn.items():
        ends = [{k: w[k] - update(p, t)[k] for k in W} for p in ps]
        assert len(ps) == 2
        h = {k: h[k] - 0.1 / 3 * sum(end[k] - w[k] for end in ends) for k in W}
        w = {k: sum(end[k] for end in ends) / 2 - h[k] / 0.1 for k in W}
    close(ours, w)


def test_what_an_extension_remembers_is_in_the_checkpoint(tmp_path):
    whole, _ = run(feddyn(), 4)
    first = feddyn()
    arrays, _ = run(first, 2)
    Checkpoint(2, arrays, first.state).save(tmp_path / "c")
    saved, second = Checkpoint.load(tmp_path / "c"), feddyn()
    second.state = dict(saved.state)
    resumed, _ = run(second, 4, 3, saved.params)
    for name in W:
        np.testing.assert_array_equal(resumed[name], whole[name])


# --- a private round ----------------------------------------------------------------------


@dataclass(frozen=True)
class Noise(Extension):
    """``N(0, (z C)²)`` on every entry of the sum of clipped updates."""

    multiplier: float
    seed: int = 0

    def aggregate(self, received, stats, state):
        scale = self.multiplier * received.round.reading.max_norm
        rng = np.random.default_rng([self.seed, received.round.server_round])
        update = {k: x + scale * rng.normal(size=x.shape) for k, x in stats.update.items()}
        return Adapted(replace(stats, update=update))


@both
@pytest.mark.parametrize("clip", [FixedClip(0.5), QuantileClip(0.5)])
def test_a_private_round_is_noise_on_the_sum_of_clipped_updates(merges, clip):
    ours, _ = run(
        FedAvg(weighted=False, clip=clip, extensions=[Noise(2.0)], **QUIET), merges=merges
    )
    w, bound = dict(W), 0.5
    for t in (1, 2, 3):
        rng, updates = np.random.default_rng([0, t]), [update(p, t) for p in range(3)]
        norms = [math.sqrt(sum(np.sum(x**2) for x in u.values())) for u in updates]
        total = {
            k: sum(min(1, bound / n) * u[k] for n, u in zip(norms, updates, strict=True)) for k in W
        }
        w = {k: w[k] - (total[k] + 2.0 * bound * rng.normal(size=W[k].shape)) / 3 for k in W}
        if isinstance(clip, QuantileClip):
            within = sum(n <= bound for n in norms) / 3
            bound *= math.exp(-0.2 * (within - 0.5))
    close(ours, w)


# --- the shape ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Sending(Extension):
    """Sends something in odd rounds, and counts its rounds."""

    def send(self, round_, state):
        count = float(state.get("sending", {"count": 0.0})["count"])
        entry = {"sending": {"count": np.asarray(count + 1)}}
        if round_.server_round % 2 == 0:
            return Sent(state=entry)
        beside = {"beside": {"nodes": np.array(round_.nodes), "w": round_.params["w"]}}
        return Sent({"odd": count}, beside, entry)


def test_what_is_sent_reaches_the_clients_of_that_round_alone():
    seen, config = [], ConfigRecord({"own": 1})
    strategy = FedAvg(extensions=[Sending()], client_config={"mu": 0.5}, seed=0, **QUIET)
    first, second = (
        strategy.start(grid(seen=seen), record(W), num_rounds=2, train_config=config)
        for _ in range(2)
    )
    close(from_record(first.arrays), from_record(second.arrays))
    assert strategy.state["sending"]["count"] == 2
    for server_round, _, records in seen:
        settings = dict(records["config"])
        assert (settings["own"], settings["mu"]) == (1, 0.5)
        assert ("odd" in settings) == ("beside" in records) == (server_round == 1)
        if server_round == 1:
            assert from_record(records["beside"])["nodes"].tolist() == [2, 3, 4]
            np.testing.assert_array_equal(from_record(records["beside"])["w"], W["w"])
    assert dict(config) == {"own": 1}  # the caller's record is left alone


def test_a_merged_round_and_a_single_one_are_the_same_for_an_extension():
    seen = []

    class Looking(Extension):
        def aggregate(self, received, stats, state):
            asked = received.round
            seen.append((received.reports, received.nodes, asked.nodes, asked.num_nodes))
            return Adapted(stats)

    for merges in (True, False):
        run(FedAvg(extensions=[Looking()], clip=FixedClip(0.5), seed=0, **QUIET), 1, merges=merges)
    merged, single = seen
    assert merged == single
    assert [report.claim for report in merged[0]] == SIZES
    assert merged[1:] == ([2, 3, 4], (2, 3, 4), 3)
    lengths = [math.sqrt(sum(np.sum(x**2) for x in update(p, 1).values())) for p in range(3)]
    assert [report.norm for report in merged[0]] == pytest.approx(lengths)


def test_extensions_come_one_after_the_other_in_the_order_given():
    @dataclass(frozen=True)
    class Times(Extension):
        factor: float
        plus: float = 0.0

        def aggregate(self, received, stats, state):
            sums = {k: self.factor * x + self.plus for k, x in stats.update.items()}
            return Adapted(replace(stats, update=sums), {}, {"factor": self.factor})

    ours, metrics = run(FedAvg(extensions=[Times(2.0, 7.0), Times(3.0)], **QUIET), 1)
    updates = [update(p, 1) for p in range(3)]
    total = {k: sum(n * u[k] for n, u in zip(SIZES, updates, strict=True)) for k in W}
    close(ours, {k: W[k] - 3 * (2 * total[k] + 7) / sum(SIZES) for k in W})
    assert metrics["factor"] == 3.0


def test_a_step_that_is_refused_is_not_remembered():
    class Overflowing(Extension):
        def aggregate(self, received, stats, state):
            sums = {k: x * np.inf for k, x in stats.update.items()}
            return Adapted(replace(stats, update=sums), {"own": {"x": np.zeros(1)}})

    strategy = FedAvg(extensions=[Overflowing()], **QUIET)
    ours, metrics = run(strategy, 1)
    close(ours, W)
    assert "own" not in strategy.state
    assert (metrics["num-clients"], metrics["num-failures"]) == (0, 3)


def test_an_extension_may_refuse_the_clients_even_where_none_can_be_used():
    class Strict(Extension):
        def check(self, received, state):
            raise ValueError(f"{received.stats.count} clients")

    with pytest.raises(ValueError, match="0 clients"):
        run(FedAvg(extensions=[Strict(), FedNova()], **QUIET), 1, lost={0, 1, 2})


def test_the_arguments_of_a_strategy_are_extensions():
    strategy = FedExP(clip=FixedClip(1.0), drop_beyond=4.0, control_variates=True)
    assert (strategy.clip, strategy.drop_beyond, strategy.bounds) == (FixedClip(1.0), 4.0, None)
    assert strategy.control_variates
    given = FedExP(extensions=[FixedClip(1.0), DropBeyond(4.0)])
    assert given.extensions == FedExP(clip=FixedClip(1.0), drop_beyond=4.0).extensions
    robust = FedExP(extensions=[MedianBounds(step=2.0)])
    assert robust.extensions == FedExP(robust=MedianBounds(step=2.0)).extensions
    assert robust.optimizer.step_size.max_step_size == 2.0
    with pytest.raises(AttributeError, match="Give it to the constructor"):
        strategy.clip = None


def test_two_bounds_on_the_updates_are_refused():
    with pytest.raises(ValueError, match=r"FixedClip\(max_norm=1.0\), .*both bound updates"):
        FedAvg(clip=FixedClip(1.0), extensions=[QuantileClip()])


@both
def test_replies_are_held_only_where_an_extension_drops_some(merges):
    class Last(Extension):
        def drop(self, norms):
            return {len(norms) - 1: "it came last."}

    assert Extensions([FixedClip(1.0), FedNova()]).drop is None
    strategy = FedAvg(extensions=[Last(), DropBeyond(1e9)], seed=0, **QUIET)
    _, metrics = run(strategy, 1, merges=merges)
    assert (metrics["num-clients"], metrics["num-failures"]) == (2, 1)
    assert strategy.attendance.reasons == {"it came last.": [4]}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"extensions": [object()]}, r"extensions\[0\]=<object .*must be an Extension"),
        ({"extensions": [FixedClip(1.0), FixedClip]}, r"extensions\[1\]=FixedClip\): must be"),
        ({"extensions": FixedClip}, r"extensions\[0\]=FixedClip\): must be"),
        ({"clip": 1.0}, r"clip=1.0\): cannot be that. Use clip=FixedClip\(1.0\)"),
        ({"trainable": 3}, r"trainable=3\): cannot be that. Use trainable=\['head.weight'\]"),
        ({"robust": "yes"}, "robust='yes'"),
        ({"optimizer": 3}, "optimizer=3"),
        ({"trainable": "w"}, r"trainable='w'\): must be a list. Give \['w'\]"),
        ({"extensions": 3}, r"extensions\[0\]=3\): must be"),
        ({"weighted": "no"}, r"weighted='no'\): cannot be that. Use weighted=False"),
        ({"fraction_train": "x"}, r"fraction_train='x'\): cannot be that"),
        ({"fraction_train": -1}, r"fraction_train=-1\): must lie between 0 and 1"),
        ({"fraction_evaluate": 5}, r"fraction_evaluate=5\): must lie between 0 and 1"),
        ({"min_available_nodes": "x"}, r"min_available_nodes='x'\): cannot be that"),
        ({"min_train_nodes": 1.5}, r"min_train_nodes=1.5\): cannot be that"),
        ({"min_train_nodes": -1}, r"min_train_nodes=-1\): must be at least 0"),
        ({"min_replies": 1.5}, r"min_replies=1.5\): cannot be that"),
        ({"min_replies": math.inf}, r"min_replies=inf\): cannot be that"),
        ({"weighted_by_key": 3}, r"weighted_by_key=3\): cannot be that"),
        ({"train_metrics_aggr_fn": 3}, r"train_metrics_aggr_fn=3\): cannot be that"),
        ({"seed": 1.5}, r"seed=1.5\): cannot be that. Use seed=0"),
        ({"seed": -1}, r"seed=-1\): must be at least 0"),
        ({"max_step_size": "1"}, r"max_step_size='1'\): cannot be that"),
        ({"relaxation": None}, r"relaxation=None\): cannot be that"),
        ({"drop_beyond": [5]}, r"drop_beyond=\[5\]\): cannot be that"),
        ({"control_variates": None}, r"control_variates=None\): cannot be that"),
        ({"client_config": 3}, r"client_config=3\): cannot be that"),
        ({"client_config": {1: 2}}, r"client_config=\{1: 2\}\): cannot be sent"),
        ({"client_config": {"lr": None}}, r"client_config=\{'lr': None\}\): cannot be sent"),
    ],
)
def test_what_cannot_be_an_argument_is_said_at_once(arguments, words):
    with pytest.raises(ValueError, match=words):
        FedOpt(**arguments)


@pytest.mark.parametrize("rule", [{"direction": Identity}, {"step_size": 3}])
def test_what_is_no_rule_is_said_at_once(rule):
    with pytest.raises(ValueError, match="must be a rule"):
        ServerOptimizer(**rule)


def test_a_trainable_name_that_the_model_lacks_is_refused():
    strategy = FedAvg(trainable=["w", "wieght"], **QUIET)
    with pytest.raises(ValueError, match=r"trainable=\['wieght'\]\): the model has no such arrays"):
        run(strategy, 1)
