from contextlib import nullcontext

import numpy as np
import pytest
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
)
from test_presets import arrays_of, drawn, grid_of

from fedexp.records import from_record, to_record
from fedexp.rounds import rounds
from fedexp.strategies import (
    STRATEGIES,
    FedAvg,
    FedAvgM,
    FedExP,
    FixedClip,
    MedianBounds,
    QuantileClip,
)
from fedexp.strategies.extensions import Extension
from fedexp.strategies.rate_sharing import RateSharing
from fedexp.strategies.robustness import DropBeyond
from fedexp.strategies.scaffold import ServerControlVariate
from fedexp.strategies.step_sharing import StepSharing

W = {"w": np.zeros(5), "b": np.zeros((2, 2))}
EVERYBODY = {"fraction_evaluate": 0.0, "min_train_nodes": 4, "min_available_nodes": 4}


def private(strategy, noise=0.1, norm=2.0):
    return DifferentialPrivacyServerSideFixedClipping(strategy, noise, norm, 4)


@pytest.mark.parametrize(
    "wrap",
    [
        private,
        lambda s: DifferentialPrivacyClientSideFixedClipping(s, 0.1, 2.0, 4),
        lambda s: DifferentialPrivacyServerSideAdaptiveClipping(s, 0.1, 4),
    ],
    ids=["server", "client", "adaptive"],
)
@pytest.mark.parametrize(
    "make", [FedExP, FedAvgM, lambda **kw: FedAvg(server_learning_rate=2, **kw)]
)
def test_flowers_noise_on_another_step_than_the_mean_is_refused_in_round_one(wrap, make):
    evaluated = []
    with pytest.raises(ValueError, match="too small for the privacy they state"):
        wrap(make(**EVERYBODY)).start(
            grid_of(drawn), to_record(W), num_rounds=1, evaluate_fn=lambda t, a: evaluated.append(t)
        )
    assert evaluated == [0]  # the noised model was shown to nobody


def test_it_is_refused_as_well_when_our_own_loop_runs_the_wrapper():
    with pytest.raises(ValueError, match="too small for the privacy"):
        list(rounds(private(FedExP(**EVERYBODY)), grid_of(drawn), to_record(W), num_rounds=1))


@pytest.mark.parametrize("run", ["start", "rounds"])
@pytest.mark.parametrize("merges", [True, False])
def test_a_plain_mean_may_be_wrapped_on_any_grid_and_is_clipped_client_by_client(run, merges):
    # Without noise the result is the mean of the clipped updates.
    grid, wrapped = grid_of(drawn, merges=merges), private(FedAvg(weighted=False, **EVERYBODY), 0.0)
    if run == "start":
        ours = arrays_of(wrapped.start(grid, to_record(W), num_rounds=1))
    else:
        (last,) = rounds(wrapped, grid, to_record(W), num_rounds=1)
        ours = from_record(last.arrays)
    updates = []
    for p in range(4):
        rng = np.random.default_rng([p, 1])
        update = {k: rng.normal(size=x.shape) for k, x in W.items()}
        norm = np.sqrt(sum((x**2).sum() for x in update.values()))
        updates.append({k: x * min(1, 2.0 / norm) for k, x in update.items()})
    for name in W:
        np.testing.assert_allclose(ours[name], np.mean([u[name] for u in updates], axis=0))


def test_noise_on_a_plain_mean_goes_on_for_several_rounds():
    result = private(FedAvg(**EVERYBODY)).start(grid_of(drawn), to_record(W), num_rounds=3)
    assert np.isfinite(arrays_of(result)["w"]).all()


@pytest.mark.parametrize("key", STRATEGIES)
def test_only_a_mean_with_a_step_of_at_most_one_counts_as_one(key):
    means = {"fedavg", "fedprox", "scaffold", "fednova", "feddyn"}  # steps; not what they sum
    assert STRATEGIES[key].strategy().optimizer.averages == (key in means)


class Logging(FedExP):
    """Looks at what our step returns, and leaves it as it is."""

    def aggregate_train(self, server_round, replies):
        self.seen = super().aggregate_train(server_round, replies)
        return self.seen


class Rounded(FedExP):
    """Changes what our step returns."""

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        return to_record({k: x.round(2) for k, x in from_record(arrays).items()}), metrics


class Own(FedExP):
    """Takes a step of its own and never calls ours."""

    def aggregate_train(self, server_round, replies):
        assert self.released is None
        return to_record({k: np.full(x.shape, server_round / 3) for k, x in W.items()}), None


def test_a_subclass_that_only_looks_at_the_result_goes_on():
    strategy = Logging(**EVERYBODY)
    result = strategy.start(grid_of(drawn), to_record(W), num_rounds=3)
    np.testing.assert_array_equal(arrays_of(result)["w"], from_record(strategy.seen[0])["w"])


def test_looking_at_the_result_does_not_lift_the_guard():
    with pytest.raises(ValueError, match="the model was changed after the server step"):
        private(Logging(**EVERYBODY)).start(grid_of(drawn), to_record(W), num_rounds=1)


def test_a_subclass_that_changes_the_result_of_our_step_is_refused_as_a_wrapper_is():
    with pytest.raises(ValueError, match="the model was changed after the server step"):
        Rounded(**EVERYBODY).start(grid_of(drawn), to_record(W), num_rounds=2)


def test_a_subclass_that_never_calls_our_step_is_not_guarded():
    result = Own(**EVERYBODY).start(grid_of(drawn), to_record(W), num_rounds=3)
    np.testing.assert_array_equal(arrays_of(result)["w"], np.ones(5))
    noised = private(Own(**EVERYBODY)).start(grid_of(drawn), to_record(W), num_rounds=2)
    assert np.isfinite(arrays_of(noised)["w"]).all()


@pytest.mark.parametrize(
    ("extension", "is_mean"),
    [
        (FixedClip(1.0), True),
        (QuantileClip(), True),
        (DropBeyond(2.0), True),
        (ServerControlVariate(), True),
        (RateSharing(), True),
        (StepSharing(), True),
        (MedianBounds(), False),
        (Extension(), False),
    ],
    ids=lambda x: type(x).__name__,
)
def test_only_what_keeps_the_mean_goes_with_flowers_noise(extension, is_mean):
    assert extension.keeps_mean is is_mean
    if isinstance(extension, ServerControlVariate):
        return  # needs clients that use them
    strategy = private(FedAvg(extensions=[extension], **EVERYBODY))
    with nullcontext() if is_mean else pytest.raises(ValueError, match="extensions of your own"):
        strategy.start(grid_of(drawn), to_record(W), num_rounds=1)


def test_a_copy_of_the_model_is_the_same_model():
    class Copying:
        """A wrapper that decodes and encodes, and adds nothing."""

        def __init__(self, strategy):
            self.strategy = strategy

        def __getattr__(self, name):
            return getattr(self.strategy, name)

        def aggregate_train(self, server_round, replies):
            arrays, metrics = self.strategy.aggregate_train(server_round, replies)
            return to_record({k: x.copy() for k, x in from_record(arrays).items()}), metrics

    strategy = Copying(FedExP(**EVERYBODY))
    assert len(list(rounds(strategy, grid_of(drawn), to_record(W), num_rounds=2))) == 2
