import numpy as np
import pytest
from test_presets import arrays_of, grid_of, run

from fedexp.records import from_record
from fedexp.stats import PseudoGradientStats
from fedexp.strategies import STRATEGIES, FedAvg, FedExP, FixedClip, QuantileClip
from fedexp.wire import ReplyFormat

W = {"w": np.zeros(8)}
SETTINGS = {"fraction_evaluate": 0.0, "weighted": False}


def honest(p):
    return np.full(8, 0.1) + 0.02 * np.random.default_rng(p).normal(size=8)


def one_scaled(message, context):
    """Eight honest clients' updates, and one that is scaled up thirty times."""
    p = int(context.node_config["partition-id"])
    before = from_record(message.content.array_records["arrays"])
    return {"w": before["w"] - honest(p) * (30 if p == 8 else 1)}


def moved(strategy, num_nodes=9, merges=True):
    result = run(strategy, grid_of(one_scaled, num_nodes, merges), 1, W)
    return -arrays_of(result)["w"], result.train_metrics_clientapp[1]


def test_one_client_that_scales_its_update_up_moves_fedexp_and_everyones_step():
    alone, before = moved(FedExP(epsilon=0.0, **SETTINGS), 8)
    attacked, after = moved(FedExP(epsilon=0.0, **SETTINGS))
    assert before["server-step-size"] == 1.0  # honest clients agree
    assert after["server-step-size"] > 2.5
    assert np.linalg.norm(attacked) > 8 * np.linalg.norm(alone)


@pytest.mark.parametrize(
    "defence", [{"clip": FixedClip(0.35)}, {"drop_beyond": 3.0}, {"clip": QuantileClip(0.35)}]
)
@pytest.mark.parametrize("merges", [True, False])
def test_a_defence_restores_it(defence, merges):
    alone, _ = moved(FedExP(epsilon=0.0, **SETTINGS), 8)
    defended, metrics = moved(FedExP(epsilon=0.0, **SETTINGS, **defence), merges=merges)
    assert metrics["server-step-size"] == 1.0
    assert np.linalg.norm(defended - alone) < 0.1 * np.linalg.norm(alone)
    if "clip" in defence:
        assert metrics["num-clipped"] >= 1
    else:
        assert (metrics["num-clients"], metrics["num-failures"]) == (8, 1)


def test_a_cap_bounds_what_the_scaled_client_does_to_the_step():
    _, metrics = moved(FedExP(epsilon=0.0, max_step_size=1.2, **SETTINGS))
    assert metrics["server-step-size"] == 1.2


@pytest.mark.parametrize("key", STRATEGIES)
@pytest.mark.parametrize(
    "defence", [{"clip": FixedClip(0.2)}, {"clip": QuantileClip(0.2)}, {"drop_beyond": 2.0}]
)
def test_every_strategy_takes_every_defence(key, defence):
    strategy = STRATEGIES[key].strategy(max_step_size=2.0, **SETTINGS, **defence)
    moved_to, _ = moved(strategy)
    assert np.isfinite(moved_to).all()


@pytest.mark.parametrize("merges", [True, False])
def test_clipping_is_the_formula_whether_workers_clip_or_the_server(merges):
    # mean of min(1, C / |D_i|) D_i
    bound = 0.28
    updates = [honest(p) * (30 if p == 8 else 1) for p in range(9)]
    scales = [min(1, bound / np.linalg.norm(u)) for u in updates]
    expected = np.mean([s * u for s, u in zip(scales, updates, strict=True)], axis=0)
    ours, metrics = moved(FedAvg(clip=FixedClip(bound), **SETTINGS), merges=merges)
    np.testing.assert_allclose(ours, expected, rtol=1e-12)
    assert metrics["num-clipped"] == sum(s < 1 for s in scales)
    assert metrics["max-update-norm"] == bound
    assert metrics["mean-update-norm"] == pytest.approx(
        np.mean([np.linalg.norm(s * u) for s, u in zip(scales, updates, strict=True)])
    )


def test_scaled_statistics_are_those_of_scaled_updates():
    rng = np.random.default_rng(1)
    w = {"w": rng.normal(size=20000), "b": np.asarray(rng.normal())}
    afters = [{k: x + rng.normal(size=x.shape) for k, x in w.items()} for _ in range(3)]
    weights, scales, names = [1.0, 2.0, 0.5], [0.3, 1.0, 0.7], frozenset(w)
    ours = PseudoGradientStats.aggregate(w, afters, weights=weights, trainable=names, scales=scales)
    shorter = [
        {k: x - s * (x - a[k]) for k, x in w.items()} for a, s in zip(afters, scales, strict=True)
    ]
    plain = PseudoGradientStats.aggregate(w, shorter, weights=weights, trainable=names)
    assert ours.sq_norm == pytest.approx(plain.sq_norm)
    assert ours.norm == pytest.approx(plain.norm)
    assert (ours.num_clipped, ours.count) == (2, 3)
    for k in w:
        np.testing.assert_allclose(ours.update[k], plain.update[k], rtol=1e-9, atol=1e-12)


def test_an_update_is_scaled_to_the_bound_and_no_further():
    reading = ReplyFormat("num-examples", False, frozenset({"w"}), "arrays", max_norm=0.5)
    assert reading.norm({"w": np.full(4, 2.0)}, {"w": np.zeros(4)}) == 4.0
    assert reading.scale(4.0) == pytest.approx(0.5 / 4)
    assert reading.scale(0.2) == 1.0


@pytest.mark.parametrize("quantile", [0.5, 0.8])
def test_the_adaptive_bound_settles_at_the_quantile(quantile):
    norms, clip, state = np.arange(1.0, 101.0), QuantileClip(0.1, quantile, 0.2), {}
    for _ in range(200):
        above = int((norms > clip.bound(state)).sum())
        state = clip.adapt(PseudoGradientStats(count=100, num_clipped=above), state)
    assert clip.bound(state) == pytest.approx(100 * quantile, rel=0.05)


def test_the_adaptive_bound_is_the_formula():
    # C <- C exp(-rate (b - q)), b the share within the bound
    stats = PseudoGradientStats(count=4, num_clipped=1)
    state = QuantileClip(2.0, 0.5, 0.2).adapt(stats, {})
    assert QuantileClip(2.0).bound(state) == pytest.approx(2.0 * np.exp(-0.2 * (0.75 - 0.5)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedClip(0.0), r"FixedClip\(max_norm=0.0\)"),
        (lambda: QuantileClip(0.0), r"QuantileClip\(initial=0.0\)"),
        (lambda: QuantileClip(quantile=1.5), r"QuantileClip\(quantile=1.5\)"),
        (lambda: QuantileClip(rate=0.0), r"QuantileClip\(rate=0.0\)"),
    ],
)
def test_an_argument_out_of_range_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
