"""Robust rounds against a slow reference, and what no reply can exceed."""

import math
from itertools import pairwise

import numpy as np
import pytest
from builders import merging_if
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given, settings
from hypothesis import strategies as st
from test_legacy import FIRST, TWINS, fitted, trained
from test_presets import arrays_of, grid_of

from fedexp.records import from_record, to_record
from fedexp.simulation import SerialGrid
from fedexp.stats import PseudoGradientStats
from fedexp.strategies import STRATEGIES, FedAvg, FedExP, FedExProx, FixedClip, legacy
from fedexp.strategies.medians import MedianBounds, Report, lower_median
from fedexp.strategies.rate_sharing import cohort_rates

W = {"w": np.linspace(-1, 1, 6).reshape(2, 3), "b": np.asarray(0.5)}
BOUNDS = MedianBounds()
K, L, C, S = 3.0, 3.0, 1.5, 3.0
QUIET = {"fraction_evaluate": 0.0}


def app(replies, losses=None):
    """Clients that send ``replies[round - 1][partition]``: a weight, and an update to subtract."""
    client = ClientApp()

    @client.train()
    def train(message, context):
        p = int(context.node_config["partition-id"])
        weight, update = replies[int(message.content["config"]["server-round"]) - 1][p]
        before = from_record(message.content["arrays"])
        arrays = {name: np.asarray(x - update[name]) for name, x in before.items()}
        metrics = {"num-examples": weight, "control-step": 0.5, "final-loss": 0.5, "loss": p * 1.0}
        metrics |= {"local-work": 2.0}
        metrics |= {"final-loss": losses[p]} if losses else {}
        content = {"arrays": to_record(arrays), "metrics": MetricRecord(metrics)}
        return Message(RecordDict(content), reply_to=message)

    return client


def run(strategy, replies, merges=True, **kwargs):
    grid = SerialGrid(app(replies, **kwargs), len(replies[0]))
    grid = merging_if(merges, grid)
    return strategy.start(grid, to_record(W), num_rounds=len(replies))


def length(update):
    return math.sqrt(sum(float(np.sum(np.square(x))) for x in update.values()))


def drawn(num_rounds=4, num_clients=5, odd=()):
    """Updates of about one length, weights of about one size; ``odd`` maps places to factors."""
    rng = np.random.default_rng(3)
    replies = [
        [
            (
                float(rng.integers(20, 60)),
                {n: rng.normal(size=x.shape) * 0.8**t for n, x in W.items()},
            )
            for _ in range(num_clients)
        ]
        for t in range(num_rounds)
    ]
    for (t, i), (more, longer) in dict(odd).items():
        p, update = replies[t][i]
        replies[t][i] = p * more, {n: x * longer for n, x in update.items()}
    return replies


def reference(replies, eta):
    """The rule written out: models after each round, and the bounds on the updates."""
    w, m, n, models, bounds = {k: x.copy() for k, x in W.items()}, None, None, [], []
    for round_ in replies:
        norms, weights = [length(u) for _, u in round_], [p for p, _ in round_]
        middle = sorted(norms)[(len(norms) - 1) // 2]
        heavy = sorted(weights)[(len(weights) - 1) // 2]
        if m is None:
            p = [1.0] * len(round_)
            scaled = [middle / norm for norm in norms]
            bounds.append(middle)
            lengths = [middle] * len(round_)
            m, n = middle, heavy
        else:
            p = [min(x, L * n) for x in weights]
            scaled = [min(1.0, K * m / norm) for norm in norms]
            bounds.append(K * m)
            lengths = [min(norm, K * m, C * middle) for norm in norms]
            m = math.sqrt(m * min(max(middle, m / K), K * m))
            n = math.sqrt(n * min(max(heavy, n / L), L * n))
        mean = {
            k: sum(a * s * u[k] for a, s, (_, u) in zip(p, scaled, round_, strict=True)) / sum(p)
            for k in w
        }
        square = sum(a * x**2 for a, x in zip(p, lengths, strict=True)) / sum(p)
        step = eta(square, length(mean) ** 2)
        w = {k: w[k] - step * mean[k] for k in w}
        models.append(w)
    return models, bounds


ODD = {(0, 1): (1e12, 30.0), (2, 0): (1e12, 1e6), (3, 4): (1.0, -1e6), (1, 2): (1e-9, 1e-9)}
RULES = {
    "fedavg": (FedAvg, lambda square, mean: 1.0),
    "fedexp": (
        lambda **kw: FedExP(epsilon=0.0, **kw),
        lambda square, mean: min(S, max(1.0, square / (2 * mean))),
    ),
}


@pytest.mark.parametrize("merges", [True, False])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("odd", [{}, ODD], ids=["honest", "odd"])
def test_the_rule_is_that_of_a_slow_reference(rule, odd, merges):
    make, eta = RULES[rule]
    replies = drawn(odd=odd)
    models, bounds = reference(replies, eta)
    result = run(make(robust=True, **QUIET), replies, merges)
    for name, x in arrays_of(result).items():
        np.testing.assert_allclose(x, models[-1][name], rtol=1e-9)
    metrics = result.train_metrics_clientapp
    ours = [metrics[t + 1]["max-update-norm"] for t in range(len(replies))]
    np.testing.assert_allclose(ours, bounds, rtol=1e-12)


@pytest.mark.parametrize("key", STRATEGIES)
def test_merged_replies_and_single_ones_give_the_same_model(key):
    replies = drawn(odd=ODD)
    results = [
        run(STRATEGIES[key].strategy(robust=True, **QUIET), replies, merges)
        for merges in (True, False)
    ]
    merged, single = map(arrays_of, results)
    for name in W:
        np.testing.assert_allclose(merged[name], single[name], rtol=1e-9)


odd_replies = st.tuples(st.floats(1e-6, 1e12), st.sampled_from([0.0, 1e-9, 1.0, 30.0, 1e6, -1e12]))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(odd_replies, min_size=3, max_size=3), min_size=1, max_size=4),
    st.sampled_from([FedAvg, FedExP]),
)
def test_a_round_moves_the_model_by_at_most_step_times_multiple_times_median(factors, make):
    odd = {(t, i): x for t, round_ in enumerate(factors) for i, x in enumerate(round_)}
    models = []
    grid = SerialGrid(app(drawn(len(factors), 3, odd)), 3)
    result = make(robust=True, **QUIET).start(
        grid,
        to_record(W),
        num_rounds=len(factors),
        evaluate_fn=lambda server_round, arrays: models.append(from_record(arrays)),
    )
    found = [metrics["max-update-norm"] for metrics in result.train_metrics_clientapp.values()]
    for before, after, bound in zip(models, models[1:], found, strict=False):
        moved = length({k: before[k] - after[k] for k in W})
        assert moved <= S * bound * (1 + 1e-9) + 1e-15 * length(before)
    known = [bound for bound in found if bound][1:]  # the first of them is no multiple
    for old, new in pairwise(known):
        assert 1 / math.sqrt(K) <= new / old * (1 + 1e-9) <= math.sqrt(K) * (1 + 1e-8)


@given(
    st.lists(st.tuples(st.floats(1e-6, 1e14), st.floats(0, 1e30)), min_size=1, max_size=9),
    st.floats(1e-6, 1e6),
    st.floats(1.0, 1e6),
)
def test_a_cohort_moves_a_median_by_at_most_the_root_of_the_multiple(reports, m, n):
    state = {"medians": {"norm": np.asarray(m), "weight": np.asarray(n)}}
    rows = [Report(claim, 1.0, norm) for claim, norm in reports]
    _, after, _ = BOUNDS.settle(PseudoGradientStats(), rows, state)
    for name, old, k in (("norm", m, K), ("weight", n, L)):
        assert 1 / math.sqrt(k) - 1e-9 <= after["medians"][name] / old <= math.sqrt(k) + 1e-9


@pytest.mark.parametrize("length_of_v", [10.0, 1e6])
def test_a_pair_that_cancels_does_not_raise_the_step(length_of_v):
    honest = drawn(2, 5)
    v = {n: length_of_v * x for n, x in honest[0][0][1].items()}
    paired = [[*round_, (30.0, v), (30.0, {n: -x for n, x in v.items()})] for round_ in honest]
    result = run(FedExP(epsilon=0.0, robust=True, **QUIET), paired)
    metrics = result.train_metrics_clientapp[2]
    middle = sorted([length(u) for _, u in honest[1]])[3]  # lower median of seven, two longer
    ratio = (C * middle) ** 2 / (2 * metrics["update-norm"] ** 2)
    assert metrics["server-step-size"] <= max(1.0, ratio) * (1 + 1e-9)


def test_half_of_a_cohort_cannot_raise_a_median():
    assert lower_median([1.0, 2.0, 1e9, 1e9]) == 2.0
    assert lower_median([7.0]) == 7.0


def test_while_nobody_moves_every_round_is_the_first():
    still = [(1.0, {n: np.zeros_like(x) for n, x in W.items()})] * 3
    strategy = FedAvg(robust=True, **QUIET)
    assert len(arrays_of(run(strategy, [still]))) == 2
    assert "medians" not in strategy.state


@pytest.mark.parametrize("merges", [True, False])
def test_one_who_claims_1e14_examples_decides_neither_the_model_nor_the_metrics(merges):
    honest = drawn(2, 5)
    claimed = drawn(2, 5, {(t, 4): (1e14 / honest[t][4][0], 1.0) for t in range(2)})
    result = run(FedAvg(robust=True, **QUIET), claimed, merges)
    sizes = [p for p, _ in honest[1][:4]] + [3 * sorted(p for p, _ in claimed[1])[2]]
    losses = np.average(range(5), weights=sizes)
    assert result.train_metrics_clientapp[2]["loss"] == pytest.approx(losses)
    models, _ = reference(claimed, RULES["fedavg"][1])
    np.testing.assert_allclose(arrays_of(result)["w"], models[-1]["w"], rtol=1e-9)


@pytest.mark.parametrize("merges", [True, False])
@pytest.mark.parametrize("claim", [1e30, -1e30])
def test_one_loss_does_not_drive_polyaks_step(claim, merges):
    losses = [0.5, 0.4, 0.6, claim]
    strategy = FedExProx(gamma=10.0, step_size="stops", robust=True, **QUIET)
    result = run(strategy, drawn(1, 4), merges, losses=losses)
    updates = [u for _, u in drawn(1, 4)[0]]
    m = sorted(map(length, updates))[1]
    mean = {k: sum(m / length(u) * u[k] for u in updates) / 4 for k in W}
    bounded = [0.5, 0.4, 0.6, 1.0 if claim > 0 else 0.0]  # between 0 and twice the median .5
    gap = np.mean(bounded) + m**2 / 20
    eta = min(S, 10 * gap / length(mean) ** 2)
    assert result.train_metrics_clientapp[1]["server-step-size"] == pytest.approx(eta)


def test_one_learning_rate_does_not_drive_the_cohorts_mean():
    metrics = [{"num-examples": 1, "learning-rate": x} for x in (0.1, 0.2, 1e30)]
    mean, _ = cohort_rates(metrics, "num-examples", within=3.0)
    assert mean == pytest.approx((0.1 + 0.2 + 0.6) / 3)


@pytest.mark.parametrize("name", TWINS)
def test_the_older_api_gives_the_same_model(name):
    def client(message, context):
        arrays = from_record(message.content["arrays"])
        server_round = message.content["config"]["server-round"]
        new = trained(context.node_config["partition-id"], server_round, arrays.values())
        return dict(zip(arrays, new, strict=True))

    newer = STRATEGIES[name.lower()].strategy(robust=True, **QUIET)
    result = newer.start(grid_of(client), to_record(FIRST), num_rounds=4)
    cls = getattr(legacy, name)
    same = {"tau": 1e-3, "flower_compatible": False} if cls.defaults else {}
    older, history, _ = fitted(cls, robust=True, **same)
    for x, y in zip(older, from_record(result.arrays).values(), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9)
    bounds = [m["max-update-norm"] for m in result.train_metrics_clientapp.values()]
    assert [x for _, x in history.metrics_distributed_fit["max-update-norm"]] == bounds


def test_metric_functions_of_the_older_api_see_bounded_weights():
    seen = []
    fitted(
        legacy.FedAvg,
        1,
        robust=MedianBounds(weight=1.0),
        fit_metrics_aggregation_fn=lambda pairs: seen.extend(n for n, _ in pairs) or {},
    )
    assert sorted(seen) == [1, 1, 1, 1]  # of 1, 2, 3, 1, whose lower median is 1


def test_a_step_that_the_user_chose_is_not_capped():
    assert FedAvg(server_learning_rate=5.0, robust=True).optimizer.step_size.value == 5.0
    assert FedExP(max_step_size=7.0, robust=True).optimizer.step_size.max_step_size == 7.0
    assert FedExP(robust=True).optimizer.step_size.max_step_size == S


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MedianBounds(norm=0.5), r"MedianBounds\(norm=0.5\): must be >= 1. Use 3.0"),
        (lambda: MedianBounds(weight=math.nan), r"MedianBounds\(weight=nan\)"),
        (lambda: MedianBounds(step=0), r"MedianBounds\(step=0\)"),
        (lambda: FedAvg(robust=True, clip=FixedClip(1.0)), r"both bound updates. Use one."),
    ],
)
def test_what_makes_no_sense_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_without_robust_no_bit_changes():
    replies = drawn(odd=ODD)
    plain = arrays_of(run(FedExP(**QUIET), replies))
    # what FedExP is: w - eta mean, eta = max(1, mean |d|^2 / (2 (|mean|^2 + eps)))
    w = {k: x.copy() for k, x in W.items()}
    for round_ in replies:
        total = sum(p for p, _ in round_)
        mean = {k: sum(p * u[k] for p, u in round_) / total for k in w}
        square = sum(p * length(u) ** 2 for p, u in round_) / total
        eta = max(1.0, square / (2 * (length(mean) ** 2 + 1e-3)))
        w = {k: w[k] - eta * mean[k] for k in w}
    for name in W:
        np.testing.assert_allclose(plain[name], w[name], rtol=1e-6)
